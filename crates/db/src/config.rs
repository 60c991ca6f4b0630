//! The knobs of pools and loaders, and their defaults.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::query_stats::QueryStatsConfig;

/// How a pool holds its connections, and what it calls slow.
///
/// ```
/// let config = greenwave_db::PoolConfig { max_connections: 40, ..Default::default() };
/// assert_eq!(config.idle_timeout, std::time::Duration::from_secs(30));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// The most connections open at once; on SQLite, the most readers. Default: 20.
    pub max_connections: u32,
    /// A connection unused for this long is closed; on SQLite not before the next reader is given back. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// The longest a caller waits for a connection, connecting included; on SQLite, for a reader or for its
    /// turn to write. Default: 2 s.
    #[serde(with = "humantime_serde")]
    pub connection_timeout: Duration,
    /// This many unused connections are kept open although `idle_timeout` would close them, and are opened before
    /// they are needed. PostgreSQL only. Default: 0.
    pub min_idle: u32,
    /// A connection older than this is replaced once it is free; up to a tenth earlier, so that those opened
    /// together do not end together. PostgreSQL only. Default: 30 min.
    #[serde(with = "humantime_serde")]
    pub max_lifetime: Duration,
    /// A connection unused for this long or longer is pinged before it is used. PostgreSQL only. Default: 1 s.
    #[serde(with = "humantime_serde")]
    pub ping_after: Duration,
    /// A caller that holds a connection for this long is named in a warning. PostgreSQL only. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub max_hold: Duration,
    /// A statement that runs for this long or longer goes to the slow-query log. Default: 100 ms.
    #[serde(with = "humantime_serde")]
    pub slow_query: Duration,
    /// What is counted of statements, and what is said of them.
    pub query_stats: QueryStatsConfig,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_connections: 20,
            idle_timeout: Duration::from_secs(30),
            connection_timeout: Duration::from_secs(2),
            min_idle: 0,
            max_lifetime: Duration::from_secs(30 * 60),
            ping_after: Duration::from_secs(1),
            max_hold: Duration::from_secs(10),
            slow_query: Duration::from_millis(100),
            query_stats: QueryStatsConfig::default(),
        }
    }
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl PoolConfig {
    /// Refuses what could never work, so that it fails at start and not under the first request.
    pub(crate) fn check(&self) -> Result<(), crate::Error> {
        let refuse = |field, must| Err(crate::Error::Config { field, must });
        if self.max_connections == 0 {
            return refuse("max_connections", "at least 1");
        }
        if self.idle_timeout.is_zero() {
            return refuse("idle_timeout", "more than zero");
        }
        if self.connection_timeout.is_zero() {
            return refuse("connection_timeout", "more than zero");
        }
        if self.min_idle > self.max_connections {
            return refuse("min_idle", "at most `max_connections`");
        }
        if self.max_lifetime.is_zero() {
            return refuse("max_lifetime", "more than zero");
        }
        Ok(())
    }
}

/// How a [`BatchLoader`](crate::BatchLoader) groups its keys, and where it stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// The most keys that one call of the load function gets; 0 counts as 1. Default: 1000.
    pub max_batch: usize,
    /// The most batches that run at once; 0 counts as 1. Default: 2.
    pub max_in_flight: usize,
    /// The most callers that wait for a batch to begin; more are refused. Default: 10,000.
    pub max_queued: usize,
    /// The longest a batch may take, its retries included. Default: 10 s.
    #[serde(with = "humantime_serde")]
    pub load_timeout: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_batch: 1000, max_in_flight: 2, max_queued: 10_000, load_timeout: Duration::from_secs(10) }
    }
}
