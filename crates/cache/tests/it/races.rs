use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, Remote, RemoteConfig};
use greenwave_test_servers::redis_url;
use tokio::task::{JoinSet, yield_now};

use crate::support::{Failed, Random};

const KEYS: usize = 4;
const READERS: u64 = 16;
const WRITERS: u64 = 4;
const WRITES: u64 = 250;

/// A source whose values only grow: what is older than it should be is stale.
type Versions = Arc<[AtomicU64; KEYS]>;

async fn read(cache: &Cache<usize, u64>, versions: &Versions, key: usize, dawdle: u64) -> u64 {
    let load = || {
        let versions = Arc::clone(versions);
        async move {
            let version = versions[key].load(Ordering::SeqCst);
            // Between reading and answering is where an invalidation hurts.
            for _ in 0..dawdle {
                yield_now().await;
            }
            Ok::<_, Failed>(Some(version))
        }
    };
    *cache.get_or_load(&key, load).await.unwrap().unwrap()
}

/// Caches that share a Redis stand for as many processes.
async fn race(caches: &[Cache<usize, u64>], seed: u64) {
    let cache_of = |number: u64| caches[number as usize % caches.len()].clone();
    let versions: Versions = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..READERS {
        let (cache, versions, done) = (cache_of(reader), versions.clone(), done.clone());
        let mut random = Random::seeded(seed + reader);
        readers.spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let (key, dawdle) = (random.below(KEYS as u64) as usize, random.below(20));
                let at_least = match random.below(4) {
                    0 => cache.get(&key).await.map_or(0, |version| *version),
                    _ => read(&cache, &versions, key, dawdle).await,
                };
                assert!(at_least <= versions[key].load(Ordering::SeqCst));
                yield_now().await;
            }
        });
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (cache, versions) = (cache_of(writer), versions.clone());
        let mut random = Random::seeded(seed + READERS + writer);
        writers.spawn(async move {
            for _ in 0..WRITES {
                let key = random.below(KEYS as u64) as usize;
                let written = versions[key].fetch_add(1, Ordering::SeqCst) + 1;
                cache.invalidate(&key).await;
                let seen = read(&cache, &versions, key, random.below(20)).await;
                assert!(
                    seen >= written,
                    "seed {seed}: wrote {written} of key {key}, invalidated, read {seen}"
                );
                for _ in 0..random.below(10) {
                    yield_now().await;
                }
            }
        });
    }
    writers.join_all().await;
    done.store(true, Ordering::SeqCst);
    readers.join_all().await;
    for cache in caches {
        cache.settled().await;
    }
    for (cache, key) in caches.iter().flat_map(|cache| (0..KEYS).map(move |key| (cache, key))) {
        let kept = cache.get(&key).await;
        let current = versions[key].load(Ordering::SeqCst);
        assert!(kept.is_none_or(|kept| *kept == current), "seed {seed}: key {key} is stale at rest");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_readers_and_writers_leave_nothing_stale_in_memory() {
    let seed = Random::seed();
    println!("SEED={seed}");
    race(&[Cache::builder("race").build()], seed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_readers_and_writers_leave_nothing_stale_in_redis() {
    let seed = Random::seed();
    println!("SEED={seed}");
    let url = redis_url();
    let config = RemoteConfig { timeout: Duration::from_secs(10), ..Default::default() };
    let remote = Remote::connect_with(&url, config).unwrap();
    let with_memory = Cache::builder("race").remote(remote.clone()).build();
    race(&[with_memory], seed).await;
    // Without memory, what is stale at rest is stale in Redis.
    let config = CacheConfig { ttl: Duration::ZERO, ..Default::default() };
    let bare = |name| Cache::builder(name).config(config.clone()).remote(remote.clone()).build();
    race(&[bare("bare")], seed).await;
    race(&["fleet"; 3].map(bare), seed).await;
}
