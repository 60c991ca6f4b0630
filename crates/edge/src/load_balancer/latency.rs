//! How long an upstream takes to answer, as far as one number can say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds on a balancer's clock; 0 is before its start.
pub(super) type Nanos = u64;

/// A stamp is in units of 2^16 ns, 66 µs, so that 32 bits wrap after three days.
const STAMP_SHIFT: u32 = 16;
const STAMPS_PER_SECOND: f32 = 1e9 / (1_u64 << STAMP_SHIFT) as f32;

/// An exponentially weighted moving average of latencies that rises to a peak at once and falls slowly, with time and
/// not with the number of samples: the peak EWMA of Finagle's and Linkerd's balancers.
///
/// Value (`f32`, seconds) and time stamp share one word, so that all cores update both at once without a lock.
#[derive(Debug, Default)]
pub(super) struct PeakEwma(AtomicU64);

impl PeakEwma {
    /// Takes in one latency.
    pub(super) fn record(&self, sample: f32, now: Nanos, decay: Duration) {
        self.update(
            now,
            decay,
            |decayed, weight| {
                if sample > decayed { sample } else { decayed + sample * (1.0 - weight) }
            },
        );
    }

    /// Takes in that an answer takes at least so long.
    pub(super) fn at_least(&self, sample: f32, now: Nanos, decay: Duration) {
        self.update(now, decay, |decayed, _| decayed.max(sample));
    }

    /// The present value in seconds; 0 before the first sample. It falls while there are no samples, so that an upstream
    /// that was slow once is asked again some time.
    pub(super) fn get(&self, now: Nanos, decay: Duration) -> f32 {
        let (value, stamp) = unpack(self.0.load(Ordering::Relaxed));
        value * weight(stamp, now, decay)
    }

    /// Seconds since it was last updated.
    pub(super) fn age(&self, now: Nanos) -> f32 {
        let (_, stamp) = unpack(self.0.load(Ordering::Relaxed));
        passed(stamp, now) as f32 / STAMPS_PER_SECOND
    }

    fn update(&self, now: Nanos, decay: Duration, next: impl Fn(f32, f32) -> f32) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let (value, stamp) = unpack(packed);
            let weight = weight(stamp, now, decay);
            Some(u64::from(next(value * weight, weight).to_bits()) << 32 | (now >> STAMP_SHIFT) & 0xFFFF_FFFF)
        });
    }
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

/// What is left of an old value.
fn weight(stamp: u32, now: Nanos, decay: Duration) -> f32 {
    match passed(stamp, now) {
        0 => 1.0,
        passed => (-(passed as f32) / (STAMPS_PER_SECOND * decay.as_secs_f32())).exp(),
    }
}

/// Units since the stamp.
fn passed(stamp: u32, now: Nanos) -> u32 {
    let passed = ((now >> STAMP_SHIFT) as u32).wrapping_sub(stamp);
    // Another core may be ahead by a moment.
    if passed > u32::MAX - (1 << 16) { 0 } else { passed }
}
