//! Durations, counted in buckets whose width grows with the duration.

use std::time::Duration;

/// Each doubling is cut into so many buckets: a quantile is at most a sixteenth off.
const STEPS: u64 = 8;
const STEP_BITS: u32 = STEPS.ilog2();
/// Some twelve days; longer counts as this.
const MAX_MICROS: u64 = (1 << 40) - 1;

/// A log-linear histogram, no longer than its longest duration needs: 300 bytes up to a millisecond.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    counts: Vec<u32>,
}

impl Histogram {
    pub(super) fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).min(MAX_MICROS);
        let bucket = bucket(micros);
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(1);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
    }

    /// The middle of the bucket in which the duration lies that the part `quantile` of all stays within.
    pub(super) fn quantile(&self, quantile: f64) -> Duration {
        let total: u64 = self.counts.iter().map(|count| u64::from(*count)).sum();
        let wanted = ((total as f64 * quantile).ceil() as u64).max(1);
        let mut sum = 0;
        let bucket = self.counts.iter().position(|count| {
            sum += u64::from(*count);
            sum >= wanted
        });
        let Some(bucket) = bucket else { return Duration::ZERO };
        let (low, high) = (lowest(bucket), lowest(bucket + 1));
        Duration::from_nanos((low + high - 1) * 500)
    }
}

/// The first `STEPS` buckets are a microsecond wide, the next `STEPS` too, then two, four and so on.
fn bucket(micros: u64) -> usize {
    let doublings = (micros | (STEPS - 1)).ilog2() - (STEP_BITS - 1);
    let shift = doublings.saturating_sub(1);
    (u64::from(shift) * STEPS + (micros >> shift)) as usize
}

fn lowest(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    (bucket - shift * STEPS) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_most_a_sixteenth_off() {
        for micros in
            (0..2000).chain((11..39).flat_map(|power| [(1 << power) - 1, 1 << power, 3 << (power - 1)]))
        {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_micros(micros));
            let found = histogram.quantile(0.5).as_secs_f64() * 1e6;
            assert!(
                (found - micros as f64).abs() <= micros as f64 / 16.0 + 0.5,
                "{micros} was found as {found}"
            );
            assert!(lowest(bucket(micros)) <= micros && micros < lowest(bucket(micros) + 1), "{micros}");
        }
    }

    #[test]
    fn quantiles_are_those_of_all_that_was_merged() {
        let (mut all, mut slow) = (Histogram::default(), Histogram::default());
        (0..99).for_each(|_| all.record(Duration::from_millis(1)));
        slow.record(Duration::from_secs(1));
        all.merge(&slow);
        let near = |found: Duration, wanted: f64| (found.as_secs_f64() / wanted - 1.0).abs() < 0.07;
        assert!(near(all.quantile(0.99), 0.001), "{all:?}");
        assert!(near(all.quantile(1.0), 1.0), "{all:?}");
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
    }
}
