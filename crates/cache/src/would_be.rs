mod sampler;
mod simulation;

use std::{borrow::Cow, fmt, time::Duration};

use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Serialize};

pub(crate) use sampler::{Sampled, Sampler};

/// How good a choice must be, as a part of what the largest size and the longest TTL would save.
const GOOD_ENOUGH: f64 = 0.9;
/// What part of the load time must be saved for a cache to be worth its trouble.
const WORTH: f64 = 0.1;

/// What a cache of other sizes and TTLs would have done for the same requests.
///
/// From [`Cache::would_be`](crate::Cache::would_be) for a cache that is there, and from
/// [`Observed::would_be`](crate::Observed::would_be) for a function that has none yet. All of it counts from when that
/// was made; the difference of two reports' `requests` and `hits` is what happened between them.
///
/// It shows as a table:
///
/// ```
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let squares = greenwave_cache::observe("square", async |n: u64| Ok::<_, std::io::Error>(n * n));
/// for n in 0..1_000 {
///     squares.call(n % 10).await.unwrap();
/// }
/// let would_be = squares.would_be();
/// println!("{would_be}");
/// assert_eq!(would_be.ratio(100, Duration::from_secs(60)).unwrap().hits, 990);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WouldBe {
    /// Of the cache or the observed function.
    pub name: Cow<'static, str>,
    /// In what sizes are given.
    pub unit: SizeUnit,
    /// How many requests there were.
    pub requests: u64,
    /// How many seconds these would have loaded if there had been no cache at all.
    pub load_seconds: f64,
    /// For each size, from the smallest, each TTL, from the shortest.
    pub ratios: Vec<WouldBeRatio>,
}

/// What [`WouldBe`] has to say of one size and one TTL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WouldBeRatio {
    /// How many entries or bytes the cache would hold.
    pub size: u64,
    /// How long an entry would be fresh.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// What part of the requests would have been answered from memory, from 0.0 to 1.0. On real traces, this is within
    /// three points (0.03) of the truth.
    pub hit_ratio: f64,
    /// How many of the requests that are.
    pub hits: u64,
    /// How many seconds of load time these would have saved.
    pub load_seconds_saved: f64,
}

/// What bounds a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SizeUnit {
    /// Its number of entries.
    Entries,
    /// What its entries weigh.
    Bytes,
}

impl WouldBe {
    /// The ratio of exactly this size and TTL, if it was tried.
    pub fn ratio(&self, size: u64, ttl: Duration) -> Option<&WouldBeRatio> {
        self.ratios.iter().find(|ratio| ratio.size == size && ratio.ttl == ttl)
    }

    /// The cheapest choice that does well: the shortest TTL, and for it the smallest size, that saves 90 % of the load
    /// time that the best would. `None` where no cache would save a tenth of the load time.
    pub fn advice(&self) -> Option<&WouldBeRatio> {
        let saved = |ratio: &&WouldBeRatio| ratio.load_seconds_saved;
        let best = self.ratios.iter().map(|ratio| saved(&ratio)).fold(0.0, f64::max);
        if best <= 0.0 || best < self.load_seconds * WORTH {
            return None;
        }
        let good = self.ratios.iter().filter(|ratio| saved(ratio) >= best * GOOD_ENOUGH);
        good.min_by_key(|ratio| (ratio.ttl, ratio.size))
    }
}

impl fmt::Display for WouldBe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            SizeUnit::Entries => "entries",
            SizeUnit::Bytes => "bytes",
        };
        writeln!(f, "{}: would-be hits in % of {} requests, by size and TTL", self.name, self.requests)?;
        let rows = self.ratios.chunk_by(|a, b| a.size == b.size);
        for (n, row) in rows.enumerate() {
            if n == 0 {
                write!(f, "{unit:>14}")?;
                row.iter().try_for_each(|ratio| write!(f, " {:>6}", short(ratio.ttl)))?;
                writeln!(f)?;
            }
            write!(f, "{:>14}", row[0].size)?;
            row.iter().try_for_each(|ratio| write!(f, " {:>6.1}", ratio.hit_ratio * 100.0))?;
            writeln!(f)?;
        }
        match self.advice() {
            Some(choice) => write!(
                f,
                "{} {unit} for {} would save {} calls, and {:.1} s of {:.1} s of load time.",
                choice.size,
                format_duration(choice.ttl),
                choice.hits,
                choice.load_seconds_saved,
                self.load_seconds
            ),
            None => f.write_str("No cache would save a tenth of the load time."),
        }
    }
}

/// The largest unit of a TTL is enough for a table's head: `5m`, `1day`.
fn short(ttl: Duration) -> String {
    let long = format_duration(ttl).to_string();
    long.split(' ').next().unwrap_or_default().to_owned()
}
