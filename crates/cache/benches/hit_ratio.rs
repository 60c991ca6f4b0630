//! How much a cache answers, on traces of real requests: `cargo bench -p greenwave-cache --bench hit_ratio`.
//!
//! With room for 1 % and for 10 % of a trace's keys: our hit ratio beside that of quick_cache, which is the same policy
//! without anything around it; and what our cache says of an eighth of that size to its eightfold, beside what caches of
//! those sizes really do. Differences are in points (0.01). What is sampled is another part of the keys each time, so the
//! largest difference of several runs stands here.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::HashSet, convert::Infallible, sync::Arc, time::Duration};

use common::{is_trial, trace};
use greenwave_cache::{Cache, CacheConfig, WouldBe};

const TRACES: [(&str, &[u8]); 2] = [
    ("web12", include_bytes!("traces/web12.trace.xz")),
    ("orm-busy", include_bytes!("traces/orm-busy.trace.xz")),
];
const TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn main() {
    let (runs, limit) = if is_trial() { (1, 10_000) } else { (5, usize::MAX) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    println!(
        "| trace | room for | hit ratio | − quick_cache's | would-be − truth, at most |\n|---|---|---|---|---|"
    );
    for (name, xz) in TRACES {
        let mut keys = trace(xz);
        keys.truncate(limit);
        let distinct = keys.iter().collect::<HashSet<_>>().len();
        for percent in [1, 10] {
            let entries = distinct * percent / 100;
            let bare = bare(&keys, entries);
            let (mut ratio, mut apart, mut furthest) = (0.0, 0.0_f64, 0.0_f64);
            for _ in 0..runs {
                let (ours, would_be) = runtime.block_on(ours(&keys, entries));
                ratio = ours;
                apart = apart.max((ours - bare).abs());
                furthest = furthest.max(error(&keys, &would_be));
            }
            println!(
                "| {name} | {percent} % of {distinct} keys | {:.1} % | {:.2} | {:.2} |",
                ratio * 100.0,
                apart * 100.0,
                furthest * 100.0
            );
        }
    }
    println!("| wanted | | | ≤ 1 | ≤ 3 |");
}

async fn ours(keys: &[u32], entries: usize) -> (f64, WouldBe) {
    let config = CacheConfig { max_entries: entries, ttl: TTL, ..Default::default() };
    let cache = Cache::<u32, u32>::builder("bench").config(config).build();
    for &key in keys {
        cache.get_or_load(&key, || async move { Ok::<_, Infallible>(Some(key)) }).await.unwrap();
    }
    (cache.stats().hit_ratio(), cache.would_be())
}

fn bare(keys: &[u32], entries: usize) -> f64 {
    let cache = quick_cache::sync::Cache::<u32, Arc<u32>>::new(entries);
    let hits = keys.iter().filter(|key| {
        let hit = cache.get(*key).is_some();
        if !hit {
            cache.insert(**key, Arc::new(**key));
        }
        hit
    });
    hits.count() as f64 / keys.len() as f64
}

/// How far off the worst of the sizes is, for a TTL that nothing in the trace outlives.
fn error(keys: &[u32], would_be: &WouldBe) -> f64 {
    let lasting = would_be.ratios.iter().filter(|ratio| ratio.ttl == TTL);
    lasting.map(|ratio| (ratio.hit_ratio - bare(keys, ratio.size as usize)).abs()).fold(0.0, f64::max)
}
