//! What is run: the shop and its worker, or a command of the user's.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use greenwave_edge::{Health, Supervisor, SupervisorConfig, Upstreams};
use greenwave_shop::Shop;
use tokio::sync::watch;

use crate::{child, config::Config};

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
    Ok(Service { instances, worker: None, description, tries: &["{edge}/"] })
}

/// The shop: this program again.
async fn shop(config: &Config, sockets: &Path) -> Result<Service> {
    let url = match config.shop.database_url.as_str() {
        "" => embedded(&config.data_dir)?,
        url => url.into(),
    };
    let redis_url = Some(config.shop.redis_url.clone()).filter(|url| !url.is_empty());
    let naive = config.shop.naive;
    // Opened here once, so that tables and sample data are there before many ask for them at once, and so that what is
    // wrong with a URL or a database is said once.
    let database = url.parse()?;
    drop(
        Shop::open(&greenwave_shop::Config {
            database,
            redis_url: redis_url.clone(),
            naive,
            ..Default::default()
        })
        .await?,
    );

    let redis = redis_url.map(|url| ("REDIS_URL".into(), url));
    let environment: Vec<_> = [("DATABASE_URL".into(), url)].into_iter().chain(redis).collect();
    let health = if config.app.health == "tcp" { "/health" } else { &config.app.health };
    let serve = SupervisorConfig {
        name: "shop".into(),
        command: this_program(&["shop", "serve", "--no-worker"], naive.then_some("--naive"))?,
        health: health.parse().context("app.health (--health)")?,
        ..supervisor(config)
    };
    let mut description = format!("{} of the shop", instances(serve.instances));
    let instances = supervise(serve, environment.clone(), sockets)?;
    let mut worker = None;
    // A naive shop does everything inside the request: there is nothing for a worker.
    if !naive {
        description.push_str(", and a worker");
        let command = this_program(&["shop", "worker"], None)?;
        let work = SupervisorConfig {
            name: "worker".into(),
            command,
            instances: 1,
            health: Health::None,
            ..supervisor(config)
        };
        worker = Some(supervise(work, environment, sockets)?);
    }
    Ok(Service { instances, worker, description, tries: &SHOP_TRIES })
}

/// The command line that runs this program again.
fn this_program(words: &[&str], flag: Option<&str>) -> Result<Vec<String>> {
    let program = child::this_program()?;
    let words = words.iter().copied().chain(flag).map(String::from);
    child::tied_to_this_process(&[program].into_iter().chain(words).collect::<Vec<_>>())
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
