use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;

/// How long and how hard an experiment is driven.
///
/// ```
/// use greenwave_lab::Settings;
/// use std::time::Duration;
///
/// let quick = Settings { rounds: 2, duration: Duration::from_millis(200), ..Settings::default() };
/// assert_eq!(quick.concurrency, 16);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Rounds of each arm; they alternate. Default 6, the fewest that give a spread with 95 % confidence.
    pub rounds: u32,
    /// The start of each round, driven but not measured. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub warm_up: Duration,
    /// The measured part of each round. Default 3 s.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
    /// Tasks that each run one operation after another. Default 16.
    pub concurrency: usize,
    /// Where the random choices start. Default: a fresh one each run; the report says which.
    pub seed: Option<u64>,
    /// The share of operations that may fail before the verdict is refused. Default 0.01.
    pub max_error_share: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            rounds: 6,
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(3),
            concurrency: 16,
            seed: None,
            max_error_share: 0.01,
        }
    }
}

impl Settings {
    /// Says what cannot be run.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |text: &str| Err(Error::Settings(text.to_owned()));
        if !(1..=1_000).contains(&self.rounds) {
            return wrong("rounds must be from 1 to 1000");
        }
        if !(1..=100_000).contains(&self.concurrency) {
            return wrong("concurrency must be from 1 to 100000");
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&self.duration) {
            return wrong("the duration of a round must be from 1 ms to 1 day");
        }
        if self.warm_up > Duration::from_secs(86_400) {
            return wrong("the warm-up of a round must be at most 1 day");
        }
        if !(0.0..=1.0).contains(&self.max_error_share) {
            return wrong("max_error_share must be from 0 to 1");
        }
        Ok(())
    }
}
