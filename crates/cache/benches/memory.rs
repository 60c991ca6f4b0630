//! What an entry costs in memory, beyond its key and value: `cargo bench -p greenwave-cache --bench memory`.
//!
//! What the process has resident, so with all that the allocator adds, for 100,000 entries with keys and values of
//! 8 bytes, after twice as many more have passed through: the eviction policies remember some of those that went.

#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::is_trial;
use greenwave_cache::{Cache, CacheConfig, Loaded};

const TAGS: [&str; 4] = ["spring", "summer", "autumn", "winter"];

type Moka = moka::future::Cache<u64, Arc<u64>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let entries = if is_trial() { 1_000 } else { 100_000 };
    println!("| bytes an entry beyond key and value | measured | wanted |\n|---|---|---|");

    // None is dropped before the end: another would be given its memory.
    let before = resident();
    let config = CacheConfig { max_entries: entries, max_bytes: 16 * entries as u64, ..Default::default() };
    let ours = Cache::<u64, u64>::builder("bench").config(config).weigher(|_, _| 16).build();
    for key in 0..3 * entries as u64 {
        ours.insert(key, key).await;
    }
    report("greenwave, TTL, weigher", "≤ 160", before, ours.stats().entries);

    let before = resident();
    let config = CacheConfig { max_entries: entries, ..Default::default() };
    let tagged = Cache::<u64, u64>::builder("tagged").config(config).build();
    for key in 0..3 * entries as u64 {
        tagged.insert_loaded(key, Loaded::value(key).tags([TAGS[key as usize % TAGS.len()]])).await;
    }
    report("greenwave, TTL, a tag", "≤ 160", before, tagged.stats().entries);

    let before = resident();
    let bare = quick_cache::sync::Cache::<u64, Arc<u64>>::new(entries);
    for key in 0..3 * entries as u64 {
        bare.insert(key, Arc::new(key));
    }
    report("quick_cache, `Arc` values", "", before, bare.len() as u64);

    let before = resident();
    let moka = Moka::builder().max_capacity(entries as u64).time_to_live(Duration::from_secs(300)).build();
    for key in 0..3 * entries as u64 {
        moka.insert(key, Arc::new(key)).await;
    }
    moka.run_pending_tasks().await;
    report("moka, TTL", "", before, moka.entry_count());
}

fn report(name: &str, wanted: &str, before: u64, entries: u64) {
    let beyond = (resident() - before) as f64 / entries as f64 - size_of::<(u64, u64)>() as f64;
    println!("| {name} | {beyond:.0} | {wanted} |");
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
