#[cfg(feature = "redis")]
use std::path::PathBuf;
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// How many entries the process keeps at most; default 100000. 0 keeps none.
    ///
    /// Beyond that the least useful entries go. Where `max_bytes` is set, that bounds the cache alone, and this says how
    /// many entries to expect.
    pub max_entries: usize,

    /// How many bytes the process keeps at most, as [`CacheBuilder::weigher`](crate::CacheBuilder::weigher) counts
    /// them; default 0, which bounds by entries.
    ///
    /// A single entry may take a part of that: the memory is shared out among four times as many shards as there are
    /// processors, and an entry that its shard cannot hold is not kept.
    pub max_bytes: u64,

    /// How large a value may be to be kept; default 0, any size. A larger one is passed on to those who wait for it.
    ///
    /// In memory that is what the weigher says, in the remote the bytes that it encodes to.
    pub max_value_bytes: u64,

    /// How long an entry is served from this process's memory before anybody is asked again; default 5m.
    ///
    /// This is how old an answer may be when the source is changed by somebody who tells no cache of it, as a hand on
    /// the database does; with a remote it is `ttl + remote_ttl`. Changes that a cache makes, or whoever else changes
    /// the remote, are heard of at once while there is a connection. 0 keeps nothing in memory.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,

    /// How much of its TTL an entry may lose at random, from 0.0 to 1.0; default 0.1. What is no such number is taken
    /// for the nearest, and NaN for 0.0.
    ///
    /// Entries that came together, as after a start, then don't end together, be it in memory or in the remote.
    pub ttl_jitter: f64,

    /// How long `Ok(None)`, the source's word that there is no such thing, is kept; default 0s, which is not at all.
    ///
    /// Whoever creates the thing must then [`invalidate`](crate::Cache::invalidate) its key too.
    #[serde(with = "humantime_serde")]
    pub absent_ttl: Duration,

    /// How long a failed load answers those who come after it; default 100ms. 0 tells only those who waited for it.
    ///
    /// Failed is one that returned an error, panicked or took too long. An invalidation or an insertion of its key ends
    /// it at once.
    #[serde(with = "humantime_serde")]
    pub error_ttl: Duration,

    /// When a fresh entry that is asked for is loaded anew in the background, as a part of its TTL; default 0.0, never,
    /// and so is 1.0.
    ///
    /// The moment is drawn at random from the first half of what is left then, so that processes do not load together.
    /// 0.8 is a good value for what must not become slow: nobody waits for the load of what is asked for often enough.
    pub refresh_after: f64,

    /// How long after its TTL an entry is still served at once, while it is loaded anew in the background; default 0s.
    #[serde(with = "humantime_serde")]
    pub stale_while_revalidate: Duration,

    /// How long after its TTL an entry is still served when the source fails, or is slower than `soft_timeout`;
    /// default 0s.
    #[serde(with = "humantime_serde")]
    pub stale_if_error: Duration,

    /// How long the source is left alone after a failure that an entry in memory covers; default 1s.
    ///
    /// Who has nothing to fall back on asks it again after `error_ttl`.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,

    /// How long a caller waits for a load when there is a stale entry to serve instead; default 0s, to the load's end.
    #[serde(with = "humantime_serde")]
    pub soft_timeout: Duration,

    /// How long the remote holds an entry fresh, where a cache has one; default 1h.
    ///
    /// 0 writes nothing to the remote; then nobody would tell of changes, and memory keeps what is loaded or inserted
    /// for the remote's `untracked_ttl` at most.
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
            max_bytes: 0,
            max_value_bytes: 0,
            ttl: Duration::from_secs(5 * 60),
            ttl_jitter: 0.1,
            absent_ttl: Duration::ZERO,
            error_ttl: Duration::from_millis(100),
            refresh_after: 0.0,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            retry_after: Duration::from_secs(1),
            soft_timeout: Duration::ZERO,
            remote_ttl: Duration::from_secs(60 * 60),
            load_timeout: Duration::from_secs(30),
        }
    }
}

/// How a process deals with a [`Remote`](crate::Remote): how long it waits, how it hears of changes, what it calls and
/// compresses there, and by what certificates it trusts it.
#[cfg(feature = "redis")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// How long one operation may take before the cache goes on without it; default 250ms.
    ///
    /// The very first operation connects within it, too. Later connections are made in the background, and may take
    /// four times as long, but at least 500ms.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,

    /// How soon a remote that does not answer is tried again in the background; default 200ms. Nobody waits for that.
    ///
    /// The pauses grow to three times this, and each is shortened at random by up to a half.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,

    /// How this process hears of changes that others make; default `tracking`. All processes that share a remote should
    /// have the same.
    pub coherence: CoherenceMode,

    /// How long an answer from memory is trusted while changes cannot be heard; default 1s.
    ///
    /// They never can for what the remote has not taken, as a value that is too large for it.
    ///
    /// Twice in this time, but at least once a second, the remote is asked whether it is still there.
    #[serde(with = "humantime_serde")]
    pub untracked_ttl: Duration,

    /// What all keys begin with, so that several services can share one Redis; default "".
    pub namespace: String,

    /// How many bytes a value may have before it is compressed, with LZ4; default 4096. 0 compresses none.
    pub compress_above: usize,

    /// A file with the certificates, in PEM, of who may vouch for the server, where its URL asks for TLS; default
    /// none, which means those that the system trusts. It is read once, when the remote is made.
    pub tls_ca: Option<PathBuf>,

    /// A file with the certificate, in PEM, by which this process shows who it is; default none.
    pub tls_certificate: Option<PathBuf>,

    /// A file with the private key of `tls_certificate`, in PEM; default none.
    pub tls_key: Option<PathBuf>,
}

/// How a process hears of changes that others make in a [`Remote`](crate::Remote).
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoherenceMode {
    /// Redis tells (RESP3 client tracking), whoever makes the change, and the caches of this crate tell each other too:
    /// of what it has evicted, Redis tells nothing. So a change by another program of what was evicted goes unheard.
    /// Needs Redis 6 or Valkey; not with a cluster, which gets `Published` instead.
    Tracking,
    /// The caches of this crate tell each other through Redis' pub/sub. Changes by other programs go unheard. Takes the
    /// place of `Tracking` where the server refuses that, with a warning.
    Published,
    /// Nobody tells: memory trusts nothing for longer than `untracked_ttl`.
    Off,
}

#[cfg(feature = "redis")]
impl Default for RemoteConfig {
    fn default() -> RemoteConfig {
        RemoteConfig {
            timeout: Duration::from_millis(250),
            retry_after: Duration::from_millis(200),
            coherence: CoherenceMode::Tracking,
            untracked_ttl: Duration::from_secs(1),
            namespace: String::new(),
            compress_above: 4096,
            tls_ca: None,
            tls_certificate: None,
            tls_key: None,
        }
    }
}
