//! How much is taken on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Priority;
use super::rate_limits::is_under;
use crate::Error;

/// How many requests an upstream gets at once, and how long others wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct OverloadConfig {
    /// Whether an upstream's requests in flight are limited by measured latency; true by default.
    pub enabled: bool,
    /// Requests in flight at an upstream that are always allowed; 16 by default.
    pub min_in_flight: u32,
    /// Requests in flight at an upstream that are never exceeded; 1024 by default.
    pub max_in_flight: u32,
    /// Requests of a group that wait for their turn; 1024 by default. What exceeds it is answered 503 at once.
    pub max_queue: usize,
    /// Longest time for which a request waits for its turn; 1 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub queue_timeout: Duration,
    /// Whether the queue is kept short when it does not empty, so that answers stay fast under overload; false by
    /// default. Otherwise it may be as long as `queue_timeout` allows. Short, it also refuses some of the clients that
    /// would only have waited for each other's answers, such as the many connections of a load generator.
    pub short_queue: bool,
    /// Path prefixes, such as `/health`, whose requests wait for nobody and count for no limit; none by default.
    pub priority_paths: Vec<String>,
}

impl Default for OverloadConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            min_in_flight: 16,
            max_in_flight: 1024,
            max_queue: 1024,
            queue_timeout: Duration::from_secs(1),
            short_queue: false,
            priority_paths: Vec::new(),
        }
    }
}

impl OverloadConfig {
    /// Whom a request for this path waits for.
    pub(crate) fn priority(&self, path: &str) -> Priority {
        let first = self.priority_paths.iter().any(|prefix| is_under(path, prefix));
        if first { Priority::High } else { Priority::Normal }
    }

    /// Whether it can be kept to.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.min_in_flight == 0 {
            return Err(Error::invalid_config("overload.min_in_flight", "must be at least 1"));
        }
        if self.max_in_flight < self.min_in_flight {
            return Err(Error::invalid_config("overload.max_in_flight", "must be at least `min_in_flight`"));
        }
        if self.priority_paths.iter().any(|path| !path.starts_with('/')) {
            return Err(Error::invalid_config("overload.priority_paths", "must begin with /"));
        }
        Ok(())
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
