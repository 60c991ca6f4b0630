use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::backends::{Lease, Store};
use crate::error::chain;

/// The leases that this worker holds: of jobs that run, and of jobs that have ended and are not settled yet.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Mutex<HashMap<Lease, Held>>,
}

#[derive(Debug)]
struct Held {
    /// Before this the database gives the job to nobody else. Counted from before the statement was sent that took
    /// the lease, so it is never later than the database's own reckoning.
    until: Instant,
    lost: CancellationToken,
}

/// One held lease; it is no longer extended once this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    leases: Arc<Leases>,
    pub(super) lease: Lease,
    /// Fires when the lease has ended, or another worker has the job.
    pub(super) lost: CancellationToken,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.leases.lock().remove(&self.lease);
    }
}

impl Leases {
    pub(super) fn hold(self: &Arc<Self>, lease: Lease, until: Instant) -> Guard {
        let lost = CancellationToken::new();
        self.lock().insert(lease, Held { until, lost: lost.clone() });
        Guard { leases: Arc::clone(self), lease, lost }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Lease, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the first lease ends that has not ended yet.
    fn first_end(&self) -> Option<Instant> {
        self.lock().values().filter(|held| !held.lost.is_cancelled()).map(|held| held.until).min()
    }

    fn not_lost(&self) -> Vec<Lease> {
        self.lock().iter().filter(|(_, held)| !held.lost.is_cancelled()).map(|(lease, _)| *lease).collect()
    }

    fn extended(&self, asked: &[Lease], kept: &[Lease], until: Instant) {
        let kept: HashSet<&Lease> = kept.iter().collect();
        let mut held = self.lock();
        for lease in asked {
            // What was settled meanwhile is no longer here.
            let Some(held) = held.get_mut(lease) else { continue };
            if kept.contains(lease) {
                held.until = until;
            } else {
                held.lost.cancel();
            }
        }
    }

    fn drop_ended(&self, now: Instant) {
        self.lock().values().filter(|held| held.until <= now).for_each(|held| held.lost.cancel());
    }
}

/// How often leases are extended: every third of their length.
pub(super) fn interval(length: Duration) -> Duration {
    length / 3
}

/// Extends all leases every third of their length, for as long as it is polled, and tells the attempts whose lease
/// is gone.
pub(super) async fn keep<S: Store>(store: S, leases: Arc<Leases>, length: Duration) {
    let interval = interval(length);
    let mut next = Instant::now() + interval;
    loop {
        // A lease taken during this sleep ends after `next`, for one with less than an interval left is given back at
        // once: nothing can end unseen.
        sleep_until(leases.first_end().map_or(next, |end| end.min(next))).await;
        let now = Instant::now();
        leases.drop_ended(now);
        if now < next {
            continue;
        }
        next = now + interval;
        // A lease that has ended is not asked for again, although the database may still have it: its attempt is gone.
        let asked = leases.not_lost();
        if asked.is_empty() {
            continue;
        }
        let deadline = leases.first_end().map_or(next, |end| end.min(next));
        match timeout_at(deadline, store.extend(asked.clone(), length)).await {
            Ok(Ok(kept)) => leases.extended(&asked, &kept, now + length),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), leases = asked.len(), "could not extend leases");
                next = now + interval / 4;
            }
            Err(_) => {
                tracing::warn!(leases = asked.len(), "the database did not answer in time to extend leases")
            }
        }
    }
}
