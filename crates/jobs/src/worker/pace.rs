use std::time::Duration;

use tokio::time::Instant;

/// Of how much work a worker fetches ahead of its places, twice: what waits, and what is on its way.
const WINDOW: Duration = Duration::from_millis(50);

/// A rate is measured anew after so much work.
const ENOUGH: Duration = Duration::from_millis(5);

/// How fast the jobs of a queue end while there are any, and so how many to fetch ahead: as many as end within
/// [`WINDOW`]. It begins with none and grows at most fivefold a fetch, so that a worker finds out how long jobs take
/// before it takes many from the others.
#[derive(Debug, Default)]
pub(super) struct Pace {
    ended: u64,
    busy: Duration,
    busy_since: Option<Instant>,
    /// Jobs a second.
    rate: Option<f64>,
    ahead: usize,
}

impl Pace {
    /// Some of the queue's jobs are here now.
    pub(super) fn begin(&mut self, now: Instant) {
        self.busy_since.get_or_insert(now);
    }

    /// One ended; `last` if none is left.
    pub(super) fn end(&mut self, now: Instant, last: bool) {
        self.ended += 1;
        if last {
            self.idle(now);
        }
    }

    /// None is left.
    pub(super) fn idle(&mut self, now: Instant) {
        if let Some(since) = self.busy_since.take() {
            self.busy += now.duration_since(since);
        }
    }

    /// Fetch none ahead until more is known.
    pub(super) fn restart(&mut self) {
        self.ahead = 0;
    }

    /// How many to fetch ahead of `places`, at most `max`.
    pub(super) fn ahead(&mut self, now: Instant, places: usize, max: usize) -> usize {
        let busy = self.busy + self.busy_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        if busy < ENOUGH && self.ended < places as u64 {
            return self.ahead;
        }
        let measured = self.ended as f64 / busy.max(Duration::from_micros(1)).as_secs_f64();
        let rate = self.rate.map_or(measured, |rate| (rate + measured) / 2.0);
        self.rate = Some(rate);
        (self.ended, self.busy) = (0, Duration::ZERO);
        if let Some(since) = &mut self.busy_since {
            *since = now;
        }
        let reach = (rate * WINDOW.as_secs_f64()) as usize;
        self.ahead = reach.min(self.ahead.saturating_mul(4).saturating_add(places)).min(max);
        self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of `count` jobs on `count` places that take so long, and what is fetched ahead after each.
    fn rounds(rounds: u32, count: usize, each: Duration) -> Vec<usize> {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut round = |_| {
            pace.begin(now);
            now += each;
            (1..=count).for_each(|n| pace.end(now, n == count));
            pace.ahead(now, count, 1000)
        };
        (0..rounds).map(&mut round).collect()
    }

    #[test]
    fn short_jobs_are_fetched_ahead_up_to_the_bound_and_long_ones_are_not() {
        assert_eq!(rounds(4, 50, Duration::from_micros(50)), [50, 250, 1000, 1000]);
        assert_eq!(rounds(3, 50, Duration::from_millis(100)), [25, 25, 25]);
        assert_eq!(rounds(3, 50, Duration::from_secs(10)), [0, 0, 0]);
    }

    #[test]
    fn jobs_that_become_long_are_no_longer_fetched_ahead() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        let mut ahead = Vec::new();
        for each in [1u64, 1, 1, 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000] {
            pace.begin(now);
            now += Duration::from_millis(each);
            (1..=50).for_each(|n| pace.end(now, n == 50));
            ahead.push(pace.ahead(now, 50, 1000));
        }
        assert_eq!(ahead[2], 1000);
        assert!(ahead.is_sorted_by_key(|ahead| std::cmp::Reverse(*ahead)) || ahead[10] < 20, "{ahead:?}");
    }
}
