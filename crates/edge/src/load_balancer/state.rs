//! What is known of one upstream, in atomics that all cores share.

use std::net::SocketAddr;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::latency::{Nanos, PeakEwma};
use super::sticky;
use super::{BalanceConfig, Inner};
use crate::Upstream;

/// Time in which a latency loses two thirds of its weight.
const DECAY: Duration = Duration::from_secs(1);
/// How long a refusal counts where nobody checks the upstreams' health.
const UNCHECKED_REFUSAL: Nanos = 1_000_000_000;
/// Share with which an upstream begins that has recovered.
const FIRST_SHARE: f32 = 0.1;
/// Cost of a second request to an upstream whose latency nobody knows yet: more than that of any known one.
const UNKNOWN: f32 = 1e6;

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

    in_flight: AtomicU32,
    latency: PeakEwma,
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
    pub(super) fn new(upstream: &Upstream, clock: Clock, balancer: Weak<Inner>) -> Self {
        Self {
            name: upstream.name.as_str().into(),
            address: upstream.address,
            clock,
            balancer,
            hash: sticky::hash(upstream.name.as_bytes()),
            in_flight: AtomicU32::new(0),
            latency: PeakEwma::default(),
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

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// What one more request costs here beside others: how long it would wait, were requests served in turn.
    pub(super) fn cost(&self, now: Nanos, config: &BalanceConfig) -> f32 {
        let in_flight = self.in_flight.load(Ordering::Relaxed) as f32;
        let latency = self.latency.get(now, DECAY);
        let wait = if latency > 0.0 { (in_flight + 1.0) * latency } else { in_flight * UNKNOWN };
        wait / self.share(now, config.slow_start)
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
    pub(super) fn begin(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let begun = !self.is_draining();
        if !begun {
            self.end();
        }
        begun
    }

    /// Counts a request out.
    pub(super) fn end(&self) {
        let before = self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if before == 1
            && self.is_draining()
            && let Some(balancer) = self.balancer.upgrade()
        {
            balancer.release();
        }
    }

    pub(super) fn succeeded(&self, latency: Duration, now: Nanos) {
        self.latency.record(latency.as_secs_f32(), now, DECAY);
        // Read first: writing would take the cache line from other cores at each answer.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a failure. It may make the upstream look slow but never fast, or one that fails at once would get ever more
    /// requests.
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

    /// Nobody got an answer for so long.
    pub(super) fn waited(&self, latency: Duration, now: Nanos) {
        self.latency.at_least(latency.as_secs_f32(), now, DECAY);
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
