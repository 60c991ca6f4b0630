//! The commands, shared by the program `shop` and by `greenwave shop`.

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use greenwave_monitor::Monitor;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, DEFAULT_DATABASE_URL, DEFAULT_PORT, DatabaseUrl, Error, Shop,
    error::chain,
    http, logging, loopback,
    progress::Bar,
    query_stats,
    run::{self, Role},
    seed::SeedSize,
    store::{Store, StoreConfig},
};

/// What to try first; printed below the help.
pub const EXAMPLES: &str = "\
Examples:
  shop serve                                            SQLite, filled with a small set, on port 8000
  DATABASE_URL=postgres://localhost/shop shop serve     PostgreSQL
  REDIS_URL=redis://localhost shop serve                users cached in Redis
  shop serve --naive                                    every technique switched off
  shop seed                                             100,000 users, 10,000 products, 500,000 orders
  curl '127.0.0.1:8000/orders?customer_id=7'";

/// The shop's commands.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum Command {
    /// Serve the API on 127.0.0.1, and handle events and jobs
    Serve(Serve),
    /// Handle events and jobs, without the API
    Worker(Worker),
    /// Fill an empty database: the same rows for the same numbers, on every database
    Seed(Seed),
    /// Print the API's OpenAPI document
    Openapi,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The port to listen on
    #[arg(long, env = "PORT", default_value_t = DEFAULT_PORT)]
    port: u16,
    #[command(flatten)]
    database: Database,
    /// Cache users in Redis, as redis://HOST:PORT; without it, in this process only
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    redis_url: Option<String>,
    /// Serve the API only; a `shop worker` must handle events and jobs
    #[arg(long)]
    no_worker: bool,
    /// Switch every technique off: no caches, no batches, no composite index, effects inside the request
    #[arg(long)]
    naive: bool,
    /// Fill an SQLite database that is empty with a small set
    #[arg(long, env = "SHOP_SAMPLE_DATA", default_value_t = true, action = clap::ArgAction::Set)]
    sample_data: bool,
    #[command(flatten)]
    statistics: Statistics,
}

/// Options of `worker`.
#[derive(Debug, Args)]
pub struct Worker {
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    statistics: Statistics,
}

/// Options of `seed`.
#[derive(Debug, Args)]
pub struct Seed {
    #[command(flatten)]
    database: Database,
    /// How many users
    #[arg(long, default_value_t = SeedSize::FULL.users)]
    users: i64,
    /// How many products
    #[arg(long, default_value_t = SeedSize::FULL.products)]
    products: i64,
    /// How many orders, of 1 to 5 items each
    #[arg(long, default_value_t = SeedSize::FULL.orders)]
    orders: i64,
}

#[derive(Debug, Args)]
struct Database {
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        help = format!("postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH [default: {DEFAULT_DATABASE_URL}]"),
    )]
    database_url: Option<String>,
}

#[derive(Debug, Args)]
struct Statistics {
    /// Keep what each statement costs in DIR/PID.json, for `greenwave advise --workload`; old files stay: empty DIR with
    /// each release
    #[arg(long, env = "SHOP_QUERY_STATS", value_name = "DIR")]
    query_stats: Option<PathBuf>,
}

/// What stands where neither flag nor environment says anything: for a program that embeds the commands and has settings
/// of its own. An empty text is as good as none, here and there.
#[derive(Clone, Default)]
pub struct Defaults {
    /// The database. Default: [`DEFAULT_DATABASE_URL`].
    pub database_url: Option<String>,
    /// Redis behind the cache of users. Default: none.
    pub redis_url: Option<String>,
}

/// The first of the two that is there.
fn first(given: Option<String>, default: Option<String>) -> Option<String> {
    let there = |text: &String| !text.is_empty();
    given.filter(there).or(default.filter(there))
}

impl Database {
    fn url(self, defaults: &Defaults) -> anyhow::Result<DatabaseUrl> {
        match first(self.database_url, defaults.database_url.clone()) {
            Some(url) => Ok(url.parse()?),
            None => Ok(DatabaseUrl::default()),
        }
    }
}

/// Runs a command to its end; one that serves ends on SIGTERM or Ctrl-C.
pub async fn run(command: Command, defaults: Defaults) -> anyhow::Result<()> {
    match command {
        Command::Serve(options) => serve(options, defaults).await,
        Command::Worker(options) => worker(options, &defaults).await,
        Command::Seed(options) => seed(options, &defaults).await,
        Command::Openapi => {
            println!("{}", http::openapi().to_pretty_json()?);
            Ok(())
        }
    }
}

async fn serve(options: Serve, defaults: Defaults) -> anyhow::Result<()> {
    let process = Process::start()?;
    let config = Config {
        database: options.database.url(&defaults)?,
        redis_url: first(options.redis_url, defaults.redis_url),
        naive: options.naive,
        sample_data: options.sample_data,
        ..Config::default()
    };
    // Before the database: a shop that cannot listen must not change what another one serves.
    let reserved = http::reserve(loopback(options.port))?;
    let Some(shop) = process.open(&config).await? else { return Ok(()) };
    let listener = reserved.listen()?;
    let address = listener.local_addr().context("the listener has no address")?;
    let cache = if config.redis_url.is_some() { "Redis" } else { "this process" };
    if options.naive {
        tracing::info!(database = %config.database, "the naive shop serves on http://{address}");
    } else {
        tracing::info!(database = %config.database, cache, "the shop serves on http://{address}");
    }
    // A naive shop has its effects inside the request; nobody waits for a handler.
    let api_only = options.no_worker || options.naive;
    let role = if api_only { Role::Api(listener) } else { Role::Everything(listener) };
    process.play(shop, role, options.statistics).await
}

async fn worker(options: Worker, defaults: &Defaults) -> anyhow::Result<()> {
    let process = Process::start()?;
    let config =
        Config { database: options.database.url(defaults)?, sample_data: false, ..Config::default() };
    let Some(shop) = process.open(&config).await? else { return Ok(()) };
    tracing::info!(database = %config.database, "the worker handles events and jobs");
    process.play(shop, Role::Worker, options.statistics).await
}

async fn seed(options: Seed, defaults: &Defaults) -> anyhow::Result<()> {
    logging::init(&Monitor::new());
    let url = options.database.url(defaults)?;
    let size = SeedSize { users: options.users, products: options.products, orders: options.orders };
    let store = Store::open_at(&url, StoreConfig::default()).await.map_err(one_line)?;
    let (bar, started) = (Bar::new(), Instant::now());
    let seeded = store.seed(size, bar.listener()).await;
    bar.finish();
    seeded.map_err(one_line)?;
    let SeedSize { users, products, orders } = size;
    let seconds = started.elapsed().as_secs_f64();
    println!("{url} has {users} users, {products} products and {orders} orders; it took {seconds:.1} s");
    Ok(())
}

/// The error with its causes as one text, in which each is said once: drivers' errors tend to repeat their causes.
fn one_line(error: Error) -> anyhow::Error {
    anyhow::anyhow!("{}", chain(&error))
}

/// What surrounds the shop in a process of its own: measurements, logs, signals.
struct Process {
    monitor: Monitor,
    cancel: CancellationToken,
}

impl Process {
    fn start() -> anyhow::Result<Process> {
        // Before anything is measured. A program that embeds the shop may have a recorder already.
        let monitor = Monitor::install().unwrap_or_default();
        logging::init(&monitor);
        let cancel = CancellationToken::new();
        cancel_on_signal(cancel.clone())?;
        Ok(Process { monitor, cancel })
    }

    /// Opens the shop; none, if a signal ends the process before that is done.
    async fn open(&self, config: &Config) -> anyhow::Result<Option<Shop>> {
        match self.cancel.run_until_cancelled(Shop::open(config)).await {
            Some(opened) => Ok(Some(opened.map_err(one_line)?)),
            None => {
                tracing::info!("stopped");
                Ok(None)
            }
        }
    }

    async fn play(self, shop: Shop, role: Role, statistics: Statistics) -> anyhow::Result<()> {
        let Process { monitor, cancel } = self;
        let end = CancellationToken::new();
        let socket = std::env::var_os(greenwave_monitor::telemetry::SOCKET_ENV);
        let socket = socket.filter(|path| !path.is_empty()).map(PathBuf::from);
        let mut beside = JoinSet::new();
        if let Some(path) = socket {
            beside.spawn(run::serve_monitor(monitor.clone(), path, end.clone()));
        }
        if let Some(folder) = statistics.query_stats.filter(|folder| !folder.as_os_str().is_empty()) {
            beside.spawn(query_stats::keep(shop.store().query_stats().clone(), folder, end.clone()));
        }
        let played = run::run(shop, role, &monitor, cancel).await;
        end.cancel();
        while beside.join_next().await.is_some() {}
        tracing::info!("stopped");
        played.map_err(one_line)
    }
}

fn cancel_on_signal(cancel: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: finishing what runs");
        cancel.cancel();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_stands_before_the_defaults_and_these_before_what_is_built_in() {
        let text = |text: &str| Some(text.to_owned());
        for (given, default, url) in [
            (text("sqlite:a.db"), text("sqlite:b.db"), "sqlite:a.db"),
            (None, text("sqlite:b.db"), "sqlite:b.db"),
            (text(""), text("sqlite:b.db"), "sqlite:b.db"),
            (text(""), text(""), DEFAULT_DATABASE_URL),
            (None, None, DEFAULT_DATABASE_URL),
        ] {
            let defaults = Defaults { database_url: default, redis_url: None };
            assert_eq!(Database { database_url: given }.url(&defaults).unwrap().to_string(), url);
        }
    }
}
