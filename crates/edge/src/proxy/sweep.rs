//! Deadlines without a timer each: a thread looks through all of its own every 50 ms.
//!
//! A timer per wait would be armed and disarmed several times for each request and fire almost never. Here arming is a
//! store, and what it costs to look through ten thousand deadlines twenty times a second is not measurable.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

const PERIOD: Duration = Duration::from_millis(50);

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    static SLOTS: RefCell<Slots> = const { RefCell::new(Slots { all: Vec::new(), free: Vec::new() }) };
}

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
}

#[derive(Default)]
struct Slot {
    due: Option<Instant>,
    waker: Option<Waker>,
}

/// The time of this thread's last sweep: at most 50 ms ago where [`run`] runs.
pub(crate) fn now() -> Instant {
    NOW.get().unwrap_or_else(|| {
        let now = Instant::now();
        NOW.set(Some(now));
        now
    })
}

/// Sweeps this thread's deadlines for ever, and calls `after` each time.
pub(crate) async fn run(mut after: impl FnMut()) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sweep(Instant::now());
        after();
    }
}

fn sweep(now: Instant) {
    NOW.set(Some(now));
    wake(|slot| slot.due.is_some_and(|due| due <= now));
}

/// Wakes every task that has looked at a deadline of this thread, so that it looks again at what else has changed.
pub(crate) fn wake_all() {
    wake(|_| true);
}

fn wake(which: impl Fn(&Slot) -> bool) {
    // What a waker does may reach back to here, so the slots are let go first.
    let due: Vec<Waker> = SLOTS.with_borrow_mut(|slots| {
        slots.all.iter_mut().filter(|slot| which(slot)).filter_map(|slot| slot.waker.take()).collect()
    });
    due.into_iter().for_each(Waker::wake);
}

/// One deadline, used again and again. It passes up to 100 ms late, and never early.
#[derive(Debug)]
pub(crate) struct Deadline {
    slot: usize,
    // The slot is its thread's.
    _not_send: PhantomData<*const ()>,
}

impl Deadline {
    /// A deadline that is not set.
    pub(crate) fn new() -> Self {
        let slot = SLOTS.with_borrow_mut(|slots| {
            slots.free.pop().unwrap_or_else(|| {
                slots.all.push(Slot::default());
                slots.all.len() - 1
            })
        });
        Self { slot, _not_send: PhantomData }
    }

    /// It passes that long from now, wherever it stood before.
    pub(crate) fn set(&self, from_now: Duration) {
        // The time of the last sweep lies up to one period back. What is too far off to be told never comes.
        let due = now().checked_add(from_now.saturating_add(PERIOD));
        self.with(|slot| slot.due = due);
    }

    /// It passes that long from now if it is set and would pass later.
    pub(crate) fn shorten(&self, from_now: Duration) {
        let latest = now().checked_add(from_now.saturating_add(PERIOD));
        self.with(|slot| slot.due = slot.due.and_then(|due| latest.map(|latest| due.min(latest))));
    }

    /// It passes no more until it is set again.
    pub(crate) fn clear(&self) {
        self.with(|slot| slot.due = None);
    }

    /// Whether it has passed. If not, the task is woken when it passes.
    pub(crate) fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        let now = now();
        self.with(|slot| {
            if slot.due.is_some_and(|due| due <= now) {
                return Poll::Ready(());
            }
            if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                slot.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .unwrap_or(Poll::Pending)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        SLOTS.with_borrow_mut(|slots| slots.all.get_mut(self.slot).map(change))
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // At the end of a thread the slots may be gone already.
        let waker = SLOTS.try_with(|slots| {
            let slots = &mut *slots.borrow_mut();
            slots.free.push(self.slot);
            slots.all.get_mut(self.slot).map(std::mem::take).map(|slot| slot.waker)
        });
        drop(waker);
    }
}

/// What the future gives, or `None` if it takes longer than that.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let deadline = Deadline::new();
    deadline.set(limit);
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => deadline.poll_expired(cx).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(deadline: &Deadline) -> bool {
        deadline.poll_expired(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_when_it_is_due_and_not_before() {
        let sweeps = tokio::task::LocalSet::new();
        sweeps.spawn_local(run(|| ()));
        sweeps
            .run_until(async {
                let begun = Instant::now();
                for millis in [0, 1, 49, 50, 51, 1000, 10_020] {
                    let limit = Duration::from_millis(millis);
                    tokio::time::sleep(Duration::from_millis(millis % 37)).await;
                    let begun = Instant::now();
                    assert_eq!(within(limit, std::future::pending::<()>()).await, None);
                    let took = begun.elapsed();
                    assert!(took >= limit && took <= limit + 2 * PERIOD, "{took:?} instead of {limit:?}");
                }
                assert!(now() > begun);
                assert_eq!(within(Duration::MAX, async { 7 }).await, Some(7));
            })
            .await;
    }

    #[test]
    fn a_cleared_deadline_does_not_pass_and_a_slot_is_used_again() {
        let deadline = Deadline::new();
        deadline.set(Duration::from_secs(1));
        sweep(Instant::now() + Duration::from_secs(2));
        assert!(expired(&deadline));
        deadline.clear();
        assert!(!expired(&deadline));
        let slot = deadline.slot;
        deadline.set(Duration::ZERO);
        drop(deadline);
        let next = Deadline::new();
        assert_eq!(next.slot, slot);
        sweep(Instant::now() + Duration::from_secs(9));
        assert!(!expired(&next));
    }
}
