use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How much a cache keeps, and for how long.
///
/// ```
/// use greenwave_cache::CacheConfig;
/// use std::time::Duration;
///
/// let config = CacheConfig { ttl: Duration::from_secs(30), ..Default::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// How many entries the process keeps at most; default 100000.
    ///
    /// Beyond that the least useful entries go. 0 keeps none.
    pub max_entries: usize,

    /// How long an entry is served from this process's memory before anybody is asked again; default 5m.
    ///
    /// This is how old an answer may be when the source is changed by somebody who does not call
    /// [`Cache::invalidate`](crate::Cache::invalidate) *here*: another process, or a hand on the database. With a
    /// remote behind it, a change that reaches the remote (another process invalidates or inserts the key) is seen
    /// here after `ttl` at the latest, counted from the end of a load that was under way; a change that nobody tells
    /// the remote of is seen after `ttl + remote_ttl`. So choose a short `ttl` where several processes share a remote
    /// and write. 0 keeps nothing in memory.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,

    /// How long the remote keeps an entry, where a cache has one; default 1h.
    ///
    /// 0 writes nothing to the remote.
    #[serde(with = "humantime_serde")]
    pub remote_ttl: Duration,

    /// How long a load may take before its callers get [`LoadError::TimedOut`](crate::LoadError::TimedOut) and it is
    /// dropped; default 30s.
    #[serde(with = "humantime_serde")]
    pub load_timeout: Duration,
}

impl Default for CacheConfig {
    fn default() -> CacheConfig {
        CacheConfig {
            max_entries: 100_000,
            ttl: Duration::from_secs(5 * 60),
            remote_ttl: Duration::from_secs(60 * 60),
            load_timeout: Duration::from_secs(30),
        }
    }
}

/// How much patience a cache has with its remote.
#[cfg(feature = "redis")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// How long one operation may take, connecting included, before the cache goes on without it; default 250ms.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,

    /// How long the remote is left alone after a failure; default 1s.
    ///
    /// After that time one operation tries again, and the others follow when it succeeds. So a dead remote costs reads
    /// one `timeout` in each of these intervals. Invalidations are always tried.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
}

#[cfg(feature = "redis")]
impl Default for RemoteConfig {
    fn default() -> RemoteConfig {
        RemoteConfig { timeout: Duration::from_millis(250), retry_after: Duration::from_secs(1) }
    }
}
