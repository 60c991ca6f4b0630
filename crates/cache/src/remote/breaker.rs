use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

const CLOSED: u64 = 0;

/// Lets everybody through while all is well. After a failure it lets through one in `retry_after`, until one succeeds.
pub(crate) struct Breaker {
    start: Instant,
    retry_after: u64,
    /// When the next one may try, in milliseconds since `start`; or [`CLOSED`].
    next_try: AtomicU64,
}

impl Breaker {
    pub(crate) fn new(retry_after: Duration) -> Breaker {
        let retry_after = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        Breaker { start: Instant::now(), retry_after, next_try: AtomicU64::new(CLOSED) }
    }

    pub(crate) fn lets_through(&self) -> bool {
        let next_try = self.next_try.load(Ordering::Relaxed);
        if next_try == CLOSED {
            return true;
        }
        // Of those who come at that time, one wins the exchange and tries for all.
        self.now() >= next_try
            && self
                .next_try
                .compare_exchange(next_try, self.after_a_break(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// After a failure; true if all was well until now.
    pub(crate) fn open(&self) -> bool {
        self.next_try.swap(self.after_a_break(), Ordering::Relaxed) == CLOSED
    }

    /// After a success; true if it ends a break.
    pub(crate) fn close(&self) -> bool {
        self.next_try.load(Ordering::Relaxed) != CLOSED
            && self.next_try.swap(CLOSED, Ordering::Relaxed) != CLOSED
    }

    fn after_a_break(&self) -> u64 {
        self.now().saturating_add(self.retry_after)
    }

    /// Never [`CLOSED`].
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_one_at_a_time_tries() {
        let breaker = Breaker::new(Duration::from_secs(1));
        assert!(breaker.lets_through() && breaker.lets_through());
        assert!(breaker.open(), "the first failure is news");
        assert!(!breaker.open(), "the second is not");
        assert!(!breaker.lets_through());

        advance(Duration::from_millis(1_001)).await;
        assert!(breaker.lets_through());
        assert!(!breaker.lets_through(), "one tries already");

        assert!(breaker.close());
        assert!(!breaker.close());
        assert!(breaker.lets_through() && breaker.lets_through());
    }

    #[tokio::test(start_paused = true)]
    async fn a_try_that_never_ends_is_followed_by_another() {
        let breaker = Breaker::new(Duration::from_secs(1));
        breaker.open();
        for _ in 0..3 {
            advance(Duration::from_millis(1_001)).await;
            assert!(breaker.lets_through());
        }
    }

    #[test]
    fn a_break_past_the_end_of_time_is_no_panic() {
        let breaker = Breaker::new(Duration::MAX);
        breaker.open();
        assert!(!breaker.lets_through());
    }
}
