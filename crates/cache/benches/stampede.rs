//! 1,000 callers, one cold key, a load of 20 ms: `cargo bench -p greenwave-cache --bench stampede`.
//!
//! How often the source is asked, and when the last caller has its answer, as a multiple of the load.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{is_trial, spread};
use greenwave_cache::Cache;
use tokio::{sync::Barrier, task::JoinSet, time::sleep};

const CALLERS: usize = 1_000;
const LOAD: Duration = Duration::from_millis(20);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let rounds = if is_trial() { 1 } else { 51 };
    println!("| {CALLERS} callers, one cold key, a load of {LOAD:?} | measured | wanted |\n|---|---|---|");
    for (name, fails) in [("a source that answers", false), ("a source that fails", true)] {
        let (mut loads, mut times) = (0, Vec::new());
        for _ in 0..rounds {
            let (asked, took) = stampede(fails).await;
            loads = loads.max(asked);
            times.push(took.as_secs_f64() / LOAD.as_secs_f64());
        }
        println!("| {name}: loads, at most | {loads} | 1 |");
        println!("| {name}: last answer ÷ load | {} | ≤ 1.3 |", spread(times));
    }
}

async fn stampede(fails: bool) -> (u64, Duration) {
    let cache = Cache::<u64, u64>::builder("bench").build();
    let loads = Arc::new(AtomicU64::new(0));
    let barrier = Arc::new(Barrier::new(CALLERS + 1));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (cache, loads, barrier) = (cache.clone(), Arc::clone(&loads), Arc::clone(&barrier));
        callers.spawn(async move {
            barrier.wait().await;
            let load = || async move {
                loads.fetch_add(1, Ordering::Relaxed);
                sleep(LOAD).await;
                if fails { Err("the source failed") } else { Ok(Some(7)) }
            };
            cache.get_or_load(&1, load).await.is_err()
        });
    }
    barrier.wait().await;
    let start = Instant::now();
    let failed = callers.join_all().await;
    let took = start.elapsed();
    assert!(failed.iter().all(|failed| *failed == fails), "all get the same answer");
    (loads.load(Ordering::Relaxed), took)
}
