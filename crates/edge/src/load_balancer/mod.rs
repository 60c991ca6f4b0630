//! Chooses the upstream of each request.

mod config;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use config::BalanceConfig;

use crate::{Upstream, Upstreams};

/// How long a refusal counts where nobody checks the upstreams' health.
const UNCHECKED_REFUSAL: Duration = Duration::from_secs(1);

/// Gives each request a healthy upstream, one after the other.
///
/// Health checks see a dead server only at their next round. A caller that is refused a connection says so
/// with [`refused`](Self::refused), and that upstream gets no requests until it has passed a health check.
///
/// ```
/// use greenwave_edge::{LoadBalancer, Upstreams};
///
/// let upstreams = Upstreams::fixed(["127.0.0.1:3000".parse()?, "127.0.0.1:3001".parse()?]);
/// let balancer = LoadBalancer::new(upstreams.into_watch());
/// let first = balancer.pick(&[]).map(|upstream| upstream.address);
/// let second = balancer.pick(&[]).map(|upstream| upstream.address);
/// assert_ne!(first, second);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug)]
pub struct LoadBalancer {
    upstreams: watch::Receiver<Upstreams>,
    turn: AtomicUsize,
    refusals: Mutex<HashMap<SocketAddr, Refusal>>,
    // How many refusals there are, so that the usual case of none takes no lock.
    refusal_count: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    checks: u64,
    at: Instant,
}

impl LoadBalancer {
    /// Balances over what the channel holds at each pick.
    pub fn new(upstreams: watch::Receiver<Upstreams>) -> Self {
        Self {
            upstreams,
            turn: AtomicUsize::new(0),
            refusals: Mutex::new(HashMap::new()),
            refusal_count: AtomicUsize::new(0),
        }
    }

    /// The next healthy upstream that is not among `tried`, or, if all healthy ones are, the next of those.
    pub fn pick(&self, tried: &[SocketAddr]) -> Option<Upstream> {
        let upstreams = self.upstreams.borrow();
        let usable = |upstream: &&Upstream| upstream.healthy && !self.is_refused(upstream);
        let fresh = |upstream: &&Upstream| usable(upstream) && !tried.contains(&upstream.address);
        self.next_of(&upstreams, fresh)
            .or_else(|| if tried.is_empty() { None } else { self.next_of(&upstreams, usable) })
    }

    /// As [`pick`](Self::pick), but waits up to `patience` for an upstream to become healthy.
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn pick_within(&self, tried: &[SocketAddr], patience: Duration) -> Option<Upstream> {
        // The usual case: no clock is read, no channel is cloned.
        if let Some(upstream) = self.pick(tried) {
            return Some(upstream);
        }
        let deadline = Instant::now() + patience;
        let mut changes = self.upstreams.clone();
        loop {
            // Mark as seen before looking, so that a change in between wakes us.
            changes.mark_unchanged();
            if let Some(upstream) = self.pick(tried) {
                return Some(upstream);
            }
            let closed = changes.has_changed().is_err();
            let change = async {
                if closed {
                    tokio::time::sleep(UNCHECKED_REFUSAL / 10).await;
                } else {
                    // An error means that the sender is gone: the next round notices.
                    let _ = changes.changed().await;
                }
            };
            if tokio::time::timeout_at(deadline, change).await.is_err() {
                return None;
            }
        }
    }

    /// Reports that `upstream` refused a connection: it gets no requests until its next passed health check.
    pub fn refused(&self, upstream: &Upstream) {
        let known = self.upstreams.borrow();
        let mut refusals = self.lock();
        refusals.retain(|address, _| known.iter().any(|upstream| upstream.address == *address));
        refusals.insert(upstream.address, Refusal { checks: upstream.checks, at: Instant::now() });
        self.refusal_count.store(refusals.len(), Ordering::Release);
    }

    /// How many upstreams pass their health checks.
    pub fn healthy(&self) -> usize {
        self.upstreams.borrow().healthy()
    }

    /// Takes turns among those that qualify; the neighbour of one that does not gets no double share.
    fn next_of(&self, upstreams: &Upstreams, qualifies: impl Fn(&&Upstream) -> bool) -> Option<Upstream> {
        let count = upstreams.iter().filter(&qualifies).count();
        if count == 0 {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % count;
        upstreams.iter().filter(&qualifies).nth(turn).cloned()
    }

    fn is_refused(&self, upstream: &Upstream) -> bool {
        if self.refusal_count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut refusals = self.lock();
        let Some(refusal) = refusals.get(&upstream.address) else { return false };
        let unchecked = self.upstreams.has_changed().is_err();
        let over =
            refusal.checks != upstream.checks || (unchecked && refusal.at.elapsed() >= UNCHECKED_REFUSAL);
        if over {
            refusals.remove(&upstream.address);
            self.refusal_count.store(refusals.len(), Ordering::Release);
        }
        !over
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Refusal>> {
        // Each change is one insert or remove: a panic elsewhere leaves the map whole.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(port: u16, healthy: bool) -> Upstream {
        let mut upstream = Upstream::new(format!("app-{port}"), SocketAddr::from(([127, 0, 0, 1], port)));
        upstream.healthy = healthy;
        upstream
    }

    fn picks(balancer: &LoadBalancer, count: usize) -> Vec<u16> {
        (0..count).filter_map(|_| balancer.pick(&[])).map(|upstream| upstream.address.port()).collect()
    }

    #[test]
    fn healthy_upstreams_take_turns_and_sick_ones_get_nothing() {
        let list = Upstreams::from_iter([upstream(1, true), upstream(2, false), upstream(3, true)]);
        let balancer = LoadBalancer::new(list.into_watch());
        assert_eq!(picks(&balancer, 4), [1, 3, 1, 3]);
    }

    #[test]
    fn a_refusing_upstream_is_left_alone_until_it_passes_a_check() {
        let (sender, receiver) = watch::channel(Upstreams::from_iter([upstream(1, true), upstream(2, true)]));
        let balancer = LoadBalancer::new(receiver);
        balancer.refused(&upstream(1, true));
        assert_eq!(picks(&balancer, 3), [2, 2, 2]);
        sender.send_modify(|list| list.get_mut(0).into_iter().for_each(|upstream| upstream.checks += 1));
        assert!(picks(&balancer, 2).contains(&1));
    }

    #[test]
    fn a_tried_upstream_is_picked_again_only_when_no_other_is_left() {
        let list = Upstreams::from_iter([upstream(1, true), upstream(2, true)]);
        let balancer = LoadBalancer::new(list.into_watch());
        let tried = [upstream(1, true).address];
        assert!((0..4).all(|_| balancer.pick(&tried).is_some_and(|upstream| upstream.address.port() == 2)));
        let all = [upstream(1, true).address, upstream(2, true).address];
        assert!(balancer.pick(&all).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_gets_the_upstream_that_becomes_healthy() {
        let (sender, receiver) = watch::channel(Upstreams::from_iter([upstream(1, false)]));
        let balancer = LoadBalancer::new(receiver);
        let (picked, ()) = tokio::join!(balancer.pick_within(&[], Duration::from_secs(5)), async {
            tokio::time::sleep(Duration::from_secs(4)).await;
            sender.send_replace(Upstreams::from_iter([upstream(1, true)]));
        });
        assert_eq!(picked.map(|upstream| upstream.name).as_deref(), Some("app-1"));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_when_nothing_becomes_healthy() {
        let (_sender, receiver) = watch::channel(Upstreams::from_iter([upstream(1, false)]));
        let balancer = LoadBalancer::new(receiver);
        assert_eq!(balancer.pick_within(&[], Duration::from_secs(5)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unchecked_upstream_is_tried_again_a_second_after_it_refused() {
        let balancer = LoadBalancer::new(Upstreams::from_iter([upstream(1, true)]).into_watch());
        balancer.refused(&upstream(1, true));
        assert_eq!(balancer.pick(&[]), None);
        assert!(balancer.pick_within(&[], Duration::from_secs(5)).await.is_some());
    }
}
