//! How requests are spread, and when an upstream is left alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a [`LoadBalancer`](crate::LoadBalancer) chooses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct BalanceConfig {
    /// Who gets the next request: `least-latency`, the default, or `round-robin`.
    pub strategy: Strategy,
    /// What keeps a client at one upstream: `header:NAME` or `cookie:NAME`, by consistent hashing; empty, the
    /// default, for nothing. A client without the cookie is given one of that name.
    pub sticky: String,
    /// Time over which an upstream that has recovered gets its full share back; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub slow_start: Duration,
    /// Failures in a row after which an upstream is ejected; 5 by default, 0 for never.
    pub eject_after: u32,
    /// Length of the first ejection, which grows by as much with each further one; 30 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub ejection: Duration,
    /// Longest ejection; 5 min by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub max_ejection: Duration,
    /// Retries allowed for each hundred requests; 20 by default.
    pub retry_percent: u32,
    /// Retries allowed each second besides; 10 by default.
    pub min_retries_per_second: u32,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            sticky: String::new(),
            slow_start: Duration::from_secs(10),
            eject_after: 5,
            ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            retry_percent: 20,
            min_retries_per_second: 10,
        }
    }
}

/// Who gets the next request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Strategy {
    /// The upstream that is expected to answer soonest, by its requests in flight and its measured latency.
    #[default]
    LeastLatency,
    /// One after the other, by weight. For upstreams that measure nothing alike, such as one that answers quickly
    /// because it has little to do.
    RoundRobin,
}
