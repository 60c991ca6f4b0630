//! Distributions: a lock-free one that is recorded into, and a sparse one that travels.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ::histogram::{AtomicHistogram, Config};
use serde::{Deserialize, Serialize};

/// One unit as it is stored: a value is kept in millionths, so a second in microseconds.
const PER_UNIT: f64 = 1e6;

/// Buckets of 1/64 of their value, whose middle is off by at most 0.8 %, up to 4.5 billion units.
const CONFIG: Config = match Config::new(6, 52) {
    Ok(config) => config,
    Err(_) => panic!("6 and 52 are a valid geometry"),
};
const MAX_STORED: u64 = (1 << 52) - 1;

/// The lowest and highest stored value of each bucket.
static RANGES: LazyLock<Vec<(u64, u64)>> = LazyLock::new(|| {
    let dense = ::histogram::Histogram::with_config(&CONFIG);
    (&dense).into_iter().map(|bucket| (bucket.start(), bucket.end())).collect()
});

/// What a histogram's handle records into.
pub(crate) struct Recording {
    buckets: AtomicHistogram,
    sum: AtomicU64, // the bits of an f64
}

/// A dense histogram to read recordings through, kept from one to the next to save its 24 kB.
pub(crate) struct Scratch(::histogram::Histogram);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(::histogram::Histogram::with_config(&CONFIG))
    }
}

impl Recording {
    pub(crate) fn new() -> Recording {
        Recording { buckets: AtomicHistogram::with_config(&CONFIG), sum: AtomicU64::new(0f64.to_bits()) }
    }

    /// The buckets are read one by one while others write, so a count may be ahead of the sum by a few values.
    pub(crate) fn read(&self, scratch: &mut Scratch) -> Histogram {
        let mut read =
            Histogram { buckets: Vec::new(), sum: f64::from_bits(self.sum.load(Ordering::Relaxed)) };
        if self.buckets.load_into(&mut scratch.0).is_ok() {
            let counts = (0u32..).zip(scratch.0.as_slice());
            read.buckets =
                counts.filter(|(_, count)| **count > 0).map(|(index, count)| (index, *count)).collect();
        }
        read
    }
}

impl metrics::HistogramFn for Recording {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        if value.is_nan() {
            return;
        }
        let stored = ((value * PER_UNIT).round() as u64).min(MAX_STORED); // `as` takes what is below zero to zero
        let count = count as u64;
        if self.buckets.add(stored, count).is_ok() {
            let added = value.clamp(0.0, MAX_STORED as f64 / PER_UNIT) * count as f64;
            let add = |bits| Some((f64::from_bits(bits) + added).to_bits());
            let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }
}

/// A distribution of values: how many there were, their sum, and any quantile within 1 %.
///
/// It holds only the buckets that have values, so an idle one costs nothing to send.
///
/// Values below 50 millionths of a unit (50 µs, where the unit is a second) are rounded to the millionth, which
/// is coarser than 1 %.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct Histogram {
    /// Index and count, by ascending index.
    buckets: Vec<(u32, u64)>,
    sum: f64,
}

#[derive(Deserialize)]
struct Wire {
    buckets: Vec<(u32, u64)>,
    sum: f64,
}

impl TryFrom<Wire> for Histogram {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        if !wire.buckets.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("a histogram's buckets are out of order");
        }
        if wire.buckets.last().is_some_and(|(index, _)| *index as usize >= RANGES.len()) {
            return Err("a histogram has a bucket beyond the last");
        }
        Ok(Histogram { buckets: wire.buckets, sum: wire.sum })
    }
}

impl Histogram {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |total, (_, count)| total.saturating_add(*count))
    }

    /// The values added up.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// The average, if there are values.
    pub fn mean(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.sum / self.count() as f64)
    }

    /// The value that a share `q` (0 to 1) of all values do not exceed, if there are values.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = ((self.count() as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0u64;
        let at_rank = self.buckets.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        let (low, high) = RANGES[at_rank.or(self.buckets.last())?.0 as usize];
        Some((low as f64 + high as f64) / 2.0 / PER_UNIT)
    }

    /// How many values are at most `limit`.
    ///
    /// A bucket that the limit falls into counts wholly, so that values equal to the limit always count.
    pub fn count_up_to(&self, limit: f64) -> u64 {
        let limit = (limit * PER_UNIT).round() as u64;
        let below = self.buckets.iter().take_while(|(index, _)| RANGES[*index as usize].0 <= limit);
        below.fold(0, |total, (_, count)| total.saturating_add(*count))
    }

    /// Takes the other's values in.
    pub fn add(&mut self, other: &Histogram) {
        if other.is_empty() {
            return;
        }
        let mut merged = Vec::with_capacity(self.buckets.len().max(other.buckets.len()));
        let mut ours = self.buckets.iter().copied().peekable();
        let mut theirs = other.buckets.iter().copied().peekable();
        loop {
            let next = match (ours.peek(), theirs.peek()) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    let sum = (a.0, a.1.saturating_add(b.1));
                    ours.next();
                    theirs.next();
                    Some(sum)
                }
                (Some(a), Some(b)) if a.0 < b.0 => ours.next(),
                (Some(_), None) => ours.next(),
                _ => theirs.next(),
            };
            match next {
                Some(bucket) => merged.push(bucket),
                None => break,
            }
        }
        self.buckets = merged;
        self.sum += other.sum;
    }

    /// The values that came after `earlier` was read; all of them, if `earlier` is not a past of this histogram.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut rest = Vec::new();
        let mut past = earlier.buckets.iter().peekable();
        for &(index, count) in &self.buckets {
            let before = past.next_if(|bucket| bucket.0 == index).map_or(0, |bucket| bucket.1);
            match count.checked_sub(before) {
                Some(0) => {}
                Some(more) => rest.push((index, more)),
                None => return self.clone(),
            }
        }
        // A bucket that was there and is gone: the process started anew.
        if past.peek().is_some() {
            return self.clone();
        }
        let sum = if rest.is_empty() { 0.0 } else { (self.sum - earlier.sum).max(0.0) };
        Histogram { buckets: rest, sum }
    }
}
