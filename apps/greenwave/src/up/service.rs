//! What is run: the shop and its worker, or a command of the user's.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use greenwave_edge::{Health, Supervisor, SupervisorConfig, Upstreams};
use greenwave_monitor::telemetry::SOCKET_ENV;
use greenwave_shop::Shop;
use tokio::sync::watch;

use crate::{child, config::Config, log::Log};

/// The supervised processes.
pub(crate) struct Service {
    /// The instances that take requests.
    instances: Arc<Supervisor>,
    /// The shop's worker; a command of the user's has none.
    worker: Option<Arc<Supervisor>>,
    description: String,
    tries: &'static [&'static str],
}

impl Service {
    pub(crate) async fn start(config: &Config, sockets: &Path, log: &Log) -> Result<Service> {
        let launcher = Launcher { config, sockets, log };
        if config.app.command.is_empty() { launcher.shop().await } else { launcher.command() }
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

    /// What to try with curl; `{edge}` stands for the service's URL.
    pub(crate) fn tries(&self) -> &'static [&'static str] {
        self.tries
    }
}

const SHOP_TRIES: [&str; 3] = [
    "{edge}/products/1",
    "'{edge}/orders?customer_id=1'",
    "{edge}/orders -H 'content-type: application/json' \
     -d '{\"customer_id\": 1, \"items\": [{\"product_id\": 1, \"quantity\": 2}]}'",
];

/// Starts supervisors.
struct Launcher<'l> {
    config: &'l Config,
    sockets: &'l Path,
    log: &'l Log,
}

impl Launcher<'_> {
    /// A command of the user's.
    fn command(&self) -> Result<Service> {
        let program = self.config.app.command.first().context("no command is given")?;
        child::find(program)?;
        let name =
            Path::new(program).file_stem().map_or("app".into(), |name| name.to_string_lossy().into_owned());
        let description = format!("{} of {name}", instances(self.config.app.instances.count()));
        let command = child::tied_to_this_process(&self.config.app.command)?;
        let health = self.health(&self.config.app.health)?;
        let instances =
            self.supervise(SupervisorConfig { name, command, health, ..self.defaults() }, Vec::new())?;
        Ok(Service { instances, worker: None, description, tries: &["{edge}/"] })
    }

    /// The shop: this program again.
    async fn shop(&self) -> Result<Service> {
        let shop = &self.config.shop;
        let url = match shop.database_url.as_str() {
            "" => embedded(&self.config.data_dir)?,
            url => url.into(),
        };
        let redis_url = Some(shop.redis_url.clone()).filter(|url| !url.is_empty());
        // Opened here once, so that tables and sample data are there before many ask for them at once, and so that what
        // is wrong with a URL or a database is said once.
        let (database, naive) = (url.parse()?, shop.naive);
        let open =
            greenwave_shop::Config { database, redis_url: redis_url.clone(), naive, ..Default::default() };
        drop(Shop::open(&open).await?);

        let redis = redis_url.map(|url| ("REDIS_URL".into(), url));
        let environment: Vec<_> = [("DATABASE_URL".into(), url)].into_iter().chain(redis).collect();
        let health = if self.config.app.health == "tcp" { "/health" } else { &self.config.app.health };
        let serve = SupervisorConfig {
            name: "shop".into(),
            command: this_program(&["shop", "serve", "--no-worker"], naive.then_some("--naive"))?,
            health: self.health(health)?,
            ..self.defaults()
        };
        let mut description = format!("{} of the shop", instances(serve.instances));
        let instances = self.supervise(serve, environment.clone())?;
        let mut worker = None;
        // A naive shop does everything inside the request: there is nothing for a worker.
        if !naive {
            description.push_str(", and a worker");
            let (name, command) = ("worker".into(), this_program(&["shop", "worker"], None)?);
            let work =
                SupervisorConfig { name, command, instances: 1, health: Health::None, ..self.defaults() };
            worker = Some(self.supervise(work, environment)?);
        }
        Ok(Service { instances, worker, description, tries: &SHOP_TRIES })
    }

    fn health(&self, text: &str) -> Result<Health> {
        match text.parse().context("app.health (--health)")? {
            Health::None => bail!(
                "app.health (--health): what takes requests needs a check: tcp, or a path such as /health"
            ),
            health => Ok(health),
        }
    }

    fn defaults(&self) -> SupervisorConfig {
        let defaults = SupervisorConfig::default();
        SupervisorConfig {
            instances: self.config.app.instances.count(),
            grace: self.config.app.grace,
            start_timeout: self.config.app.ready_timeout.max(defaults.start_timeout),
            ..defaults
        }
    }

    fn supervise(
        &self,
        what: SupervisorConfig,
        environment: Vec<(String, String)>,
    ) -> Result<Arc<Supervisor>> {
        let sockets = self.sockets.to_path_buf();
        let supervisor = Supervisor::new(what).logs(self.log.of_instances()).env(move |instance| {
            let socket = super::dashboard::socket(&sockets, &instance.name).to_string_lossy().into_owned();
            environment.iter().cloned().chain([(SOCKET_ENV.into(), socket)]).collect()
        });
        Ok(Arc::new(supervisor.start()?))
    }
}

/// The command line that runs this program again.
fn this_program(words: &[&str], flag: Option<&str>) -> Result<Vec<String>> {
    let program = child::this_program()?;
    let words = words.iter().copied().chain(flag).map(String::from);
    child::tied_to_this_process(&[program].into_iter().chain(words).collect::<Vec<_>>())
}

/// The URL of the SQLite file in the data directory, which is made if absent, for this user only.
fn embedded(data_dir: &Path) -> Result<String> {
    let failed = || format!("cannot make {}; choose another folder with --data-dir", data_dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir).with_context(failed)?;
    Ok(format!("sqlite:{}", data_dir.canonicalize().with_context(failed)?.join("shop.db").display()))
}

fn instances(count: usize) -> String {
    if count == 1 { "1 instance".into() } else { format!("{count} instances") }
}
