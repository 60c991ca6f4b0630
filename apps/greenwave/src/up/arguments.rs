use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::config::{self, Config, Instances};

/// Run instances of a command behind a load balancer, with a live dashboard.
#[derive(Args, Clone, Default)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArguments {
    /// Where clients connect [default: 127.0.0.1:8080].
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where the dashboard is [default: 127.0.0.1:8090].
    #[arg(long, value_name = "HOST:PORT")]
    dashboard: Option<String>,
    /// How many instances run: a number, or `max` for one a core [default: 2].
    #[arg(long, value_name = "N|max")]
    instances: Option<Instances>,
    /// What tells that an instance is well: `tcp`, or a path that answers 2xx [default: tcp].
    #[arg(long, value_name = "tcp|PATH")]
    health: Option<String>,
    /// Where the embedded database is kept; made if absent [default: greenwave-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Replace the instances, one after the other, when something in this file or folder changes; may be given again.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = ".")]
    watch: Vec<PathBuf>,
    /// The shop without any technique, to see what each is worth.
    #[arg(long, conflicts_with = "command")]
    naive: bool,
    /// The command, in any language; each instance listens on the port in its `PORT`. Without one: the shop.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  greenwave up                                     the shop
  greenwave up -- node server.js                   two instances of a service
  greenwave up --instances max --health /healthz -- ./my-service
  DATABASE_URL=postgres://localhost/shop REDIS_URL=redis://localhost greenwave up";

/// Where the config comes from, at the start and again at each reload.
pub(crate) struct Settings {
    arguments: UpArguments,
    config: Option<PathBuf>,
    socket: Option<PathBuf>,
}

impl Settings {
    /// The flags, `--config` and `--socket`.
    pub(crate) fn new(arguments: UpArguments, config: Option<PathBuf>, socket: Option<PathBuf>) -> Settings {
        Settings { arguments, config, socket }
    }

    pub(super) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The flags over the environment over the file.
    pub(crate) fn load(&self) -> Result<Config> {
        let mut config = config::load(self.config.as_deref())?;
        let flags = self.arguments.clone();
        if !flags.command.is_empty() {
            config.app.command = flags.command;
        }
        config.edge.listen = flags.listen.unwrap_or(config.edge.listen);
        config.dashboard.listen = flags.dashboard.unwrap_or(config.dashboard.listen);
        config.app.instances = flags.instances.unwrap_or(config.app.instances);
        config.app.health = flags.health.unwrap_or(config.app.health);
        config.app.watch.extend(flags.watch);
        config.data_dir = flags.data_dir.unwrap_or(config.data_dir);
        config.shop.naive |= flags.naive;
        Ok(config)
    }
}
