//! What is known of one upstream, in atomics that all cores share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::latency::{Nanos, PeakEwma};
use super::sticky;
use super::{BalanceConfig, Inner};
use crate::Upstream;
use crate::overload::{GradientLimit, Queue};

/// Time in which a latency loses two thirds of its weight. Found by simulation: with 10 s, as in Finagle, an upstream is
/// shunned for a minute after a hiccup; with a tenth of a second it is trusted again before its next one.
const DECAY: Duration = Duration::from_secs(1);
/// How long a refusal counts where nobody checks the upstreams' health.
const UNCHECKED_REFUSAL: Nanos = 1_000_000_000;
/// Share with which an upstream begins that has recovered.
const FIRST_SHARE: f32 = 0.1;
/// Cost of a second request to an upstream whose latency nobody knows yet: more than that of any known one.
const UNKNOWN: f32 = 1e6;
/// One request, in the upper half of the count: all that are open.
const OPEN: u64 = 1 << 32;
/// One request, in the lower half of the count: those without the head of an answer.
const WAITING: u64 = 1;

/// The clock of a balancer: nanoseconds since its start, never 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Nanos {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(1)
    }

    pub(super) fn instant(self, at: Nanos) -> Instant {
        self.0 + Duration::from_nanos(at.saturating_sub(1))
    }
}

/// It survives changes of the list for as long as name and address stay the same.
#[derive(Debug)]
pub(super) struct UpstreamState {
    pub(super) name: Box<str>,
    pub(super) address: SocketAddr,
    pub(super) clock: Clock,
    pub(super) balancer: Weak<Inner>,
    /// Its place among the hashes of others, by its name, so that it stays through restarts.
    pub(super) hash: u64,

    // How many requests are open, and how many of them wait for the head of their answer.
    requests: AtomicU64,
    // When the oldest stretch began in which there was always one that waits.
    waiting_since: AtomicU64,
    latency: PeakEwma,
    overload: Option<(GradientLimit, Arc<Queue>)>,
    // Failures since the last success.
    failures: AtomicU32,

    healthy: AtomicBool,
    draining: AtomicBool,
    weight: AtomicU32,
    checks: AtomicU64,
    // When these happened or end; 0 for not at all.
    refused_at: AtomicU64,
    ejected_until: AtomicU64,
    recovered_at: AtomicU64,
    ejections: AtomicU32,
}

impl UpstreamState {
    pub(super) fn new(upstream: &Upstream, balancer: &Inner) -> Self {
        Self {
            name: upstream.name.as_str().into(),
            address: upstream.address,
            clock: balancer.clock,
            balancer: Weak::clone(&balancer.this),
            hash: sticky::hash(upstream.name.as_bytes()),
            requests: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            latency: PeakEwma::default(),
            overload: balancer
                .queue
                .as_ref()
                .map(|(config, queue)| (GradientLimit::new(config), Arc::clone(queue))),
            failures: AtomicU32::new(0),
            healthy: AtomicBool::new(upstream.healthy),
            draining: AtomicBool::new(upstream.draining),
            weight: AtomicU32::new(upstream.weight),
            checks: AtomicU64::new(upstream.checks),
            refused_at: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            recovered_at: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
        }
    }

    pub(super) fn is(&self, upstream: &Upstream) -> bool {
        self.address == upstream.address && *self.name == upstream.name
    }

    /// Takes over what the supplier of the list says now.
    pub(super) fn update(&self, upstream: &Upstream, now: Nanos) {
        self.weight.store(upstream.weight, Ordering::Relaxed);
        // Sequentially consistent, like the count in `begin`: either that sees this, or this sees that.
        self.draining.store(upstream.draining, Ordering::SeqCst);
        if self.checks.swap(upstream.checks, Ordering::Relaxed) != upstream.checks {
            self.refused_at.store(0, Ordering::Relaxed);
        }
        if !self.healthy.swap(upstream.healthy, Ordering::Relaxed) && upstream.healthy {
            // It was restarted, or has been away: what it did before says nothing now.
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
            self.recovered_at.store(now, Ordering::Relaxed);
        }
    }

    /// Begins its slow start: it has just come to others that serve already.
    pub(super) fn recovers(&self, now: Nanos) {
        self.recovered_at.store(now, Ordering::Relaxed);
    }

    /// Whether it may get a request; `unchecked` says that no check will ever clear a refusal.
    pub(super) fn is_usable(&self, now: Nanos, unchecked: bool) -> bool {
        self.is_listed() && self.usable_from(unchecked).is_some_and(|from| from <= now)
    }

    /// Whether the supplier of the list says that it may get requests.
    pub(super) fn is_listed(&self) -> bool {
        self.healthy.load(Ordering::Relaxed) && !self.draining.load(Ordering::SeqCst)
    }

    /// From when on it may get requests, as far as refusals and failures go; `None` when a check has to tell.
    pub(super) fn usable_from(&self, unchecked: bool) -> Option<Nanos> {
        let refused_at = self.refused_at.load(Ordering::Relaxed);
        let ejected_until = self.ejected_until.load(Ordering::Relaxed);
        if refused_at == 0 {
            Some(ejected_until)
        } else if unchecked || self.checks.load(Ordering::Relaxed) == 0 {
            Some(ejected_until.max(refused_at + UNCHECKED_REFUSAL))
        } else {
            None
        }
    }

    /// When its ejection ends, if it is ejected.
    pub(super) fn ejected_until(&self, now: Nanos) -> Option<Nanos> {
        Some(self.ejected_until.load(Ordering::Relaxed)).filter(|until| *until > now)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Requests whose answers have not ended.
    pub(super) fn in_flight(&self) -> u32 {
        (self.requests.load(Ordering::SeqCst) / OPEN) as u32
    }

    /// Requests that wait for the head of their answer.
    pub(super) fn waiting(&self) -> u32 {
        self.requests.load(Ordering::SeqCst) as u32
    }

    /// Whether one more may wait here.
    pub(super) fn has_room(&self) -> bool {
        self.overload.as_ref().is_none_or(|(limit, _)| self.waiting() < limit.limit())
    }

    /// How long an answer usually takes here.
    pub(super) fn usual(&self) -> Duration {
        self.overload.as_ref().map_or(Duration::ZERO, |(limit, _)| limit.usual())
    }

    /// What one more request costs here beside others: how long it would wait, were requests served in turn.
    ///
    /// An open answer is less of a load than a request that waits, and many may be idle: WebSockets, events. They count
    /// by their logarithm, or an upstream that lost its own by a restart would get all that comes.
    pub(super) fn cost(&self, now: Nanos, config: &BalanceConfig) -> f32 {
        let requests = self.requests.load(Ordering::Relaxed);
        let waiting = requests as u32;
        let open = ((requests / OPEN) as u32).saturating_sub(waiting);
        let others = waiting as f32 + if open == 0 { 0.0 } else { (open as f32).ln_1p() };
        let latency = self.latency.get(now, DECAY);
        let wait = if latency == 0.0 {
            others * UNKNOWN
        } else if waiting == 0 {
            (others + 1.0) * latency
        } else {
            // While it says nothing, it is at least as slow as that.
            (others + 1.0) * latency.max(self.silence(now))
        };
        wait / self.share(now, config.slow_start)
    }

    /// Seconds for which somebody has waited here and nobody got an answer.
    fn silence(&self, now: Nanos) -> f32 {
        let waiting_since = self.waiting_since.load(Ordering::Relaxed);
        Duration::from_nanos(now.saturating_sub(waiting_since)).as_secs_f32().min(self.latency.age(now))
    }

    /// Its weight, or a part of it while it recovers.
    pub(super) fn share(&self, now: Nanos, slow_start: Duration) -> f32 {
        let weight = (self.weight.load(Ordering::Relaxed) as f32).max(f32::MIN_POSITIVE);
        let ejected_until = self.ejected_until.load(Ordering::Relaxed);
        let recovered_at = self.recovered_at.load(Ordering::Relaxed).max(ejected_until);
        let passed = Duration::from_nanos(now.saturating_sub(recovered_at));
        if recovered_at == 0 || passed >= slow_start {
            return weight;
        }
        weight * passed.div_duration_f32(slow_start).max(FIRST_SHARE)
    }

    /// Counts a request in, unless the upstream has begun to drain since it was chosen.
    pub(super) fn begin(&self, now: Nanos) -> bool {
        let before = self.requests.fetch_add(OPEN + WAITING, Ordering::SeqCst);
        if before as u32 == 0 {
            self.waiting_since.store(now, Ordering::Relaxed);
        }
        let begun = !self.is_draining();
        if !begun {
            self.headed();
            self.end();
        }
        begun
    }

    /// The request waits no longer; says how many did.
    fn headed(&self) -> u32 {
        let before = self.requests.fetch_sub(WAITING, Ordering::SeqCst);
        if let Some((_, queue)) = &self.overload {
            queue.wake();
        }
        before as u32
    }

    /// Counts a request out that waits no longer.
    pub(super) fn end(&self) {
        let before = self.requests.fetch_sub(OPEN, Ordering::SeqCst);
        if before < 2 * OPEN
            && self.is_draining()
            && let Some(balancer) = self.balancer.upgrade()
        {
            balancer.release();
        }
    }

    /// An answer is there after so long.
    pub(super) fn succeeded(&self, latency: Duration, now: Nanos) {
        self.sample(latency, false);
        self.latency.record(latency.as_secs_f32(), now, DECAY);
        // Read first: writing would take the cache line from other cores at each answer.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// There was a failure after so long. It may make the upstream look slow but never fast, or one that fails at once
    /// would get ever more requests.
    pub(super) fn failed(&self, latency: Duration, now: Nanos) {
        self.waited(latency, now);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if let Some(balancer) = self.balancer.upgrade()
            && balancer.config.eject_after != 0
            && failures >= balancer.config.eject_after
        {
            balancer.eject(self, now);
        }
    }

    /// There was no answer for so long, and nobody waits for it any more.
    pub(super) fn waited(&self, latency: Duration, now: Nanos) {
        self.sample(latency, true);
        self.latency.at_least(latency.as_secs_f32(), now, DECAY);
    }

    fn sample(&self, latency: Duration, failed: bool) {
        let waiting = self.headed();
        if let Some((limit, _)) = &self.overload {
            limit.sample(latency, waiting, failed);
        }
    }

    pub(super) fn refused(&self, now: Nanos) {
        self.refused_at.store(now, Ordering::Relaxed);
    }

    /// Leaves it alone, for longer each time unless the last time was long ago. Called by one core at a time.
    pub(super) fn eject(&self, now: Nanos, config: &BalanceConfig) -> Duration {
        let last = self.ejected_until.load(Ordering::Relaxed);
        let long_ago = Duration::from_nanos(now.saturating_sub(last)) > config.max_ejection;
        let before = if long_ago { 0 } else { self.ejections.load(Ordering::Relaxed) };
        let ejections = before.saturating_add(1);
        self.ejections.store(ejections, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        let duration = config.ejection.saturating_mul(ejections).min(config.max_ejection);
        let until = now.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
        self.ejected_until.store(until, Ordering::Relaxed);
        duration
    }

    /// Ends its ejection before its time.
    pub(super) fn restore(&self, now: Nanos) {
        self.ejected_until.store(now, Ordering::Relaxed);
    }
}
