//! Chooses the upstream of each request.

mod choose;
mod config;
mod latency;
mod pick;
mod state;
pub(crate) mod sticky;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

pub use config::{BalanceConfig, Strategy};
pub use pick::Pick;

use crate::overload::{Load, OverloadConfig, Priority, Queue};
use crate::proxy::answer::Refusal;
use crate::telemetry::{self, PROXY_TARGET};
use crate::{Upstream, Upstreams};
use choose::{Choice, Lack, Turn};
use latency::Nanos;
use state::{Clock, UpstreamState};

/// Gives each request the upstream that is expected to answer it soonest.
///
/// Of up to 16 upstreams it takes the one with the least (requests in flight + 1) × latency ÷ weight; of more, the
/// better of two chosen at random. The latency is a [peak EWMA](https://twitter.github.io/finagle/guide/Clients.html):
/// it rises at once and falls slowly. So an instance that is slow, or stalls for a moment, gets less and nobody has to
/// say so.
///
/// An upstream is left alone
/// - while the list says that it is sick, or that it drains;
/// - when it refused a connection, until it has passed another health check;
/// - for [`ejection`](BalanceConfig::ejection) after [`eject_after`](BalanceConfig::eject_after) failures in a row,
///   though never more than half of the healthy ones are.
///
/// One that is back gets its full share over [`slow_start`](BalanceConfig::slow_start).
///
/// All threads share it. To pick takes no lock.
///
/// ```
/// use greenwave_edge::{BalanceConfig, LoadBalancer, Upstreams};
///
/// let upstreams = Upstreams::fixed(["127.0.0.1:3000".parse()?, "127.0.0.1:3001".parse()?]);
/// let balancer = LoadBalancer::new(BalanceConfig::default(), upstreams.into_watch());
/// let first = balancer.try_pick(None, &[]).ok_or("nobody is healthy")?;
/// let second = balancer.try_pick(None, &[]).ok_or("nobody is healthy")?;
/// assert_ne!(first.address(), second.address(), "the first has a request in flight");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LoadBalancer {
    inner: Arc<Inner>,
}

/// Addresses that drain and have nothing in flight, of all balancers of a proxy.
pub(crate) type Released = Arc<watch::Sender<Vec<SocketAddr>>>;

#[derive(Debug)]
struct Inner {
    this: Weak<Self>,
    config: BalanceConfig,
    clock: Clock,
    snapshot: ArcSwap<Snapshot>,
    turn: Turn,
    // Where requests wait for room, if that is limited.
    queue: Option<(OverloadConfig, Arc<Queue>)>,
    released: Released,
    // Held to change the snapshot, to eject and to release; in it, what was released.
    changing: Mutex<Vec<SocketAddr>>,
}

/// The upstreams of one list.
#[derive(Debug)]
struct Snapshot {
    upstreams: Vec<Arc<UpstreamState>>,
    // Has seen that list, and knows without a lock whether there is another.
    seen: watch::Receiver<Upstreams>,
    // Whether the list's supplier was gone already.
    closed: bool,
}

impl LoadBalancer {
    /// Balances over what the channel holds at each pick, without limits to what an upstream has in flight.
    pub fn new(config: BalanceConfig, upstreams: watch::Receiver<Upstreams>) -> Self {
        let unlimited = OverloadConfig { enabled: false, ..OverloadConfig::default() };
        Self::limited(config, unlimited, upstreams, Released::default())
    }

    /// As [`new`](Self::new), with these limits, and tells which draining upstreams are idle.
    pub(crate) fn limited(
        config: BalanceConfig,
        overload: OverloadConfig,
        upstreams: watch::Receiver<Upstreams>,
        released: Released,
    ) -> Self {
        let inner = Arc::new_cyclic(|this| Inner {
            this: Weak::clone(this),
            config,
            clock: Clock::start(),
            snapshot: ArcSwap::from_pointee(Snapshot::unseen(upstreams)),
            turn: Turn::default(),
            queue: overload.enabled.then(|| {
                let queue = Arc::new(Queue::new(&overload));
                (overload, queue)
            }),
            released,
            changing: Mutex::default(),
        });
        Self { inner }
    }

    /// The best upstream that is not among `tried`, or, if all usable ones are, the best of those. `None` where none is
    /// usable now.
    ///
    /// Requests with the same `stickiness` go to the same upstream for as long as it is usable and has not much more in
    /// flight than others.
    pub fn try_pick(&self, stickiness: Option<u64>, tried: &[SocketAddr]) -> Option<Pick> {
        self.inner.seek(stickiness, tried, false).ok()
    }

    /// As [`try_pick`](Self::try_pick), but keeps to the upstreams' limits, and waits until `deadline` for one to become
    /// usable, or in the queue for one that has room. [`Priority::High`] keeps to no limit.
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub(crate) async fn pick(
        &self,
        stickiness: Option<u64>,
        tried: &[SocketAddr],
        deadline: Instant,
        priority: Priority,
    ) -> Result<Pick, Refusal> {
        let queue =
            self.inner.queue.as_ref().filter(|_| priority == Priority::Normal).map(|(_, queue)| &**queue);
        // Nobody passes those who wait.
        if queue.is_none_or(Queue::is_empty)
            && let Ok(pick) = self.inner.seek(stickiness, tried, queue.is_some())
        {
            return Ok(pick);
        }
        // Rare, and large: it should not make the future of each request so.
        Box::pin(self.wait(stickiness, tried, deadline, queue)).await
    }

    async fn wait(
        &self,
        stickiness: Option<u64>,
        tried: &[SocketAddr],
        deadline: Instant,
        queue: Option<&Queue>,
    ) -> Result<Pick, Refusal> {
        let limited = queue.is_some();
        loop {
            // Taken before looking, so that a change in between wakes us.
            let mut changes = self.inner.snapshot().seen.clone();
            match (self.inner.lack(tried, limited), queue) {
                (Some(Lack::Nobody), _) => {}
                (_, Some(queue)) => {
                    let take = || self.inner.seek(stickiness, tried, true).ok();
                    return queue.wait(deadline, self.inner.load(), take).await;
                }
                (_, None) => {
                    if let Ok(pick) = self.inner.seek(stickiness, tried, false) {
                        return Ok(pick);
                    }
                }
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Refusal::NoUpstream);
            }
            let next = self.inner.next_usable().map_or(deadline, |next| next.clamp(now, deadline));
            // Once the supplier of the list is gone only time can help.
            if let Ok(Err(_)) = timeout_at(next, changes.changed()).await {
                tokio::time::sleep_until(next).await;
            }
        }
    }

    /// How many upstreams pass their health checks and do not drain.
    pub fn healthy(&self) -> usize {
        self.inner.snapshot().upstreams.iter().filter(|upstream| upstream.is_listed()).count()
    }

    /// Takes over changes of the list as they happen, and counts the healthy upstreams. Without it a change is noticed
    /// at the next pick, which is too late for a draining upstream that nobody asks any more.
    ///
    /// Runs until it is dropped.
    pub(crate) async fn follow(&self) {
        let mut counted = Counted(0);
        let mut changes = self.inner.snapshot().seen.clone();
        loop {
            counted.set(self.healthy());
            if changes.changed().await.is_err() {
                counted.set(self.healthy());
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Inner {
    fn seek(&self, stickiness: Option<u64>, tried: &[SocketAddr], limited: bool) -> Result<Pick, Lack> {
        loop {
            let now = self.clock.now();
            let snapshot = self.snapshot();
            let upstream = self.choice(&snapshot, now, limited).of_all(stickiness, tried)?;
            // One that begins to drain at this moment is not chosen again.
            if let Some(pick) = Pick::begin(upstream, now) {
                return Ok(pick);
            }
        }
    }

    fn choice<'a>(&'a self, snapshot: &'a Snapshot, now: Nanos, limited: bool) -> Choice<'a> {
        Choice { snapshot, config: &self.config, turn: &self.turn, now, limited }
    }

    /// What a request would lack now.
    fn lack(&self, tried: &[SocketAddr], limited: bool) -> Option<Lack> {
        self.choice(&self.snapshot(), self.clock.now(), limited).of_all(None, tried).err()
    }

    fn load(&self) -> Load {
        let snapshot = self.snapshot();
        let listed = || snapshot.upstreams.iter().filter(|state| state.is_listed());
        Load {
            in_flight: listed().map(|state| state.waiting()).fold(0, u32::saturating_add),
            usual: listed().map(|state| state.usual()).max().unwrap_or_default(),
        }
    }

    /// The present list.
    fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        let snapshot = self.snapshot.load();
        if snapshot.is_current() {
            return snapshot;
        }
        self.refresh();
        self.snapshot.load()
    }

    fn refresh(&self) {
        let mut changing = self.lock();
        let old = self.snapshot.load();
        if old.is_current() {
            return;
        }
        let now = self.clock.now();
        let snapshot = Snapshot::new(old.seen.clone(), |(index, upstream)| {
            // Most lists are as long as the last, in the same order.
            let same = old.upstreams.get(index).filter(|state| state.is(upstream));
            match same.or_else(|| old.upstreams.iter().find(|state| state.is(upstream))) {
                Some(state) => {
                    state.update(upstream, now);
                    Arc::clone(state)
                }
                None => {
                    let state = UpstreamState::new(upstream, self);
                    if !old.upstreams.is_empty() {
                        state.recovers(now);
                    }
                    Arc::new(state)
                }
            }
        });
        snapshot.restore_half(now);
        self.release_from(&snapshot, &mut changing);
        self.snapshot.store(Arc::new(snapshot));
        if let Some((_, queue)) = &self.queue {
            queue.wake();
        }
    }

    /// Publishes which draining upstreams have nothing in flight.
    fn release(&self) {
        self.release_from(&self.snapshot.load(), &mut self.lock());
    }

    fn release_from(&self, snapshot: &Snapshot, ours: &mut Vec<SocketAddr>) {
        let idle = |state: &&Arc<UpstreamState>| state.is_draining() && state.in_flight() == 0;
        let now: Vec<SocketAddr> =
            snapshot.upstreams.iter().filter(idle).map(|state| state.address).collect();
        if *ours != now {
            self.released.send_modify(|all| {
                all.retain(|address| !ours.contains(address));
                all.extend(&now);
            });
            *ours = now;
        }
    }

    /// Leaves an upstream alone that failed too often, unless half of the healthy ones are left alone already.
    fn eject(&self, upstream: &UpstreamState, now: Nanos) {
        // When the lock is taken the next failure comes here again.
        let Ok(_changing) = self.changing.try_lock() else { return };
        let snapshot = self.snapshot.load();
        let (ejected, listed) = snapshot.ejected(now);
        if upstream.ejected_until(now).is_some() || (ejected + 1) * 2 > listed {
            return;
        }
        let duration = upstream.eject(now, &self.config);
        metrics::counter!(telemetry::EJECTIONS).increment(1);
        tracing::warn!(
            target: PROXY_TARGET, upstream = %upstream.name, address = %upstream.address, ?duration,
            "upstream failed too often and gets no requests for a while"
        );
    }

    /// When the first of the upstreams that are left alone may get requests again, if time decides that.
    fn next_usable(&self) -> Option<Instant> {
        let snapshot = self.snapshot.load();
        let listed = snapshot.upstreams.iter().filter(|state| state.is_listed());
        let next = listed.filter_map(|state| state.usable_from(snapshot.closed)).min()?;
        Some(self.clock.instant(next))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        // What is in it is replaced whole: a panic elsewhere leaves it right.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// Nothing, until somebody looks.
    fn unseen(mut upstreams: watch::Receiver<Upstreams>) -> Self {
        upstreams.mark_changed();
        Self { upstreams: Vec::new(), seen: upstreams, closed: false }
    }

    fn new(
        mut seen: watch::Receiver<Upstreams>,
        state: impl FnMut((usize, &Upstream)) -> Arc<UpstreamState>,
    ) -> Self {
        // Asked before reading: the last list may come, and its supplier leave, right after.
        let closed = seen.has_changed().is_err();
        let upstreams = seen.borrow_and_update().iter().enumerate().map(state).collect();
        Self { upstreams, seen, closed }
    }

    fn is_current(&self) -> bool {
        match self.seen.has_changed() {
            Ok(changed) => !changed,
            Err(_) => self.closed,
        }
    }

    /// How many of the healthy upstreams are ejected, and how many healthy ones there are.
    fn ejected(&self, now: Nanos) -> (usize, usize) {
        let listed = self.upstreams.iter().filter(|state| state.is_listed());
        listed.fold((0, 0), |(ejected, listed), state| {
            (ejected + usize::from(state.ejected_until(now).is_some()), listed + 1)
        })
    }

    /// When healthy ones have gone, more than half of the rest may be ejected: those come back whose time ends first.
    fn restore_half(&self, now: Nanos) {
        let (ejected, listed) = self.ejected(now);
        let excess = ejected.saturating_sub(listed / 2);
        if excess == 0 {
            return;
        }
        let listed = self.upstreams.iter().filter(|state| state.is_listed());
        let mut ejected: Vec<_> =
            listed.filter_map(|state| state.ejected_until(now).map(|until| (until, state))).collect();
        ejected.sort_by_key(|(until, _)| *until);
        ejected.into_iter().take(excess).for_each(|(_, state)| state.restore(now));
    }
}

/// What a balancer adds to the count of healthy upstreams.
struct Counted(usize);

impl Counted {
    fn set(&mut self, healthy: usize) {
        // Counts of upstreams are far below what a float holds exactly.
        metrics::gauge!(telemetry::UPSTREAMS_HEALTHY).increment(healthy as f64 - self.0 as f64);
        self.0 = healthy;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
