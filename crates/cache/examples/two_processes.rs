//! Two caches over one Redis, as two processes of a service have them: what one loads the other finds, and what one
//! invalidates the other no longer answers with. It needs a Redis or Valkey:
//! `cargo run --release --example two_processes -- redis://127.0.0.1:6379`, or `REDIS_URL` in the environment.

use std::{
    env,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_cache::{Cache, Remote, RemoteConfig};
use tokio::time::sleep;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const KEY: u64 = 7;
const PATIENCE: Duration = Duration::from_secs(5);

/// The row in the database, and how often it was asked for.
static PRICE: AtomicU64 = AtomicU64::new(990);
static QUERIES: AtomicU64 = AtomicU64::new(0);

/// One process: a connection, and a memory of its own.
struct Process {
    name: &'static str,
    prices: Cache<u64, u64>,
}

impl Process {
    fn start(name: &'static str, url: &str) -> Result<Process> {
        let config = RemoteConfig { namespace: "greenwave-example".into(), ..Default::default() };
        let prices = Cache::builder("price").remote(Remote::connect_with(url, config)?).build();
        Ok(Process { name, prices })
    }

    async fn price(&self) -> Result<Arc<u64>> {
        let query = || async {
            QUERIES.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::convert::Infallible>(Some(PRICE.load(Ordering::SeqCst)))
        };
        self.prices.get_or_load(&KEY, query).await?.ok_or_else(|| "there is no such product".into())
    }

    async fn tell(&self) -> Result<()> {
        let (price, stats) = (self.price().await?, self.prices.stats());
        let queries = QUERIES.load(Ordering::SeqCst);
        println!(
            "{}: the price is {price}; {} hits in memory, {} in Redis; {queries} queries in all",
            self.name, stats.hits, stats.remote_hits
        );
        Ok(())
    }
}

#[tokio::main]
async fn main() -> std::process::ExitCode {
    match run().await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("{error}{cause}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let url = env::args().nth(1).or_else(|| env::var("REDIS_URL").ok());
    let url =
        url.ok_or("tell where Redis is: as an argument like redis://127.0.0.1:6379, or in REDIS_URL")?;
    let (one, other) = (Process::start("one", &url)?, Process::start("other", &url)?);

    // A Redis that is away fails no read, so it is looked for here.
    one.prices.invalidate(&KEY).await;
    if one.prices.stats().remote_unconfirmed > 0 {
        return Err("Redis does not answer there".into());
    }

    one.tell().await?;
    one.prices.settled().await;
    other.tell().await?;
    other.tell().await?;

    PRICE.store(890, Ordering::SeqCst);
    let changed = Instant::now();
    one.prices.invalidate(&KEY).await;
    println!("one: the price has changed, and is invalidated");
    while *other.price().await? == 990 {
        if changed.elapsed() > PATIENCE {
            return Err("the other has not heard of it".into());
        }
        sleep(Duration::from_micros(100)).await;
    }
    println!("other: has heard of it, and asked for it anew");
    other.tell().await
}
