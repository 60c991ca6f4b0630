//! What an entry costs in memory, beyond its key and value: `cargo bench -p greenwave-cache --bench memory`.
//!
//! Every allocation is counted, of 100,000 entries with keys and values of 8 bytes, after twice as many have passed
//! through: the eviction policy remembers some of those that went.

#![allow(clippy::unwrap_used)]
// The trait that counts allocations is unsafe to implement.
#![allow(unsafe_code)]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::is_trial;
use greenwave_cache::{Cache, CacheConfig};

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let entries = if is_trial() { 1_000 } else { 100_000 };
    println!("| bytes an entry beyond key and value | measured | wanted |\n|---|---|---|");
    report("greenwave", "≤ 160", entries, ours(entries).await);
    report("quick_cache, `Arc` values", "", entries, bare(entries));
    report("moka, TTL", "", entries, moka(entries).await);
}

fn report(name: &str, wanted: &str, entries: usize, bytes: usize) {
    let beyond = bytes as f64 / entries as f64 - size_of::<(u64, u64)>() as f64;
    println!("| {name} | {beyond:.0} | {wanted} |");
}

async fn ours(entries: usize) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    let config = CacheConfig { max_entries: entries, ..Default::default() };
    let cache = Cache::<u64, u64>::builder("bench").config(config).build();
    for key in 0..3 * entries as u64 {
        cache.insert(key, key).await;
    }
    assert!(cache.stats().entries as usize > entries * 9 / 10);
    BYTES.load(Ordering::Relaxed) - before
}

fn bare(entries: usize) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    let cache = quick_cache::sync::Cache::<u64, Arc<u64>>::new(entries);
    for key in 0..3 * entries as u64 {
        cache.insert(key, Arc::new(key));
    }
    BYTES.load(Ordering::Relaxed) - before
}

async fn moka(entries: usize) -> usize {
    let before = BYTES.load(Ordering::Relaxed);
    let cache = moka::future::Cache::<u64, Arc<u64>>::builder()
        .max_capacity(entries as u64)
        .time_to_live(Duration::from_secs(300))
        .build();
    for key in 0..3 * entries as u64 {
        cache.insert(key, Arc::new(key)).await;
    }
    cache.run_pending_tasks().await;
    BYTES.load(Ordering::Relaxed) - before
}
