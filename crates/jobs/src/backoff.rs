use std::time::Duration;

/// The waits of a job that comes back after its worker vanished: `base`, doubled by each crash in a row, at most `max`.
/// The backends draw from the upper half of it: the databases have their own dice.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

/// How long to wait after failure number `failures` (the first is 1): anything up to [`ceiling`].
///
/// Full jitter, so that jobs which failed together do not come back together.
pub(crate) fn full_jitter(base: Duration, max: Duration, failures: u32) -> Duration {
    ceiling(base, max, failures).mul_f64(rand::random_range(0.0..=1.0))
}

/// `base`, doubled by each failure after the first, at most `max`.
pub(crate) fn ceiling(base: Duration, max: Duration, failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(max)
}

/// The shortest of what [`around`] gives, as a part of the interval.
pub(crate) const SHORTEST: f64 = 0.8;

/// The interval, give or take a fifth, so that many pollers do not fall into step.
pub(crate) fn around(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(SHORTEST..=1.2))
}

/// Waits ever longer while the database is away: up to 100 ms at first, up to 5 s later.
#[derive(Debug, Default)]
pub(crate) struct Weather {
    failures: u32,
}

impl Weather {
    pub(crate) fn is_clear(&self) -> bool {
        self.failures == 0
    }

    pub(crate) fn clear(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        full_jitter(Duration::from_millis(100), Duration::from_secs(5), self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_until_its_maximum() {
        let ceilings: Vec<u64> = [1, 2, 3, 10, 33, 64, u32::MAX]
            .map(|failures| ceiling(Duration::from_secs(1), Duration::from_secs(3600), failures).as_secs())
            .into();
        assert_eq!(ceilings, [1, 2, 4, 512, 3600, 3600, 3600]);
    }

    #[test]
    fn jitter_stays_below_the_ceiling_and_spreads() {
        let second = Duration::from_secs(1);
        let waits: Vec<Duration> = (0..1000).map(|_| full_jitter(second, second, 1)).collect();
        assert!(waits.iter().all(|wait| *wait <= second));
        assert!(
            waits.iter().any(|wait| *wait < second / 4) && waits.iter().any(|wait| *wait > second * 3 / 4)
        );
    }
}
