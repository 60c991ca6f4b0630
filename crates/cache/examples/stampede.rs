//! A popular key has just expired, and 1,000 callers want it at once: what the source has to bear without a cache that
//! loads once, and with one. Needs no server: `cargo run --release --example stampede`.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_cache::Cache;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

const CALLERS: usize = 1_000;
const LOAD: Duration = Duration::from_millis(20);
const CONNECTIONS: usize = 20;

/// Like a database: an answer takes 20 ms, and 20 can be asked for at a time.
struct Source {
    connections: Semaphore,
    loads: AtomicUsize,
}

impl Source {
    fn new() -> Arc<Source> {
        Arc::new(Source { connections: Semaphore::new(CONNECTIONS), loads: AtomicUsize::new(0) })
    }

    async fn load(&self, key: u64) -> Result<Option<String>, Infallible> {
        let _connection = self.connections.acquire().await;
        self.loads.fetch_add(1, Ordering::Relaxed);
        sleep(LOAD).await;
        Ok(Some(format!("product {key}")))
    }
}

#[tokio::main]
async fn main() {
    println!("{CALLERS} callers, one cold key, a load of {LOAD:?}, {CONNECTIONS} connections\n");
    println!("{:<12} {:>6} {:>16}", "", "loads", "last answer");

    let source = Source::new();
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let source = Arc::clone(&source);
        callers.spawn(async move { source.load(1).await });
    }
    callers.join_all().await;
    report("each alone", &source, started);

    let source = Source::new();
    let products = Cache::<u64, String>::builder("product").build();
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (products, source) = (products.clone(), Arc::clone(&source));
        callers.spawn(async move { products.get_or_load(&1, || async move { source.load(1).await }).await });
    }
    callers.join_all().await;
    report("get_or_load", &source, started);
}

fn report(way: &str, source: &Source, started: Instant) {
    let loads = source.loads.load(Ordering::Relaxed);
    println!("{way:<12} {loads:>6} {:>13.1} ms", started.elapsed().as_secs_f64() * 1e3);
}
