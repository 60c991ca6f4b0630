//! What a config asks to be run. Whatever can be wrong with it is found here, before anything is started.

use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf, absolute},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use greenwave_edge::{Environment, Health, SupervisorConfig};
use greenwave_shop::Shop;

use super::listeners::is_public;
use crate::{
    child,
    config::{App, Config, Port},
    edge,
};

/// An app that is to run.
pub(super) struct PlannedApp {
    pub config: SupervisorConfig,
    pub takes_requests: bool,
    pub watch: Vec<PathBuf>,
    pub ready_timeout: Duration,
}

impl PlannedApp {
    pub(super) fn name(&self) -> &str {
        &self.config.name
    }
}

/// Everything that is to run, and what is said of it.
pub(super) struct Plan {
    pub apps: Vec<PlannedApp>,
    pub description: String,
    /// What to try with curl; `{edge}` stands for the service's URL.
    pub tries: &'static [&'static str],
}

const SHOP_TRIES: [&str; 3] = [
    "{edge}/products/1",
    "'{edge}/orders?customer_id=1'",
    "{edge}/orders -H 'content-type: application/json' \
     -d '{\"customer_id\": 1, \"items\": [{\"product_id\": 1, \"quantity\": 2}]}'",
];

impl Plan {
    pub(super) fn new(config: &Config) -> Result<Plan> {
        if config.dashboard.token.is_empty() && is_public(&config.dashboard.listen) {
            bail!(
                "the dashboard would be public on {}: set dashboard.token, or let it listen on 127.0.0.1",
                config.dashboard.listen
            );
        }
        let plan = if config.runs_shop() { Plan::shop(config)? } else { Plan::commands(config)? };
        edge::check(config, &plan.targets())?;
        Ok(plan)
    }

    /// The apps that take requests.
    pub(super) fn targets(&self) -> Vec<&str> {
        self.apps.iter().filter(|app| app.takes_requests).map(PlannedApp::name).collect()
    }

    fn commands(config: &Config) -> Result<Plan> {
        let mut apps = Vec::new();
        if let Some(program) = config.app.command.first() {
            let stem = Path::new(program).file_stem();
            let name = stem.map_or("app".into(), |name| name.to_string_lossy().into_owned());
            ensure!(!config.apps.contains_key(&name), "app and apps.{name} would have the same name");
            apps.push(planned(name, &config.app, "app", config)?);
        }
        for (name, app) in &config.apps {
            apps.push(planned(name.clone(), app, &format!("apps.{name}"), config)?);
        }
        for name in config.upstreams.keys() {
            ensure!(
                apps.iter().all(|app| app.name() != name),
                "an app and upstreams.{name} have the same name"
            );
        }
        let of = |app: &PlannedApp| format!("{} of {}", instances(app.config.instances), app.name());
        let groups = config.upstreams.keys().map(|name| format!("the servers of {name}"));
        let parts: Vec<_> = apps.iter().map(of).chain(groups).collect();
        Ok(Plan { apps, description: parts.join(", "), tries: &["{edge}/"] })
    }

    /// The shop, which is this program again, and its worker.
    fn shop(config: &Config) -> Result<Plan> {
        let shop = &config.shop;
        let redis = Some(&shop.redis_url).filter(|url| !url.is_empty());
        let redis = redis.map(|url| ("REDIS_URL", url.clone()));
        let environment: Vec<_> =
            [("DATABASE_URL", database_url(config)?)].into_iter().chain(redis).collect();
        let mut app = config.app.clone();
        app.env.extend(environment.into_iter().map(|(name, value)| (name.to_owned(), value)));
        if app.health == "tcp" {
            app.health = "/health".into();
        }
        let naive = shop.naive.then_some("--naive");
        app.command = this_program(&["shop", "serve", "--no-worker"], naive)?;
        let serve = planned("shop".into(), &app, "app", config)?;
        let mut description = format!("{} of the shop", instances(serve.config.instances));
        let mut apps = vec![serve];
        // A naive shop does everything inside the request: there is nothing for a worker.
        if !shop.naive {
            description.push_str(", and a worker");
            app.command = this_program(&["shop", "worker"], None)?;
            app.port = Port::None;
            app.health = "none".into();
            let mut work = planned("worker".into(), &app, "app", config)?;
            work.config.instances = 1;
            apps.push(work);
        }
        Ok(Plan { apps, description, tries: &SHOP_TRIES })
    }
}

fn planned(name: String, app: &App, key: &str, config: &Config) -> Result<PlannedApp> {
    let is_plain = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.');
    ensure!(
        !name.is_empty() && name.chars().all(is_plain),
        "{key}: a name is made of letters, digits, -, _ and ."
    );
    let program = app.command.first().with_context(|| format!("{key}.command: say what is to run"))?;
    child::find(program)?;
    let notify = app.health == "notify";
    let takes_requests = app.port != Port::None;
    let health = match app.health.as_str() {
        "notify" if takes_requests => Health::Tcp,
        "tcp" | "none" | "notify" if !takes_requests => Health::None,
        text => {
            let key = if key == "app" { "app.health (--health)".into() } else { format!("{key}.health") };
            let health: Health = text.parse().with_context(|| key.clone())?;
            if health == Health::None {
                bail!("{key}: what takes requests needs a check: tcp, or a path such as /health");
            }
            ensure!(takes_requests, "{key}: a worker has no port that could be checked");
            ensure!(
                app.port != Port::Socket || health != Health::Tcp,
                "{key}: an inherited socket accepts before the command does: give a path such as /health, or \"notify\""
            );
            health
        }
    };
    let defaults = SupervisorConfig::default();
    let config = SupervisorConfig {
        name,
        command: app.command.clone(),
        instances: app.instances.count(),
        working_dir: app.working_dir.clone(),
        env: Environment(app.env.clone()),
        env_files: app.env_files.clone(),
        port: match app.port {
            Port::Socket => greenwave_edge::Port::Socket,
            Port::Env | Port::None => greenwave_edge::Port::Env,
        },
        health,
        notify,
        start_timeout: app.ready_timeout.max(defaults.start_timeout),
        max_surge: app.max_surge.into(),
        drain_timeout: config.edge.proxy.drain_timeout,
        stop_signal: app.stop_signal,
        grace: app.grace,
        max_memory: app.max_memory,
        ..defaults
    };
    let (watch, ready_timeout) = (app.watch.clone(), app.ready_timeout);
    Ok(PlannedApp { config, takes_requests, watch, ready_timeout })
}

/// Opens what the shop needs once, so that tables and sample data are there before many ask for them at once, and so
/// that what is wrong with a URL or a database is said once.
pub(super) async fn prepare_shop(config: &Config) -> Result<()> {
    let shop = &config.shop;
    if shop.database_url.is_empty() {
        let folder = &config.data_dir;
        let failed = || format!("cannot make {}; choose another folder with --data-dir", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(failed)?;
    }
    let redis_url = Some(shop.redis_url.clone()).filter(|url| !url.is_empty());
    let (database, naive) = (database_url(config)?.parse()?, shop.naive);
    drop(Shop::open(&greenwave_shop::Config { database, redis_url, naive, ..Default::default() }).await?);
    Ok(())
}

/// The one configured, or that of the SQLite file in the data directory.
fn database_url(config: &Config) -> Result<String> {
    if !config.shop.database_url.is_empty() {
        return Ok(config.shop.database_url.clone());
    }
    let folder = absolute(&config.data_dir).context("this folder is gone")?;
    Ok(format!("sqlite:{}", folder.join("shop.db").display()))
}

/// The command line that runs this program again.
fn this_program(words: &[&str], flag: Option<&str>) -> Result<Vec<String>> {
    let words = words.iter().copied().chain(flag).map(String::from);
    Ok([child::this_program()?].into_iter().chain(words).collect())
}

fn instances(count: usize) -> String {
    if count == 1 { "1 instance".into() } else { format!("{count} instances") }
}
