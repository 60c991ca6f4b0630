//! What the benchmarks share: how they take turns, and what they read.

#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// `cargo test --benches` runs benchmarks too, only to see that they work.
pub(crate) fn is_trial() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}

/// Processor time of the thread that asks.
pub(crate) fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The median, and the quartiles around it: `1.23 (1.20–1.27)`.
pub(crate) fn spread(values: impl IntoIterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    format!("{:.2} ({:.2}–{:.2})", at(0.5), at(0.25), at(0.75))
}

/// A small generator of randomness, the same at each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Keys of which the nth most popular is asked for in proportion to n to the power of -`exponent`.
pub(crate) struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(keys: usize, exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let cumulated = (1..=keys).map(|n| {
            sum += (n as f64).powf(-exponent);
            sum
        });
        Zipf { cumulated: cumulated.collect() }
    }

    pub(crate) fn key(&self, random: &mut Random) -> u64 {
        let at = random.unit() * self.cumulated.last().unwrap();
        self.cumulated.partition_point(|sum| *sum < at) as u64
    }
}

/// The requests of a trace, each a key: see `traces/README.md`.
pub(crate) fn trace(xz: &[u8]) -> Vec<u32> {
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut &*xz, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|key| u32::from_be_bytes(key.try_into().unwrap())).collect()
}
