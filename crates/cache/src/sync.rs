//! What the table of claims, the weak cache's table and the remote's stamps are built of. The models of them have loom's
//! in their place.

#[cfg(feature = "redis")]
pub(crate) use std::sync::atomic::AtomicU32;
pub(crate) use std::sync::{Mutex, MutexGuard};

/// Of random seeds; half the price of std's for a short key.
pub(crate) use quick_cache::DefaultHashBuilder as Hashing;
pub(crate) use tokio::sync::SetOnce;

/// How many locks share the keys.
pub(crate) const SHARDS: usize = 64;

/// One mebibyte of stamps for each remote. With as many entries, a change takes one other entry along.
#[cfg(feature = "redis")]
pub(crate) const STAMPS: usize = 1 << 18;

/// Runs a test of what is built of these.
#[cfg(test)]
pub(crate) fn check(test: impl Fn()) {
    test();
}
