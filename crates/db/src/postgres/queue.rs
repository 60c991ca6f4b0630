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

/// First come, first served. All wait for equally long, so that the first is also the first to be sent away.
#[derive(Default)]
pub(super) struct Queue {
    waiters: VecDeque<Waiter>,
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

    /// Sends away those whose time is up, and says when to look again.
    pub(super) fn send_away(&mut self, now: Instant) -> Option<Instant> {
        while let Some(late) = self.waiters.pop_front_if(|waiter| waiter.deadline <= now) {
            let waiting = 1 + self.len();
            // Or it has gone by itself.
            let _ = late.turn.send(Err(waiting));
        }
        let next = self.waiters.front().map(|waiter| waiter.deadline);
        self.timed = next.is_some();
        next
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
