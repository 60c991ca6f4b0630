//! What is supervised, and how patiently.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{CheckConfig, Health};

/// What to run and how to look after it.
///
/// ```
/// use greenwave_edge::{Health, SupervisorConfig};
///
/// let config = SupervisorConfig {
///     command: vec!["node".into(), "server.js".into()],
///     instances: 2,
///     health: Health::Http { path: "/health".into() },
///     ..Default::default()
/// };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SupervisorConfig {
    /// Name of the whole; instances are called `{name}-0`, `{name}-1` and so on; `app` by default.
    pub name: String,
    /// The program and its arguments, run without a shell; must be given.
    pub command: Vec<String>,
    /// How many instances run; 1 by default.
    pub instances: usize,
    /// How an instance shows that it is ready: `tcp`, `none`, or a path such as `/health`; `tcp` by default.
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub health: Health,
    /// When instances are checked.
    pub check: CheckConfig,
    /// Time in which a started instance must become ready, or it is started anew; 1 min by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub start_timeout: Duration,
    /// Time between SIGTERM and SIGKILL; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub grace: Duration,
    /// Wait before the first restart, doubled by each further one; 100 ms by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub min_backoff: Duration,
    /// Longest wait before a restart; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub max_backoff: Duration,
    /// Time after it became ready at which an instance's earlier exits are forgotten; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub stable_after: Duration,
    /// Exits without a stable run between them that make a crash loop; 5 by default.
    pub crash_loop_after: u32,
    /// Longest piece of a log line that is passed on at once, in bytes; 16384 by default.
    pub max_log_line: usize,
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self {
            name: "app".to_owned(),
            command: Vec::new(),
            instances: 1,
            health: Health::Tcp,
            check: CheckConfig::default(),
            start_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(10),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            stable_after: Duration::from_secs(10),
            crash_loop_after: 5,
            max_log_line: 16 * 1024,
        }
    }
}

impl SupervisorConfig {
    /// The wait before an instance that has crashed `crashes` times in a row is started again.
    ///
    /// Between half of it and the whole is taken at random, so that instances that fell together
    /// do not all rise together.
    pub(super) fn backoff(&self, crashes: u32) -> Duration {
        let doublings = crashes.saturating_sub(1).min(31);
        let whole = self.min_backoff.saturating_mul(1 << doublings).min(self.max_backoff);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_varies() {
        let config = SupervisorConfig::default();
        for (crashes, whole) in [(1, 100), (2, 200), (4, 800), (8, 10_000), (u32::MAX, 10_000)] {
            let (low, high) = (Duration::from_millis(whole / 2), Duration::from_millis(whole));
            let waits: Vec<Duration> = (0..50).map(|_| config.backoff(crashes)).collect();
            assert!(waits.iter().all(|wait| (low..=high).contains(wait)), "{crashes}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait != waits[0]), "{crashes}: no jitter");
        }
    }
}
