//! What the cache counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge};
use serde::{Deserialize, Serialize};

use crate::telemetry;

/// What a response cache has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// Requests answered by what is kept and fresh.
    pub hits: u64,
    /// Requests answered by what is kept and stale.
    pub stale: u64,
    /// Requests answered by what is kept after its origin said that it holds.
    pub revalidated: u64,
    /// Requests answered by what another request fetched.
    pub collapsed: u64,
    /// Requests sent on because nothing that is kept would do.
    pub misses: u64,
    /// Requests sent on because no answer to them is kept: by method, by their own wish, or because answers to their URI
    /// are not for sharing.
    pub passed: u64,
    /// Answers kept.
    pub stored: u64,
    /// Answers dropped to make room.
    pub evicted: u64,
    /// Bytes held now.
    pub bytes: u64,
}

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    Hit,
    Stale,
    Revalidated,
    Collapsed,
    Missed,
    Passed,
}

/// The names of the above, as the metric's label has them.
const RESULTS: [&str; 6] = ["hit", "stale", "revalidated", "collapsed", "miss", "pass"];

/// Counts for [`CacheStats`], and for the recorder that was installed when it was made.
#[derive(Clone)]
pub(super) struct Counters(Arc<Counts>);

struct Counts {
    requests: [(AtomicU64, Counter); RESULTS.len()],
    stored: (AtomicU64, Counter),
    evicted: (AtomicU64, Counter),
    bytes: Gauge,
}

fn add((count, counter): &(AtomicU64, Counter), number: u64) {
    count.fetch_add(number, Ordering::Relaxed);
    counter.increment(number);
}

impl Counters {
    pub(super) fn new() -> Self {
        let request = |result: &'static str| {
            (AtomicU64::new(0), metrics::counter!(telemetry::CACHE_REQUESTS, telemetry::RESULT => result))
        };
        Self(Arc::new(Counts {
            requests: RESULTS.map(request),
            stored: (AtomicU64::new(0), metrics::counter!(telemetry::CACHE_STORED)),
            evicted: (AtomicU64::new(0), metrics::counter!(telemetry::CACHE_EVICTED)),
            bytes: metrics::gauge!(telemetry::CACHE_BYTES),
        }))
    }

    pub(super) fn answered(&self, how: Answered) {
        add(&self.0.requests[how as usize], 1);
    }

    pub(super) fn stored(&self) {
        add(&self.0.stored, 1);
    }

    pub(super) fn evicted(&self, number: u64) {
        add(&self.0.evicted, number);
    }

    pub(super) fn holds(&self, bytes: u64) {
        // Memory is far below what a float holds exactly.
        self.0.bytes.set(bytes as f64);
    }

    pub(super) fn read(&self, bytes: u64) -> CacheStats {
        let requests = |how: Answered| self.0.requests[how as usize].0.load(Ordering::Relaxed);
        CacheStats {
            hits: requests(Answered::Hit),
            stale: requests(Answered::Stale),
            revalidated: requests(Answered::Revalidated),
            collapsed: requests(Answered::Collapsed),
            misses: requests(Answered::Missed),
            passed: requests(Answered::Passed),
            stored: self.0.stored.0.load(Ordering::Relaxed),
            evicted: self.0.evicted.0.load(Ordering::Relaxed),
            bytes,
        }
    }
}
