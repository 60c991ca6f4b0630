use std::{
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use metrics::{Counter, counter};
use redis::Cmd;
use serde::{Serialize, de::DeserializeOwned};

use super::{Failure, Remote};
use crate::{
    CacheConfig,
    telemetry::{REMOTE_TARGET, REMOTE_UNDECODABLE, RemoteMetrics},
};

/// Redis refuses an expiry that overflows its clock; a century is as good as for ever.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How deep values may nest. rmp-serde's own limit of 1024 overflows the stack of an unoptimised build's thread.
const MAX_DEPTH: usize = 128;

/// How a lease begins, and no value: MessagePack has no use for this byte.
const LEASED: u8 = 0xc1;

/// Puts a value, or nothing, in the place of a lease; does nothing when the lease is gone.
const FILL: &str = "\
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return end \
    if ARGV[2] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) else redis.call('DEL', KEYS[1]) end";

/// The right to fill a key. It stands in the key itself, so that whoever invalidates or inserts the key, in whatever
/// process, takes it away; and it is taken before the source is read, so that what was read before does not come after.
pub(crate) struct Lease([u8; 17]);

/// One cache's view of its remote: typed, and without failures.
///
/// What it needs of keys and values is captured in functions, so that only a cache with a remote must have it.
pub(crate) struct Tier<K, V> {
    remote: Remote,
    cache: &'static str,
    ttl_ms: u64,
    lease_ms: u64,
    show: fn(&'static str, &K) -> String,
    encode: fn(&V) -> Result<Vec<u8>, rmp_serde::encode::Error>,
    decode: fn(&[u8]) -> Result<V, rmp_serde::decode::Error>,
    gets: RemoteMetrics,
    sets: RemoteMetrics,
    undecodable: Counter,
}

impl<K, V> Tier<K, V> {
    pub(crate) fn new(remote: Remote, cache: &'static str, config: &CacheConfig) -> Tier<K, V>
    where
        K: Display,
        V: Serialize + DeserializeOwned,
    {
        let expiry_ms = |ttl: Duration| (ttl.min(MAX_TTL).as_millis() as u64).max(1);
        let ttl = config.remote_ttl;
        let lease = config.load_timeout.saturating_add(remote.config().timeout);
        Tier {
            remote,
            cache,
            ttl_ms: if ttl.is_zero() { 0 } else { expiry_ms(ttl) },
            lease_ms: expiry_ms(lease),
            show: |cache, key| format!("{cache}:{key}"),
            // Named fields: a struct may gain, lose and reorder fields while old values are about.
            encode: |value| rmp_serde::to_vec_named(value),
            decode,
            gets: RemoteMetrics::new(cache, "get"),
            sets: RemoteMetrics::new(cache, "set"),
            undecodable: counter!(REMOTE_UNDECODABLE, "cache" => cache),
        }
    }

    pub(crate) async fn get(&self, key: &K) -> Option<V> {
        let mut command = Cmd::new();
        command.arg("GET").arg((self.show)(self.cache, key));
        let bytes: Vec<u8> = match self.remote.ask::<Option<Vec<u8>>>(&command).await {
            Ok(found) => found?,
            Err(failure) => {
                self.note(&self.gets, &failure, "a read");
                return None;
            }
        };
        if bytes.first() == Some(&LEASED) {
            return None;
        }
        // A hand-written Deserialize may panic on what it never expected; to the reader that is garbage too.
        let decoded = catch_unwind(AssertUnwindSafe(|| (self.decode)(&bytes)));
        let error = match decoded {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its decoder panicked".to_owned(),
        };
        self.undecodable.increment(1);
        tracing::debug!(target: REMOTE_TARGET, cache = self.cache, error, "a value in the remote does not decode");
        None
    }

    /// For one who is about to read the source.
    pub(crate) async fn lease(&self, key: &K) -> Option<Lease> {
        if self.ttl_ms == 0 {
            return None;
        }
        let mut lease = Lease([LEASED; 17]);
        lease.0[1..].copy_from_slice(&rand::random::<[u8; 16]>());
        self.write(
            Cmd::new()
                .arg("SET")
                .arg((self.show)(self.cache, key))
                .arg(&lease.0)
                .arg("PX")
                .arg(self.lease_ms),
        )
        .await
        .then_some(lease)
    }

    /// Keeps what the source had, unless the key was changed meanwhile. Without a value the lease is given back.
    pub(crate) async fn fill(&self, key: &K, value: Option<&V>, lease: Lease) {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(FILL).arg(1).arg((self.show)(self.cache, key)).arg(&lease.0);
        if let Some(bytes) = value.and_then(|value| self.bytes(value)) {
            command.arg(bytes).arg(self.ttl_ms);
        }
        self.write(&command).await;
    }

    pub(crate) async fn set(&self, key: &K, value: &V) {
        if self.ttl_ms == 0 {
            return;
        }
        let written = match self.bytes(value) {
            Some(bytes) => {
                let mut command = Cmd::new();
                command.arg("SET").arg((self.show)(self.cache, key)).arg(bytes).arg("PX").arg(self.ttl_ms);
                self.write(&command).await
            }
            None => false,
        };
        if !written {
            // Better no value than the one from before.
            self.delete(key).await;
        }
    }

    fn bytes(&self, value: &V) -> Option<Vec<u8>> {
        (self.encode)(value)
            .inspect_err(|error| {
                self.sets.failures.increment(1);
                tracing::warn!(target: REMOTE_TARGET, cache = self.cache, %error, "a value does not encode");
            })
            .ok()
    }

    /// Says whether it was done.
    async fn write(&self, command: &Cmd) -> bool {
        let answer = self.remote.ask::<()>(command).await;
        answer.inspect_err(|failure| self.note(&self.sets, failure, "a write")).is_ok()
    }

    pub(crate) async fn delete(&self, key: &K) {
        self.remote.forget(vec![(self.show)(self.cache, key).into_bytes()]).await;
    }

    fn note(&self, metrics: &RemoteMetrics, failure: &Failure, what: &'static str) {
        match failure {
            Failure::Skipped => metrics.skipped.increment(1),
            _ => {
                metrics.failures.increment(1);
                tracing::debug!(
                    target: REMOTE_TARGET, cache = self.cache, operation = what, error = %failure,
                    "the remote gave no answer",
                );
            }
        }
    }
}

fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::new(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let value = V::deserialize(&mut deserializer)?;
    match deserializer.get_ref().is_empty() {
        true => Ok(value),
        // Any byte below 128 begins a good MessagePack number: garbage must not pass for one.
        false => Err(serde::de::Error::custom("bytes follow the value")),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        id: u64,
        name: String,
        fax: Option<String>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        name: String,
        #[serde(default)]
        email: Option<String>,
        id: u64,
    }

    #[test]
    fn a_value_survives_added_removed_and_reordered_fields() {
        let old = Old { id: 7, name: "Ada".into(), fax: Some("1".into()) };
        let bytes = rmp_serde::to_vec_named(&old).unwrap();
        assert_eq!(decode::<Old>(&bytes).unwrap(), old);
        assert_eq!(decode::<New>(&bytes).unwrap(), New { name: "Ada".into(), email: None, id: 7 });
    }

    #[test]
    fn truncated_and_foreign_bytes_are_errors() {
        let bytes = rmp_serde::to_vec_named(&Old { id: 7, name: "Ada".into(), fax: None }).unwrap();
        for end in 0..bytes.len() {
            decode::<Old>(&bytes[..end]).unwrap_err();
        }
        decode::<u64>(b"garbage").unwrap_err();
        // A map that claims four billion entries, and nesting without end.
        decode::<Old>(&[0xdf, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
        decode::<Nested>(&[0x91; 1 << 20]).unwrap_err();
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Nested(Vec<Nested>);
}
