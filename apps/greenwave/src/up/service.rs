//! What is run: the shop and its worker, or a command of the user's.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use greenwave_edge::{Health, Supervisor, SupervisorConfig, Upstreams};
use tokio::sync::watch;

use crate::{child, config::Config};

/// The supervised processes.
pub(crate) struct Service {
    /// The instances that take requests.
    instances: Arc<Supervisor>,
    /// The shop's worker; a command of the user's has none.
    worker: Option<Arc<Supervisor>>,
    description: String,
}

impl Service {
    pub(crate) async fn start(config: &Config, sockets: &Path) -> Result<Service> {
        if config.app.command.is_empty() { shop(config, sockets).await } else { command(config, sockets) }
    }

    /// Waits until everything is ready; the error holds the last lines of what is not.
    pub(crate) async fn ready(&self, timeout: Duration) -> Result<()> {
        for supervisor in self.handles() {
            supervisor.ready(timeout).await?;
        }
        Ok(())
    }

    /// Ends the instances first: their last requests may still leave work for the worker.
    pub(crate) async fn shutdown(&self) {
        for supervisor in self.handles() {
            supervisor.shutdown().await;
        }
    }

    pub(crate) fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.instances.upstreams()
    }

    pub(crate) fn handles(&self) -> Vec<Arc<Supervisor>> {
        [Some(&self.instances), self.worker.as_ref()].into_iter().flatten().cloned().collect()
    }

    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    pub(crate) fn curl_lines(&self) -> &'static [&'static str] {
        if self.worker.is_none() {
            return &["{edge}/"];
        }
        &[
            "{edge}/products/1",
            "'{edge}/orders?customer_id=1'",
            "{edge}/orders -H 'content-type: application/json' \
             -d '{\"customer_id\": 1, \"items\": [{\"product_id\": 1, \"quantity\": 2}]}'",
        ]
    }
}

/// A command of the user's.
fn command(config: &Config, sockets: &Path) -> Result<Service> {
    let program = config.app.command.first().context("no command is given")?;
    child::find(program)?;
    let name =
        Path::new(program).file_stem().map_or("app".into(), |name| name.to_string_lossy().into_owned());
    let health = config.app.health.parse().context("app.health (--health)")?;
    let command = child::tied_to_this_process(&config.app.command)?;
    let description = format!("{} of {name}", instances(config.app.instances.count()));
    let instances =
        supervise(SupervisorConfig { name, command, health, ..supervisor(config) }, Vec::new(), sockets)?;
    Ok(Service { instances, worker: None, description })
}

/// The shop: this program again.
async fn shop(config: &Config, sockets: &Path) -> Result<Service> {
    let url = if config.shop.database_url.is_empty() {
        embedded(&config.data_dir)?
    } else {
        config.shop.database_url.clone()
    };
    let mut environment = vec![("DATABASE_URL".into(), url)];
    if !config.shop.redis_url.is_empty() {
        environment.push(("REDIS_URL".into(), config.shop.redis_url.clone()));
    }
    let naive = config.shop.naive.then_some("--naive");
    let this = std::env::current_exe()
        .context("cannot find this program's own file")?
        .to_string_lossy()
        .into_owned();
    let command = |words: &[&str]| {
        let words = words.iter().copied().chain(naive).map(String::from);
        child::tied_to_this_process(&[this.clone()].into_iter().chain(words).collect::<Vec<_>>())
    };
    let health = if config.app.health == "tcp" { "/health" } else { &config.app.health };
    let serve = SupervisorConfig {
        name: "shop".into(),
        command: command(&["shop", "serve", "--no-worker"])?,
        health: health.parse().context("app.health (--health)")?,
        ..supervisor(config)
    };
    let work = SupervisorConfig {
        name: "worker".into(),
        command: command(&["shop", "worker"])?,
        instances: 1,
        health: Health::None,
        ..supervisor(config)
    };
    let description = format!("{} of the shop, and a worker", instances(serve.instances));
    let instances = supervise(serve, environment.clone(), sockets)?;
    let worker = supervise(work, environment, sockets)?;
    Ok(Service { instances, worker: Some(worker), description })
}

fn supervisor(config: &Config) -> SupervisorConfig {
    SupervisorConfig {
        instances: config.app.instances.count(),
        grace: config.app.grace,
        ..Default::default()
    }
}

fn supervise(
    what: SupervisorConfig,
    environment: Vec<(String, String)>,
    sockets: &Path,
) -> Result<Arc<Supervisor>> {
    let sockets = sockets.to_path_buf();
    let supervisor = Supervisor::new(what).env(move |instance| {
        let socket = super::dashboard::socket(&sockets, &instance.name).to_string_lossy().into_owned();
        environment.iter().cloned().chain([("GREENWAVE_MONITOR_SOCKET".into(), socket)]).collect()
    });
    Ok(Arc::new(supervisor.start()?))
}

/// The URL of the SQLite file in the data directory, which is made if absent.
fn embedded(data_dir: &Path) -> Result<String> {
    let failed = || format!("cannot make {}; choose another folder with --data-dir", data_dir.display());
    fs::create_dir_all(data_dir).with_context(failed)?;
    Ok(format!("sqlite:{}", data_dir.canonicalize().with_context(failed)?.join("shop.db").display()))
}

fn instances(count: usize) -> String {
    if count == 1 { "1 instance".into() } else { format!("{count} instances") }
}
