//! Where requests wait while every upstream has as many as it can take.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::OverloadConfig;
use crate::proxy::answer::Refusal;

/// A queue that has not been empty for this long, or for the time of one answer if that is longer, is no burst.
const BURST: Duration = Duration::from_millis(100);
/// While it is none, the queue may hold this share of what is in flight, which lengthens an answer by as much.
const STANDING: u32 = 4;

/// The queue of a group of upstreams. First come, first served; whoever cannot be served in time is refused at once.
///
/// A burst is waited out. A queue that does not empty is overload, and waiting there helps nobody: it makes each answer
/// later and brings none more. So it is kept short then, and those that waited longest are refused, as their clients
/// are the first to give up. That is CoDel's distinction (RFC 8289) applied to requests, as in "Fail at Scale" (Maurer,
/// ACM Queue 2015), with a bound by count where theirs is a time, so that it suits fast and slow services alike.
#[derive(Debug)]
pub(crate) struct Queue {
    max: usize,
    timeout: Duration,
    // Read at each answer's end; the lock is taken only if somebody waits.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

/// What the upstreams of the group do at the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Requests that they have.
    pub(crate) in_flight: u32,
    /// How long an answer usually takes ([`GradientLimit::usual`](super::GradientLimit::usual)).
    pub(crate) usual: Duration,
}

#[derive(Debug, Default)]
struct Line {
    waiters: VecDeque<Arc<Waiter>>,
    /// Since when somebody waits; and until when, while nobody does.
    changed: Option<Instant>,
    /// When somebody was last served, or, before, began to wait.
    served: Option<Instant>,
    /// Time from one that is served to the next, averaged.
    interval: Duration,
    overloaded: bool,
}

#[derive(Debug, Default)]
struct Waiter {
    turn: Notify,
    refused: AtomicBool,
}

impl Queue {
    pub(crate) fn new(config: &OverloadConfig) -> Self {
        Self {
            max: config.max_queue,
            timeout: config.queue_timeout,
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
        }
    }

    /// Whether somebody waits, so that who comes now has to wait too.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Waits until `take` gives something: it is asked when it is this request's turn and a place may have become free.
    ///
    /// Refused at once if there are too many before it, or it will not be its turn before `deadline` or the queue's own
    /// timeout; and later if it was not.
    ///
    /// Cancel safe: dropping the future gives up the place in the queue, and a turn that came already goes to the next.
    pub(crate) async fn wait<T>(
        &self,
        deadline: Instant,
        load: Load,
        mut take: impl FnMut() -> Option<T>,
    ) -> Result<T, Refusal> {
        let now = Instant::now();
        let deadline = deadline.min(now + self.timeout);
        let place = Place { waiter: self.enter(now, deadline, load)?, queue: self };
        // Whoever frees a place looks at `waiting` afterwards; we look for a place after counting ourselves in there.
        // One of the two sees the other.
        fence(Ordering::SeqCst);
        loop {
            if place.is_first()
                && let Some(taken) = take()
            {
                place.served();
                return Ok(taken);
            }
            if tokio::time::timeout_at(deadline, place.waiter.turn.notified()).await.is_err()
                || place.waiter.refused.load(Ordering::Relaxed)
            {
                return Err(Refusal::Overloaded);
            }
        }
    }

    /// Tells the first that a place may be free. To be called after each request's end and after a rise of a limit;
    /// costs nothing worth mentioning if nobody waits.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if !self.is_empty() {
            self.lock().wake_first();
        }
    }

    fn enter(&self, now: Instant, deadline: Instant, load: Load) -> Result<Arc<Waiter>, Refusal> {
        let mut line = self.lock();
        let standing = (load.in_flight / STANDING).max(1) as usize;
        line.judge(now, load.usual.max(BURST));
        let most = if line.overloaded { self.max.min(standing) } else { self.max };
        if line.waiters.len() > most {
            line.shorten(most);
        }
        let before = u32::try_from(line.waiters.len()).unwrap_or(u32::MAX);
        let turn = now.checked_add(line.pace(now).saturating_mul(before));
        let entered = line.waiters.len() < most && turn.is_some_and(|turn| turn <= deadline);
        let waiter = Arc::new(Waiter::default());
        if entered {
            line.waiters.push_back(Arc::clone(&waiter));
        }
        self.waiting.store(line.waiters.len(), Ordering::Relaxed);
        if entered { Ok(waiter) } else { Err(Refusal::Overloaded) }
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // Each change leaves the line whole.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place in the queue, which it leaves whichever way its wait ends.
struct Place<'a> {
    queue: &'a Queue,
    waiter: Arc<Waiter>,
}

impl Place<'_> {
    fn is_first(&self) -> bool {
        self.queue.lock().waiters.front().is_some_and(|first| Arc::ptr_eq(first, &self.waiter))
    }

    fn served(&self) {
        let (mut line, now) = (self.queue.lock(), Instant::now());
        let pace = line.served.map_or(Duration::ZERO, |served| now.saturating_duration_since(served));
        line.interval = if line.interval.is_zero() { pace } else { (line.interval + pace) / 2 };
        line.served = Some(now);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.queue.lock();
        line.waiters.retain(|other| !Arc::ptr_eq(other, &self.waiter));
        self.queue.waiting.store(line.waiters.len(), Ordering::Relaxed);
        if line.waiters.is_empty() {
            line.changed = Some(Instant::now());
        }
        // There may be another place, and the turn that this one did not use.
        line.wake_first();
    }
}

impl Line {
    /// Tells a burst, which lasts for so long at most, from overload, as one more comes.
    fn judge(&mut self, now: Instant, burst: Duration) {
        let lasted = self.changed.is_none_or(|changed| now.saturating_duration_since(changed) > burst);
        if !self.waiters.is_empty() {
            self.overloaded |= lasted;
            return;
        }
        // Under overload the short queue is empty now and then; it is over when nobody has waited for a while.
        if lasted {
            (self.overloaded, self.interval) = (false, Duration::ZERO);
        }
        self.changed = Some(now);
        if !self.overloaded {
            self.served = Some(now);
        }
    }

    /// Refuses those that have waited longest, down to so many.
    fn shorten(&mut self, most: usize) {
        for waiter in self.waiters.drain(..self.waiters.len() - most) {
            waiter.refused.store(true, Ordering::Relaxed);
            waiter.turn.notify_one();
        }
        self.wake_first();
    }

    /// Time from one that is served to the next: as it was, or as it is, if nobody has been served for longer.
    fn pace(&self, now: Instant) -> Duration {
        let silence = self.served.map_or(Duration::ZERO, |served| now.saturating_duration_since(served));
        if self.waiters.is_empty() { self.interval } else { self.interval.max(silence) }
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiters.front() {
            first.turn.notify_one();
        }
    }
}
