use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::config::{Config, Instances};

/// Run instances of a command behind a load balancer, with a live dashboard.
#[derive(Args, Default)]
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

impl UpArguments {
    /// These flags over the file and the environment.
    pub(crate) fn over(self, mut config: Config) -> Result<Config> {
        if !self.command.is_empty() {
            config.app.command = self.command;
        }
        config.edge.listen = self.listen.unwrap_or(config.edge.listen);
        config.dashboard.listen = self.dashboard.unwrap_or(config.dashboard.listen);
        config.app.instances = self.instances.unwrap_or(config.app.instances);
        config.app.health = self.health.unwrap_or(config.app.health);
        config.data_dir = self.data_dir.unwrap_or(config.data_dir);
        config.shop.naive |= self.naive;
        Ok(config)
    }
}
