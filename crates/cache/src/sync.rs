//! What the table of claims is built of. The model of it is checked with loom's in their place.

pub(crate) use std::{
    collections::hash_map::RandomState as Hashing,
    sync::{Mutex, MutexGuard},
};

/// How many locks share the keys.
pub(crate) const SHARDS: usize = 64;

/// Runs a test of what is built of these.
#[cfg(test)]
pub(crate) fn check(test: impl Fn()) {
    test();
}
