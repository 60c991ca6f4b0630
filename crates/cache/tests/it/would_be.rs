//! What a cache says of other sizes and TTLs, held to what such caches really do.

#[path = "../../benches/common/mod.rs"]
mod common;

use std::{collections::HashSet, time::Duration};

use greenwave_cache::{Cache, CacheConfig, WouldBe, observe};

use crate::support::{Failed, Source};

const LASTING: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// The first requests of a shop's product page in 2013.
fn trace(requests: usize) -> Vec<u32> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/traces/web12.trace.xz");
    let mut keys = common::trace(&std::fs::read(path).unwrap());
    keys.truncate(requests);
    keys
}

async fn run(keys: &[u32], max_entries: usize) -> Cache<u32, u32> {
    let config = CacheConfig { max_entries, ttl: LASTING, ..Default::default() };
    let cache = Cache::builder("page").config(config).build();
    for key in keys {
        cache.get_or_load(key, || Source::default().load(*key)).await.unwrap();
    }
    cache
}

#[tokio::test]
async fn would_be_hit_ratios_are_within_three_points_of_what_such_caches_do() {
    let keys = trace(12_000);
    let distinct = keys.iter().collect::<HashSet<_>>().len();
    let would_be = run(&keys, distinct / 20).await.would_be();
    for eighths in [1, 2, 4, 8, 16, 32, 64] {
        let size = distinct / 20 * eighths / 8;
        let truth = run(&keys, size).await.stats().hit_ratio();
        let said = would_be.ratio(size as u64, LASTING).unwrap().hit_ratio;
        assert!((said - truth).abs() < 0.03, "{size} entries: {said:.3} instead of {truth:.3}");
    }
}

/// One key, read every ten seconds.
async fn every_ten_seconds(cache: &Cache<u64, u64>, times: usize) {
    for _ in 0..times {
        cache.get_or_load(&1, || Source::default().load(1)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

fn hits(would_be: &WouldBe, ttl: Duration) -> u64 {
    would_be.ratios.iter().rfind(|ratio| ratio.ttl == ttl).unwrap().hits
}

#[tokio::test(start_paused = true)]
async fn a_longer_ttl_would_hit_more_often() {
    let config =
        CacheConfig { ttl: Duration::from_secs(25), ttl_jitter: 0.0, max_entries: 100, ..Default::default() };
    let cache = Cache::builder("minute").config(config).build();
    every_ten_seconds(&cache, 60).await;
    let would_be = cache.would_be();
    assert_eq!(would_be.requests, 60);
    assert_eq!(hits(&would_be, Duration::from_secs(1)), 0);
    assert_eq!(hits(&would_be, Duration::from_secs(25)), 40);
    assert_eq!(hits(&would_be, Duration::from_secs(25)), cache.stats().hits, "as it is");
    assert_eq!(hits(&would_be, MINUTE), 50);
    assert_eq!(hits(&would_be, HOUR), 59);
}

#[tokio::test(start_paused = true)]
async fn what_is_invalidated_or_absent_would_be_no_hit() {
    let config = CacheConfig { max_entries: 100, ..Default::default() };
    let cache: Cache<u64, u64> = Cache::builder("changing").config(config).build();
    for _ in 0..10 {
        every_ten_seconds(&cache, 1).await;
        cache.invalidate(&1).await;
        cache.get_or_load(&2, || async { Ok::<Option<u64>, Failed>(None) }).await.unwrap();
        cache.get_or_load(&3, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    }
    assert_eq!(hits(&cache.would_be(), HOUR), 0);
    every_ten_seconds(&cache, 2).await;
    assert_eq!(hits(&cache.would_be(), HOUR), 1);
    cache.clear().await;
    every_ten_seconds(&cache, 1).await;
    assert_eq!(hits(&cache.would_be(), HOUR), 1);
}

#[tokio::test(start_paused = true)]
async fn an_observed_function_tells_which_cache_would_help() {
    let report = observe("report", async |day: u64| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, Failed>(day)
    });
    for request in 0..1_000 {
        assert_eq!(report.call(request % 50).await.unwrap(), request % 50);
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    let would_be = report.would_be();
    assert!((would_be.load_seconds - 100.0).abs() < 1.0);
    // Each of the 50 comes again after 50 s, twenty times in all.
    let advice = would_be.advice().unwrap();
    assert_eq!((advice.size, advice.ttl, advice.hits), (100, 10 * MINUTE, 900));
    assert!((advice.load_seconds_saved - 90.0).abs() < 1.0);
    assert_eq!(would_be.ratio(100, Duration::from_secs(10)).unwrap().hits, 0);
    assert_eq!(would_be.ratio(100, HOUR).unwrap().hits, 950);
}

#[tokio::test]
async fn no_cache_is_advised_where_none_would_help() {
    let lookups = observe("lookup", async |key: u64| Ok::<_, Failed>(key));
    for key in 0..1_000 {
        lookups.call(key).await.unwrap();
    }
    let failing = observe("failing", async |_: u64| Err::<u64, _>(Failed));
    for _ in 0..1_000 {
        failing.call(1).await.unwrap_err();
    }
    assert_eq!(lookups.would_be().advice(), None);
    assert_eq!(failing.would_be().advice(), None);
    assert!(failing.would_be().to_string().ends_with("No cache would save a tenth of the load time."));
}
