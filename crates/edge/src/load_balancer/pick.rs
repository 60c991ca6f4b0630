//! A request's place at an upstream.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::latency::Nanos;
use super::state::UpstreamState;

/// An upstream that was chosen for a request, and how the request fares there.
///
/// Say how it went by one of [`answered`](Self::answered), [`died`](Self::died) and [`refused`](Self::refused), and keep
/// it to the end of the answer's body: until then the upstream counts the request as in flight. Dropped without a word,
/// it says only that there was no answer so far. Only the first word counts.
#[derive(Debug)]
#[must_use = "the request counts as in flight until this is dropped"]
pub struct Pick {
    upstream: Arc<UpstreamState>,
    begun: Nanos,
    settled: bool,
}

impl Pick {
    /// `None` when the upstream has begun to drain since it was chosen.
    pub(super) fn begin(upstream: &Arc<UpstreamState>, now: Nanos) -> Option<Self> {
        upstream.begin(now).then(|| Self { upstream: Arc::clone(upstream), begun: now, settled: false })
    }

    /// Where the upstream listens.
    pub fn address(&self) -> SocketAddr {
        self.upstream.address
    }

    /// The upstream's name.
    pub fn name(&self) -> &str {
        &self.upstream.name
    }

    /// The head of an answer is there. 502, 503 and 504 count as failures, anything else as a success; so many failures
    /// in a row as [`eject_after`](crate::BalanceConfig::eject_after) eject the upstream.
    pub fn answered(&mut self, status: StatusCode) {
        use StatusCode as S;
        let Some((latency, now)) = self.settle() else { return };
        if matches!(status, S::BAD_GATEWAY | S::SERVICE_UNAVAILABLE | S::GATEWAY_TIMEOUT) {
            self.upstream.failed(latency, now);
        } else {
            self.upstream.succeeded(latency, now);
        }
    }

    /// The connection ended before the head of an answer, or that did not come in time. Counts as a failure.
    pub fn died(&mut self) {
        if let Some((latency, now)) = self.settle() {
            self.upstream.failed(latency, now);
        }
    }

    /// The upstream could not be connected to. It gets no requests until it passes its next health check, or for a second
    /// where nobody checks it. Counts as a failure.
    pub fn refused(&mut self) {
        if let Some((latency, now)) = self.settle() {
            self.upstream.refused(now);
            self.upstream.failed(latency, now);
        }
    }

    /// How long it took, once.
    fn settle(&mut self) -> Option<(Duration, Nanos)> {
        if std::mem::replace(&mut self.settled, true) {
            return None;
        }
        let now = self.upstream.clock.now();
        Some((Duration::from_nanos(now.saturating_sub(self.begun)), now))
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        if let Some((latency, now)) = self.settle() {
            self.upstream.waited(latency, now);
        }
        self.upstream.end();
    }
}
