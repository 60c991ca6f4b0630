//! How patient the proxy is, and how much it takes on.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Deadlines and limits of a [`Proxy`](crate::Proxy).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// Time for a request's head to arrive, counted from the end of the answer before it: so also the time
    /// for which an idle connection is kept; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub header_timeout: Duration,
    /// Longest silence of a client in the middle of its request's body; 60 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub body_timeout: Duration,
    /// Time to connect to an upstream; 2 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub connect_timeout: Duration,
    /// Time for the head of an answer, once the upstream has the request; 60 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub answer_timeout: Duration,
    /// Longest silence of an upstream in the middle of its answer's body; 10 min by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub answer_body_timeout: Duration,
    /// Time for which a request waits for an upstream to become healthy when none is; 5 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub upstream_wait: Duration,
    /// Time for which an idle connection to an upstream is kept; 4 s by default, which is less than the 5 s
    /// after which Node.js closes it, so that a request seldom meets a connection that is just closing.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub upstream_idle_timeout: Duration,
    /// Idle connections kept for each upstream; 256 by default.
    pub max_idle_per_upstream: usize,
    /// Client connections served at once, beyond which new ones wait to be accepted; 10000 by default.
    pub max_connections: usize,
    /// Largest head of a request in bytes, at most 65536; 32768 by default.
    pub max_head_size: usize,
    /// Time for running requests to finish after the proxy was told to stop; 30 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub drain_timeout: Duration,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(60),
            answer_body_timeout: Duration::from_secs(600),
            upstream_wait: Duration::from_secs(5),
            upstream_idle_timeout: Duration::from_secs(4),
            max_idle_per_upstream: 256,
            max_connections: 10_000,
            max_head_size: 32 * 1024,
            drain_timeout: Duration::from_secs(30),
        }
    }
}
