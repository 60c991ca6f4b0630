//! The names of the signals that a cache gives. The README's table says what each one means.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::striped::Striped;

/// Requests by `cache` and `result`.
pub const REQUESTS: &str = "greenwave.cache.requests";
/// How long loads took, in seconds, by `cache`.
pub const LOAD_DURATION: &str = "greenwave.cache.load.duration";
/// Loaded values that were not stored, because an invalidation came first, by `cache`.
pub const DISCARDED: &str = "greenwave.cache.load.discarded";
/// Loads that failed, by `cache`, be their callers told or served something stale.
pub const FAILED: &str = "greenwave.cache.load.failed";
/// Loads that found nothing, by `cache`.
pub const ABSENT: &str = "greenwave.cache.load.absent";
/// Loaded values that were too large to be kept, by `cache`.
pub const TOO_LARGE: &str = "greenwave.cache.load.too_large";
/// Entries that had to go from memory to make room, by `cache`.
pub const EVICTIONS: &str = "greenwave.cache.evictions";
/// Entries in memory, by `cache`.
pub const ENTRIES: &str = "greenwave.cache.entries";
/// What the entries in memory weigh, by `cache`.
pub const BYTES: &str = "greenwave.cache.bytes";
/// Invalidations by `cache`.
pub const INVALIDATIONS: &str = "greenwave.cache.invalidations";
/// Operations on the remote that failed, by `cache` and `operation`.
pub const REMOTE_FAILURES: &str = "greenwave.cache.remote.failures";
/// Operations that were not tried because the remote had just failed, by `cache` and `operation`.
pub const REMOTE_SKIPPED: &str = "greenwave.cache.remote.skipped";
/// Values in the remote that did not decode, by `cache`.
pub const REMOTE_UNDECODABLE: &str = "greenwave.cache.remote.undecodable";
/// Values that the remote was not given because they are too large, by `cache`.
pub const REMOTE_TOO_LARGE: &str = "greenwave.cache.remote.too_large";
/// Responses that a `CacheLayer` could not cache, by `cache` and `reason`.
pub const UNCACHED: &str = "greenwave.cache.response.uncached";

/// All of the above.
pub const METRICS: &[&str] = &[
    REQUESTS,
    LOAD_DURATION,
    DISCARDED,
    FAILED,
    ABSENT,
    TOO_LARGE,
    EVICTIONS,
    ENTRIES,
    BYTES,
    INVALIDATIONS,
    REMOTE_FAILURES,
    REMOTE_SKIPPED,
    REMOTE_UNDECODABLE,
    REMOTE_TOO_LARGE,
    UNCACHED,
];

/// Where events about the remote's health come from.
pub const REMOTE_TARGET: &str = "greenwave_cache::remote";

/// What happens in a cache: counted for [`Cache::stats`](crate::Cache::stats), and told to the recorder.
///
/// All of it is told at once but hits, which are told from time to time, by [`Metrics::publish`]: a hit is too cheap for
/// one atomic that all threads share.
pub(crate) struct Metrics {
    pub(crate) hits: Striped,
    pub(crate) stale: Tally,
    pub(crate) remote_hits: Tally,
    pub(crate) misses: Tally,
    pub(crate) coalesced: Tally,
    pub(crate) errors: Tally,
    pub(crate) load_duration: Times,
    /// For how many keys the source was asked, which one load may be for many of.
    pub(crate) keys_loaded: AtomicU64,
    pub(crate) failed_loads: Tally,
    pub(crate) absent: Tally,
    pub(crate) discarded: Tally,
    pub(crate) too_large: Tally,
    pub(crate) invalidations: Tally,
    pub(crate) evictions: Tally,
    published_hits: Mutex<u64>,
    hits_counter: Counter,
    entries: Gauge,
    bytes: Gauge,
}

impl Metrics {
    pub(crate) fn new(cache: &'static str) -> Metrics {
        let requests = |result: &'static str| counter!(REQUESTS, "cache" => cache, "result" => result);
        let tally = |name: &'static str| Tally::new(counter!(name, "cache" => cache));
        Metrics {
            hits: Striped::new(),
            stale: Tally::new(requests("stale")),
            remote_hits: Tally::new(requests("remote_hit")),
            misses: Tally::new(requests("miss")),
            coalesced: Tally::new(requests("coalesced")),
            errors: Tally::new(requests("error")),
            load_duration: Times::new(histogram!(LOAD_DURATION, "cache" => cache)),
            keys_loaded: AtomicU64::new(0),
            failed_loads: tally(FAILED),
            absent: tally(ABSENT),
            discarded: tally(DISCARDED),
            too_large: tally(TOO_LARGE),
            invalidations: tally(INVALIDATIONS),
            evictions: tally(EVICTIONS),
            published_hits: Mutex::new(0),
            hits_counter: requests("hit"),
            entries: gauge!(ENTRIES, "cache" => cache),
            bytes: gauge!(BYTES, "cache" => cache),
        }
    }

    /// Tells the recorder what it was not told at once.
    pub(crate) fn publish(&self, entries: u64, bytes: u64) {
        let mut published = self.published_hits.lock().unwrap_or_else(PoisonError::into_inner);
        let hits = self.hits.get();
        self.hits_counter.increment(hits - *published);
        *published = hits;
        self.entries.set(entries as f64);
        self.bytes.set(bytes as f64);
    }
}

// What was not told yet.
impl Drop for Metrics {
    fn drop(&mut self) {
        self.publish(0, 0);
    }
}

/// A count that is also a metric.
pub(crate) struct Tally {
    count: AtomicU64,
    metric: Counter,
}

impl Tally {
    pub(crate) fn new(metric: Counter) -> Tally {
        Tally { count: AtomicU64::new(0), metric }
    }

    pub(crate) fn increment(&self, by: u64) {
        self.count.fetch_add(by, Ordering::Relaxed);
        self.metric.increment(by);
    }

    pub(crate) fn get(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Times that are also a metric.
pub(crate) struct Times {
    count: AtomicU64,
    nanos: AtomicU64,
    metric: Histogram,
}

impl Times {
    fn new(metric: Histogram) -> Times {
        Times { count: AtomicU64::new(0), nanos: AtomicU64::new(0), metric }
    }

    pub(crate) fn record(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.metric.record(time);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}
