//! What a hit costs: `cargo bench -p greenwave-cache --bench hit`.
//!
//! Zipf 0.99 over 1M keys, 100k entries. Of each cache only keys are asked for that it holds. The caches take turns, round
//! after round; each ratio is the median of the rounds' own, with the quartiles. Time is the asking threads' processor
//! time.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    convert::Infallible,
    hint::black_box,
    sync::{Arc, Barrier},
    time::Duration,
};

use common::{Random, Zipf, is_trial, spread, thread_cpu};
use greenwave_cache::{Cache, CacheConfig};
use tokio::runtime::Handle;

const KEYS: usize = 1_000_000;
const ENTRIES: usize = 100_000;
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

type Bare = quick_cache::sync::Cache<u64, Arc<u64>>;
type Moka = moka::future::Cache<u64, Arc<u64>>;

struct Caches {
    ours: Cache<u64, u64>,
    bare: Bare,
    moka: Moka,
}

/// Keys that each cache holds, for one thread.
struct Held {
    ours: Vec<u64>,
    bare: Vec<u64>,
    moka: Vec<u64>,
}

/// Nanoseconds a hit.
#[derive(Clone, Copy)]
struct Round {
    get_or_load: f64,
    get: f64,
    bare: f64,
    moka: f64,
}

fn main() {
    let (rounds, hits) = if is_trial() { (1, 1_000) } else { (21, 100_000) };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let zipf = Zipf::new(KEYS, 0.99);
    let caches = runtime.block_on(filled(&zipf));

    println!("| | measured | wanted |\n|---|---|---|");
    for threads in [1, 2] {
        let held: Vec<Held> =
            (0..threads).map(|thread| runtime.block_on(held(&caches, &zipf, thread, hits))).collect();
        let measured: Vec<Round> = (0..rounds).map(|_| round(&caches, &held, runtime.handle())).collect();
        let ratio = |of: fn(&Round) -> f64| spread(measured.iter().map(of));
        let name = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
        println!(
            "| `get_or_load`, a hit ÷ quick_cache, {name} | {} | ≤ 1.35 |",
            ratio(|r| r.get_or_load / r.bare)
        );
        println!("| `get`, a hit ÷ quick_cache, {name} | {} | ≤ 1.35 |", ratio(|r| r.get / r.bare));
        println!("| moka, a hit ÷ `get_or_load`, {name} | {} | ≥ 4 |", ratio(|r| r.moka / r.get_or_load));
    }
}

async fn filled(zipf: &Zipf) -> Caches {
    let config = CacheConfig { max_entries: ENTRIES, ttl: TTL, ..Default::default() };
    let caches = Caches {
        ours: Cache::builder("bench").config(config).build(),
        bare: Bare::new(ENTRIES),
        moka: Moka::builder().max_capacity(ENTRIES as u64).time_to_live(TTL).build(),
    };
    let mut random = Random(1);
    for _ in 0..2 * KEYS {
        let key = zipf.key(&mut random);
        if caches.ours.get(&key).await.is_none() {
            caches.ours.insert(key, key).await;
        }
        if caches.bare.get(&key).is_none() {
            caches.bare.insert(key, Arc::new(key));
        }
        if caches.moka.get(&key).await.is_none() {
            caches.moka.insert(key, Arc::new(key)).await;
        }
    }
    caches.moka.run_pending_tasks().await;
    caches
}

async fn held(caches: &Caches, zipf: &Zipf, thread: u64, hits: usize) -> Held {
    let mut random = Random(thread + 2);
    let mut held = Held { ours: Vec::new(), bare: Vec::new(), moka: Vec::new() };
    let note = |keys: &mut Vec<u64>, key, holds| {
        if holds && keys.len() < hits {
            keys.push(key);
        }
    };
    while held.ours.len() < hits || held.bare.len() < hits || held.moka.len() < hits {
        let key = zipf.key(&mut random);
        note(&mut held.ours, key, caches.ours.get(&key).await.is_some());
        note(&mut held.bare, key, caches.bare.get(&key).is_some());
        note(&mut held.moka, key, caches.moka.get(&key).await.is_some());
    }
    held
}

fn round(caches: &Caches, held: &[Held], runtime: &Handle) -> Round {
    let barrier = Barrier::new(held.len());
    let all: Vec<Round> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            held.iter().map(|held| scope.spawn(|| runtime.block_on(turns(caches, held, &barrier)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mean = |of: fn(&Round) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    Round {
        get_or_load: mean(|r| r.get_or_load),
        get: mean(|r| r.get),
        bare: mean(|r| r.bare),
        moka: mean(|r| r.moka),
    }
}

async fn turns(caches: &Caches, held: &Held, barrier: &Barrier) -> Round {
    Round {
        get_or_load: time(&held.ours, barrier, async |key| {
            let load = || async { Ok::<Option<u64>, Infallible>(None) };
            caches.ours.get_or_load(key, load).await.unwrap()
        })
        .await,
        bare: time(&held.bare, barrier, async |key| caches.bare.get(key)).await,
        get: time(&held.ours, barrier, async |key| caches.ours.get(key).await).await,
        moka: time(&held.moka, barrier, async |key| caches.moka.get(key).await).await,
    }
}

/// All threads ask the same cache at the same time.
async fn time(keys: &[u64], barrier: &Barrier, get: impl AsyncFn(&u64) -> Option<Arc<u64>>) -> f64 {
    barrier.wait();
    // Once without the clock: the caches before have taken the processor's own for themselves.
    let mut took = Duration::ZERO;
    for _ in 0..2 {
        let start = thread_cpu();
        for key in keys {
            assert!(black_box(get(key).await).is_some(), "a miss");
        }
        took = thread_cpu() - start;
    }
    took.as_nanos() as f64 / keys.len() as f64
}
