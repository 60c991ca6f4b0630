//! Who waits for a connection. A lease that ends passes to the first of them, connection and all.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Instant,
};

use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};

use super::{holds::Site, inner::Inner, lease::Lease};

/// A lease, or how many waited when the wait ended without one.
pub(super) type Turn = Result<Lease, usize>;

struct Waiter {
    site: Site,
    with_connection: bool,
    deadline: Instant,
    turn: oneshot::Sender<Turn>,
}

/// The one who is next.
pub(super) struct Next {
    pub(super) site: Site,
    pub(super) with_connection: bool,
    pub(super) turn: oneshot::Sender<Turn>,
}

/// Those whose time is up, each with how many waited when it left.
pub(super) type Late = Vec<(oneshot::Sender<Turn>, usize)>;

/// How many who have gone may stand in the queue, however short it is.
const MAX_GONE: usize = 64;

/// First come, first served. All wait for equally long, so that the first is also the first to be sent away.
#[derive(Default)]
pub(super) struct Queue {
    waiters: VecDeque<Waiter>,
    /// How many were still there when those who had gone were last taken out.
    stayed: usize,
    /// Whether `keep_time` will look in time for whoever comes now.
    timed: bool,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiters.iter().filter(|waiter| !waiter.turn.is_closed()).count()
    }

    /// Takes a place at the end; wakes `clock` if it sleeps for longer than this one may wait.
    pub(super) fn join(
        &mut self,
        site: Site,
        with_connection: bool,
        deadline: Instant,
        clock: &Notify,
    ) -> oneshot::Receiver<Turn> {
        // Who leaves early tells nobody, and would else stand here until its time is up.
        if self.waiters.len() > 2 * self.stayed + MAX_GONE {
            self.waiters.retain(|waiter| !waiter.turn.is_closed());
            self.stayed = self.waiters.len();
        }
        let (turn, receiver) = oneshot::channel();
        self.waiters.push_back(Waiter { site, with_connection, deadline, turn });
        if !self.timed {
            self.timed = true;
            clock.notify_one();
        }
        receiver
    }

    /// The first who is still there.
    pub(super) fn next(&mut self) -> Option<Next> {
        loop {
            let Waiter { site, with_connection, turn, .. } = self.waiters.pop_front()?;
            if !turn.is_closed() {
                return Some(Next { site, with_connection, turn });
            }
        }
    }

    /// Takes out those whose time is up, and says when to look again. They are to be told once the lock is free: what
    /// a send wakes may run at once, and ask for the lock.
    pub(super) fn take_late(&mut self, now: Instant) -> (Late, Option<Instant>) {
        let is_late = |waiter: &mut Waiter| waiter.deadline <= now;
        let mut late = Vec::new();
        if self.waiters.front_mut().is_some_and(is_late) {
            let mut waiting = self.len();
            while let Some(Waiter { turn, .. }) = self.waiters.pop_front_if(is_late) {
                if !turn.is_closed() {
                    late.push((turn, waiting.max(1)));
                    waiting = waiting.saturating_sub(1);
                }
            }
        }
        let next = self.waiters.front().map(|waiter| waiter.deadline);
        self.timed = next.is_some();
        (late, next)
    }
}

/// Ends waits in time: one task for all of them, for a timer for each would cost more than the wait itself.
pub(super) async fn keep_time(pool: Weak<Inner>, clock: Arc<Notify>) {
    // When its runtime ends, so does what keeps the time of those who wait.
    let _end = ShutOnDrop(pool.clone());
    loop {
        let Some(inner) = pool.upgrade() else { return };
        let next = inner.send_away(tokio::time::Instant::now().into_std());
        drop(inner);
        match next {
            Some(next) => sleep_until(next.into()).await,
            None => clock.notified().await,
        }
    }
}

struct ShutOnDrop(Weak<Inner>);

impl Drop for ShutOnDrop {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.shut();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_leaves_early_does_not_stay_until_its_time_is_up() {
        let (mut queue, clock) = (Queue::default(), Notify::new());
        let deadline = Instant::now() + Duration::from_secs(600);
        let stays: Vec<_> = (0..100).map(|_| queue.join(Site::Pool, true, deadline, &clock)).collect();
        for _ in 0..10_000 {
            drop(queue.join(Site::Pool, true, deadline, &clock));
        }
        assert!(queue.waiters.len() <= 2 * stays.len() + MAX_GONE + 1, "{}", queue.waiters.len());
        assert_eq!(queue.len(), stays.len());
    }

    #[test]
    fn who_is_late_learns_how_many_waited_and_who_has_gone_is_not_counted() {
        let (mut queue, clock, now) = (Queue::default(), Notify::new(), Instant::now());
        let mut turns: Vec<_> = (0..4).map(|_| queue.join(Site::Pool, true, now, &clock)).collect();
        let later = now + Duration::from_secs(1);
        let _in_time = queue.join(Site::Pool, true, later, &clock);
        drop(turns.remove(1));
        let (late, next) = queue.take_late(now);
        assert_eq!(late.iter().map(|(_, waiting)| *waiting).collect::<Vec<_>>(), [4, 3, 2]);
        assert_eq!(next, Some(later));
    }
}
