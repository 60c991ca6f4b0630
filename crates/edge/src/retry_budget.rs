//! Bounds what retries may add to the load.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::BalanceConfig;

/// Seconds over which deposits and withdrawals are summed up.
const WINDOW: u32 = 10;
/// What a retry takes. A request brings as many as the budget has per cent.
const RETRY: i32 = 100;

/// A share of the requests, and a few each second besides, may be retries.
///
/// When a service fails as a whole, each retry is load that it cannot answer. A fixed number of retries for each
/// request multiplies the load just then; a budget adds its share and no more. Each request deposits, each retry
/// withdraws, and both are forgotten after ten seconds: the token bucket over a window of Finagle's `RetryBudget`.
///
/// All cores share it without a lock. Two that withdraw at the same instant may both get the last retry.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    began: Instant,
    deposit: i32,
    reserve: i64,
    // For each second of the window, which second it is (upper half) and its balance (lower half, signed).
    seconds: [AtomicU64; WINDOW as usize],
}

impl RetryBudget {
    pub(crate) fn new(config: &BalanceConfig) -> Self {
        Self {
            began: Instant::now(),
            deposit: i32::try_from(config.retry_percent).unwrap_or(i32::MAX),
            reserve: i64::from(config.min_retries_per_second) * i64::from(WINDOW) * i64::from(RETRY),
            seconds: Default::default(),
        }
    }

    /// Counts a request that is sent for the first time. `now` may lag by a few hundred milliseconds.
    pub(crate) fn deposit(&self, now: Instant) {
        self.add(self.second(now), self.deposit);
    }

    /// Takes one retry out, if there is one.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let second = self.second(now);
        let recent = self.seconds.iter().map(|slot| unpack(slot.load(Ordering::Relaxed)));
        let balance: i64 = recent
            .filter(|(of, _)| second.saturating_sub(*of) < WINDOW)
            .map(|(_, balance)| i64::from(balance))
            .sum();
        let enough = balance + self.reserve >= i64::from(RETRY);
        if enough {
            self.add(second, -RETRY);
        }
        enough
    }

    fn add(&self, second: u32, amount: i32) {
        let Some(slot) = self.seconds.get((second % WINDOW) as usize) else { return };
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (of, balance) = unpack(packed);
            // A slot of ten seconds ago begins anew.
            Some(pack(second, if of == second { balance.saturating_add(amount) } else { amount }))
        });
    }

    fn second(&self, now: Instant) -> u32 {
        // Counted from a window on, so that an untouched slot is of a second long past. 136 years suffice.
        u32::try_from(now.saturating_duration_since(self.began).as_secs())
            .unwrap_or(u32::MAX)
            .saturating_add(WINDOW)
    }
}

fn pack(second: u32, balance: i32) -> u64 {
    u64::from(second) << 32 | u64::from(balance.cast_unsigned())
}

fn unpack(packed: u64) -> (u32, i32) {
    ((packed >> 32) as u32, (packed as u32).cast_signed())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn budget(retry_percent: u32, min_retries_per_second: u32) -> RetryBudget {
        RetryBudget::new(&BalanceConfig { retry_percent, min_retries_per_second, ..Default::default() })
    }

    fn retries(budget: &RetryBudget, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn a_share_of_the_requests_may_be_retries() {
        let budget = budget(20, 0);
        let now = Instant::now();
        assert_eq!(retries(&budget, now), 0);
        (0..1000).for_each(|_| budget.deposit(now));
        assert_eq!(retries(&budget, now), 200);
    }

    #[test]
    fn a_quiet_service_may_retry_a_few_times_a_second() {
        let budget = budget(20, 10);
        let now = Instant::now();
        assert_eq!(retries(&budget, now), 100);
        assert_eq!(retries(&budget, now + Duration::from_secs(9)), 0);
        assert_eq!(retries(&budget, now + Duration::from_secs(11)), 100);
    }

    #[test]
    fn what_was_not_used_is_forgotten() {
        let budget = budget(20, 0);
        let begun = Instant::now();
        for second in 0..30 {
            (0..100).for_each(|_| budget.deposit(begun + Duration::from_secs(second)));
        }
        assert_eq!(retries(&budget, begun + Duration::from_secs(29)), 200);
        assert_eq!(retries(&budget, begun + Duration::from_secs(60)), 0);
    }

    #[test]
    fn retries_from_many_threads_do_not_exceed_the_budget_by_more_than_a_few() {
        let budget = budget(50, 0);
        let now = Instant::now();
        let taken: usize = std::thread::scope(|scope| {
            let work = || {
                (0..10_000)
                    .filter(|_| {
                        budget.deposit(now);
                        budget.withdraw(now)
                    })
                    .count()
            };
            let threads = [scope.spawn(work), scope.spawn(work)];
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!((9_990..=10_010).contains(&taken), "{taken} retries");
    }
}
