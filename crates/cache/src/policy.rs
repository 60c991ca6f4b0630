//! The times of a cache's config, made sound: whatever a config says, nothing here overflows.

use std::time::Duration;

use tokio::time::Instant;

use crate::CacheConfig;

pub(crate) struct Policy {
    ttl: Duration,
    absent_ttl: Duration,
    remote_ttl: Duration,
    /// From 0.0 to 1.0.
    ttl_jitter: f64,
    /// Between 0.0 and 1.0, or `None` for never.
    refresh_after: Option<f64>,
    max_value_bytes: u64,
    pub(crate) weighs: bool,
    /// In milliseconds.
    pub(crate) stale_while_revalidate: u64,
    /// In milliseconds.
    pub(crate) stale_if_error: u64,
    pub(crate) error_ttl: Duration,
    pub(crate) retry_after: Duration,
    soft_timeout: Option<Duration>,
    pub(crate) load_timeout: Duration,
}

/// How long an answer is fresh; zero where it is not kept at all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Life {
    pub(crate) memory: Duration,
    pub(crate) remote: Duration,
}

/// What an entry counts for in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weight {
    Of(u32),
    TooLarge,
}

impl Policy {
    pub(crate) fn new(config: &CacheConfig) -> Policy {
        let part = |part: f64| if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) };
        let refresh_after = part(config.refresh_after);
        Policy {
            ttl: config.ttl,
            absent_ttl: config.absent_ttl,
            remote_ttl: config.remote_ttl,
            ttl_jitter: part(config.ttl_jitter),
            refresh_after: (refresh_after > 0.0 && refresh_after < 1.0).then_some(refresh_after),
            max_value_bytes: config.max_value_bytes,
            weighs: config.max_bytes > 0,
            stale_while_revalidate: millis(config.stale_while_revalidate),
            stale_if_error: millis(config.stale_if_error),
            error_ttl: config.error_ttl,
            retry_after: config.retry_after,
            soft_timeout: Some(config.soft_timeout).filter(|patience| !patience.is_zero()),
            load_timeout: config.load_timeout,
        }
    }

    /// The life of an answer, of which the source may have said how long it is fresh.
    pub(crate) fn life(&self, is_there: bool, ttl: Option<Duration>) -> Life {
        let part = (self.ttl_jitter > 0.0).then(|| 1.0 - self.ttl_jitter * rand::random::<f64>());
        let jittered = |ttl: Duration| match part {
            Some(part) => Duration::try_from_secs_f64(ttl.as_secs_f64() * part).unwrap_or(ttl),
            None => ttl,
        };
        let (memory, remote) = match (ttl, is_there) {
            (Some(ttl), _) => (ttl, ttl),
            (None, true) => (self.ttl, self.remote_ttl),
            (None, false) => (self.absent_ttl, self.absent_ttl.min(self.remote_ttl)),
        };
        Life { memory: jittered(memory), remote: jittered(remote) }
    }

    /// Whether memory keeps anything of what the remote holds.
    pub(crate) fn keeps_found(&self) -> bool {
        !self.ttl.is_zero()
    }

    /// How long memory keeps what the remote holds for `fresh_for` more.
    pub(crate) fn found(&self, fresh_for: Duration) -> Duration {
        self.life(true, None).memory.min(fresh_for)
    }

    /// When an entry whose life of `ttl` begins `now` is to be looked at twice, and when it is over.
    pub(crate) fn ends(&self, now: u64, ttl: Duration) -> (u64, u64) {
        // A TTL under a millisecond is still one.
        let ttl = millis(ttl).max(1);
        let fresh_until = now.saturating_add(ttl);
        let look_at = self.refresh_after.map(|part| {
            // Not all at the same age: other processes came by the same value at the same time.
            let part = part + (1.0 - part) / 2.0 * rand::random::<f64>();
            now.saturating_add((ttl as f64 * part) as u64)
        });
        (look_at.unwrap_or(fresh_until), fresh_until)
    }

    /// When a caller who comes now has waited long enough, if it has something stale.
    pub(crate) fn patience(&self) -> Option<Instant> {
        self.soft_timeout.and_then(|patience| Instant::now().checked_add(patience))
    }

    /// How long an entry is of any use after its TTL, in milliseconds.
    pub(crate) fn stale(&self) -> u64 {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    pub(crate) fn weight(&self, bytes: u64) -> Weight {
        match (self.max_value_bytes, self.weighs) {
            (limit, _) if limit > 0 && bytes > limit => Weight::TooLarge,
            // What weighs nothing would never have to go.
            (_, true) => Weight::Of(u32::try_from(bytes.max(1)).unwrap_or(u32::MAX)),
            (_, false) => Weight::Of(1),
        }
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
