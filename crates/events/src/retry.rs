use std::time::Duration;

/// The wait before the attempt after `attempt`: doubling from `min` to `max`, shortened by up to half at random, so that
/// what failed together does not come back together.
pub(crate) fn delay(attempt: u32, min: Duration, max: Duration) -> Duration {
    let doublings = attempt.saturating_sub(1).min(31);
    min.saturating_mul(1 << doublings).min(max).mul_f64(rand::random_range(0.5..=1.0))
}

/// `interval`, give or take a quarter, so that processes do not poll in step.
pub(crate) fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.75..=1.25))
}

/// The pauses of a loop whose database is in trouble.
#[derive(Default)]
pub(crate) struct Trouble {
    failures: u32,
}

impl Trouble {
    pub(crate) fn over(&mut self) {
        self.failures = 0;
    }

    pub(crate) fn pause(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        delay(self.failures, Duration::from_millis(200), Duration::from_secs(5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(600));
        for (attempt, most) in [(1, 1), (2, 2), (5, 16), (11, 600), (u32::MAX, 600)] {
            let wait = delay(attempt, min, max);
            let most = Duration::from_secs(most);
            assert!(wait <= most && wait >= most / 2, "attempt {attempt}: {wait:?}");
        }
    }
}
