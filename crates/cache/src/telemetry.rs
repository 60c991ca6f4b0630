//! The names of the signals that a cache gives. The README's table says what each one means.

use metrics::{Counter, Histogram, counter, histogram};

/// Requests by `cache` and `result`.
pub const REQUESTS: &str = "greenwave.cache.requests";
/// How long loads took, in seconds, by `cache`.
pub const LOAD_DURATION: &str = "greenwave.cache.load.duration";
/// Loaded values that were not stored, because an invalidation came first, by `cache`.
pub const DISCARDED: &str = "greenwave.cache.load.discarded";
/// Invalidations by `cache`.
pub const INVALIDATIONS: &str = "greenwave.cache.invalidations";
/// Operations on the remote that failed, by `cache` and `operation`.
pub const REMOTE_FAILURES: &str = "greenwave.cache.remote.failures";
/// Operations that were not tried because the remote had just failed, by `cache` and `operation`.
pub const REMOTE_SKIPPED: &str = "greenwave.cache.remote.skipped";
/// Values in the remote that did not decode, by `cache`.
pub const REMOTE_UNDECODABLE: &str = "greenwave.cache.remote.undecodable";
/// Entries that are alive, by `cache`.
pub const ENTRIES: &str = "greenwave.cache.entries";
/// Their bytes, as the weigher counts them, by `cache`.
pub const BYTES: &str = "greenwave.cache.bytes";
/// Responses that a `CacheLayer` could not cache, by `cache` and `reason`.
pub const UNCACHED: &str = "greenwave.cache.response.uncached";

/// All of the above.
pub const METRICS: [&str; 10] = [
    REQUESTS,
    LOAD_DURATION,
    DISCARDED,
    INVALIDATIONS,
    REMOTE_FAILURES,
    REMOTE_SKIPPED,
    REMOTE_UNDECODABLE,
    ENTRIES,
    BYTES,
    UNCACHED,
];

/// Where events about the remote's health come from.
pub const REMOTE_TARGET: &str = "greenwave_cache::remote";

/// Handles, looked up once: an increment is then one atomic addition.
pub(crate) struct Metrics {
    pub(crate) hits: Counter,
    pub(crate) remote_hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) errors: Counter,
    pub(crate) load_duration: Histogram,
    pub(crate) discarded: Counter,
    pub(crate) invalidations: Counter,
}

impl Metrics {
    pub(crate) fn new(cache: &'static str) -> Metrics {
        let requests = |result: &'static str| counter!(REQUESTS, "cache" => cache, "result" => result);
        Metrics {
            hits: requests("hit"),
            remote_hits: requests("remote_hit"),
            misses: requests("miss"),
            coalesced: requests("coalesced"),
            errors: requests("error"),
            load_duration: histogram!(LOAD_DURATION, "cache" => cache),
            discarded: counter!(DISCARDED, "cache" => cache),
            invalidations: counter!(INVALIDATIONS, "cache" => cache),
        }
    }
}

/// The same for one operation on the remote.
#[cfg(feature = "redis")]
pub(crate) struct RemoteMetrics {
    pub(crate) failures: Counter,
    pub(crate) skipped: Counter,
}

#[cfg(feature = "redis")]
impl RemoteMetrics {
    pub(crate) fn new(cache: &'static str, operation: &'static str) -> RemoteMetrics {
        RemoteMetrics {
            failures: counter!(REMOTE_FAILURES, "cache" => cache, "operation" => operation),
            skipped: counter!(REMOTE_SKIPPED, "cache" => cache, "operation" => operation),
        }
    }
}
