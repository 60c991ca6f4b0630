//! Where requests wait while every upstream has as many as it can take.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::OverloadConfig;
use crate::proxy::answer::Refusal;

/// A queue that has not been empty for so long, and for the time of so many answers, is no burst if it is long besides:
/// at moderate load as many wait now and then by mere chance.
const BURST: Duration = Duration::from_millis(100);
const BURST_ANSWERS: u32 = 5;
const LONG: usize = 8;
/// Under overload as many may wait as this part of what is in flight, which makes an answer later by half.
const STANDING: u32 = 2;
/// Overload is over when over some bursts' time somebody waited in less than this share.
const OVER: f64 = 0.4;
const BURSTS: f64 = 4.0;
/// Time from one that is served to the next of which nothing has to be known: even 1000 wait no longer than a second.
const SHORT_INTERVAL: Duration = Duration::from_millis(1);

/// The queue of a group of upstreams. First come, first served; whoever cannot be served in time is refused at once.
///
/// A burst is waited out. A queue that does not empty is overload, and waiting there helps nobody: it makes each answer
/// later and brings none more. So it is kept short then, if that is
/// [configured](OverloadConfig::short_queue), and those that waited longest are refused, as their clients are the first
/// to give up. That is CoDel's distinction (RFC 8289) applied to requests, as in "Fail at Scale" (Maurer,
/// ACM Queue 2015), with a bound by count where theirs is a time, so that it suits fast and slow services alike.
///
/// Where it is waited is the edge and not the upstream, so that a client that leaves costs the upstream nothing.
#[derive(Debug)]
pub(crate) struct Queue {
    max: usize,
    timeout: Duration,
    kept_short: bool,
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
    /// When somebody last came while nobody waited.
    begun: Option<Instant>,
    /// When somebody was last served, or, before, began to wait.
    served: Option<Instant>,
    /// Time from one that is served to the next, averaged.
    interval: Duration,
    /// Whether the queue is kept short.
    overloaded: bool,
    /// The share of the last time in which somebody waited, when that was reckoned, and how long a burst may last.
    busy: f64,
    reckoned: Option<Instant>,
    burst: Duration,
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
            kept_short: config.short_queue,
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
        let deadline = now.checked_add(self.timeout).map_or(deadline, |timeout| deadline.min(timeout));
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
        let standing = load.in_flight.div_ceil(STANDING).max(1) as usize;
        line.judge(now, (BURST_ANSWERS * load.usual).max(BURST));
        let most = if self.kept_short && line.overloaded { self.max.min(standing) } else { self.max };
        if line.waiters.len() > most {
            line.shorten(most);
        }
        let before = u32::try_from(line.waiters.len()).unwrap_or(u32::MAX);
        let turn = now.checked_add(line.interval.saturating_mul(before));
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
        let interval = line.served.map_or(Duration::ZERO, |served| now.saturating_duration_since(served));
        // One long pause, such as that after a cut of the limit, does not make all that follow late.
        let usual = line.interval.max(SHORT_INTERVAL);
        line.interval = (3 * usual + interval.min(4 * usual)) / 4;
        line.served = Some(now);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut line = self.queue.lock();
        line.reckon(Instant::now());
        line.waiters.retain(|other| !Arc::ptr_eq(other, &self.waiter));
        self.queue.waiting.store(line.waiters.len(), Ordering::Relaxed);
        // There may be another place, and the turn that this one did not use.
        line.wake_first();
    }
}

impl Line {
    /// Tells a burst, which lasts for so long at most, from overload, as one more comes.
    fn judge(&mut self, now: Instant, burst: Duration) {
        self.burst = burst;
        self.reckon(now);
        let lasts = self.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        if self.overloaded {
            self.overloaded = self.busy > OVER;
        } else if self.waiters.len() >= LONG && lasts > burst {
            (self.overloaded, self.busy) = (true, 1.0);
        }
        if self.waiters.is_empty() {
            self.begun = Some(now);
            self.served = Some(now);
        }
    }

    /// To be called before the queue becomes empty or ceases to be so.
    fn reckon(&mut self, now: Instant) {
        let past = self.reckoned.map_or(Duration::ZERO, |reckoned| now.saturating_duration_since(reckoned));
        let weight = (past.as_secs_f64() / (BURSTS * self.burst.max(BURST).as_secs_f64())).min(1.0);
        let busy = if self.waiters.is_empty() { 0.0 } else { 1.0 };
        self.busy += weight * (busy - self.busy);
        self.reckoned = Some(now);
    }

    /// Refuses those that have waited longest, down to so many.
    fn shorten(&mut self, most: usize) {
        for waiter in self.waiters.drain(..self.waiters.len() - most) {
            waiter.refused.store(true, Ordering::Relaxed);
            waiter.turn.notify_one();
        }
        self.wake_first();
    }

    fn wake_first(&self) {
        if let Some(first) = self.waiters.front() {
            first.turn.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const LOAD: Load = Load { in_flight: 4, usual: Duration::ZERO };
    const SECOND: Duration = Duration::from_secs(1);

    fn queue(max_queue: usize) -> Queue {
        Queue::new(&OverloadConfig { max_queue, queue_timeout: SECOND, ..OverloadConfig::default() })
    }

    /// Places that are free.
    struct Places(Cell<u32>);

    impl Places {
        fn take(&self) -> Option<()> {
            self.0.set(self.0.get().checked_sub(1)?);
            Some(())
        }
    }

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_first_is_served_first_and_as_many_as_there_are_places() {
        let (queue, places, far) = (queue(9), Places(Cell::new(0)), Instant::now() + 60 * SECOND);
        let mut first = pin!(queue.wait(far, LOAD, || places.take()));
        let mut second = pin!(queue.wait(far, LOAD, || places.take()));
        let mut third = pin!(queue.wait(far, LOAD, || places.take()));
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(third.as_mut()).is_pending());
        places.0.set(2);
        queue.wake();
        assert!(poll(third.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(first.as_mut()).is_ready());
        assert!(poll(second.as_mut()).is_ready(), "one wake was enough for two places");
        assert!(poll(third.as_mut()).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_passes_the_turn_on() {
        let (queue, places, far) = (queue(9), Places(Cell::new(0)), Instant::now() + 60 * SECOND);
        let mut first = Box::pin(queue.wait(far, LOAD, || places.take()));
        let mut second = pin!(queue.wait(far, LOAD, || places.take()));
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        places.0.set(1);
        queue.wake();
        drop(first);
        assert!(poll(second.as_mut()).is_ready());
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_much_or_too_late_is_refused() {
        let (queue, begun) = (queue(2), Instant::now());
        let mut first = pin!(queue.wait(begun + 60 * SECOND, LOAD, || None::<()>));
        let mut second = pin!(queue.wait(begun + SECOND / 2, LOAD, || None::<()>));
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        assert_eq!(queue.wait(begun + SECOND, LOAD, || Some(())).await, Err(Refusal::Overloaded));
        assert_eq!(begun.elapsed(), Duration::ZERO, "there was no place to wait in");
        assert_eq!(second.await, Err(Refusal::Overloaded));
        assert_eq!(begun.elapsed(), SECOND / 2, "its own deadline");
        assert_eq!(first.await, Err(Refusal::Overloaded));
        assert_eq!(begun.elapsed(), SECOND, "the queue's timeout");
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_served_in_time_does_not_wait() {
        let (queue, places, far) = (queue(9), Places(Cell::new(0)), Instant::now() + 60 * SECOND);
        // One is served each 400 ms.
        for _ in 0..16 {
            let mut served = pin!(queue.wait(far, LOAD, || places.take()));
            assert!(poll(served.as_mut()).is_pending());
            tokio::time::advance(Duration::from_millis(400)).await;
            places.0.set(1);
            queue.wake();
            assert!(poll(served.as_mut()).is_ready());
        }
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(queue.wait(far, LOAD, || places.take()))).collect();
        assert!(waiting.iter_mut().all(|waiting| poll(waiting.as_mut()).is_pending()));
        let fourth = poll(pin!(queue.wait(far, LOAD, || places.take())));
        assert_eq!(fourth, Poll::Ready(Err(Refusal::Overloaded)), "its turn is in 1.2 s, the timeout 1 s");
    }

    #[test]
    fn a_place_that_becomes_free_on_another_core_is_never_missed() {
        let queue = Arc::new(queue(1000));
        let free = Arc::new(AtomicUsize::new(1));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (queue, free) = (Arc::clone(&queue), Arc::clone(&free));
                std::thread::spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    runtime.block_on(async {
                        for _ in 0..2000 {
                            let take = || {
                                let less = |free: usize| free.checked_sub(1);
                                free.try_update(Ordering::AcqRel, Ordering::Relaxed, less).ok()
                            };
                            let far = Instant::now() + 60 * SECOND;
                            queue.wait(far, Load { in_flight: 1000, ..LOAD }, take).await.unwrap();
                            tokio::task::yield_now().await;
                            free.fetch_add(1, Ordering::AcqRel);
                            queue.wake();
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(queue.is_empty());
    }
}
