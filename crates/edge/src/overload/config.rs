//! How much is taken on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many requests an upstream gets at once, and how long others wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct OverloadConfig {
    /// Whether an upstream's requests in flight are limited by measured latency; true by default.
    pub enabled: bool,
    /// Requests in flight at an upstream that are always allowed; 2 by default.
    pub min_in_flight: u32,
    /// Requests in flight at an upstream that are never exceeded; 1024 by default.
    pub max_in_flight: u32,
    /// Requests of a group that wait for their turn; 1024 by default. What exceeds it is answered 503 at once.
    pub max_queue: usize,
    /// Longest time for which a request waits for its turn; 1 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub queue_timeout: Duration,
    /// Path prefixes, such as `/health`, whose requests wait for nobody; none by default.
    pub priority_paths: Vec<String>,
}

impl Default for OverloadConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            min_in_flight: 2,
            max_in_flight: 1024,
            max_queue: 1024,
            queue_timeout: Duration::from_secs(1),
            priority_paths: Vec::new(),
        }
    }
}

/// How many requests of one kind are let through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// What is counted apart: `client` (by address), `header:NAME`, or `route`; `client` by default.
    pub by: String,
    /// Path prefix of the requests that count; `/` by default.
    pub path: String,
    /// Requests allowed in each `per`; 100 by default.
    pub requests: u32,
    /// The time in which so many are allowed; 1 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub per: Duration,
    /// Requests allowed at once after a pause; 0, the default, for as many as `requests`.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            by: "client".to_owned(),
            path: "/".to_owned(),
            requests: 100,
            per: Duration::from_secs(1),
            burst: 0,
        }
    }
}
