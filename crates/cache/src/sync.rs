//! What the table of claims and the weak cache's table are built of. The models of them have loom's in their place.

pub(crate) use std::sync::{Mutex, MutexGuard};

/// Of random seeds; half the price of std's for a short key.
pub(crate) use quick_cache::DefaultHashBuilder as Hashing;
pub(crate) use tokio::sync::SetOnce;

/// How many locks share the keys.
pub(crate) const SHARDS: usize = 64;

/// Runs a test of what is built of these.
#[cfg(test)]
pub(crate) fn check(test: impl Fn()) {
    test();
}
