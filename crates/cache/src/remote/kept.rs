//! What goes between a cache and its remote.

use std::{sync::Arc, time::Duration};

use super::{Lease, Seal};
use crate::tags::TagSet;

/// A value with its life, as it came from the remote.
pub(crate) struct Kept<V> {
    /// `None`: the source has no such thing.
    pub(crate) value: Option<Arc<V>>,
    /// From now on; zero for a stale one.
    pub(crate) fresh_for: Duration,
    /// Beyond `fresh_for`.
    pub(crate) stale_for: Duration,
    /// It is time to load it anew, though it may still be served.
    pub(crate) due: bool,
    pub(crate) seal: Seal,
    pub(crate) tags: Option<Arc<TagSet>>,
}

/// A value for the remote. With a life of zero it is not kept, and neither is what was there before.
pub(crate) struct Outgoing<'a, V> {
    /// `None`: the source has no such thing.
    pub(crate) value: Option<&'a V>,
    pub(crate) fresh_for: Duration,
    /// Beyond `fresh_for`.
    pub(crate) stale_for: Duration,
    pub(crate) tags: &'a [Arc<str>],
}

/// Whose turn it is to ask the source.
pub(crate) enum Turn<V> {
    /// Nobody's: somebody else has asked it by now.
    Found(Kept<V>),
    /// The caller's. Without a lease there is no remote to speak of, and nothing to fill.
    Lead(Option<Lease>),
}

/// What is counted of a remote.
#[derive(Default)]
pub(crate) struct RemoteStats {
    pub(crate) failures: u64,
    pub(crate) skipped: u64,
    pub(crate) unconfirmed: u64,
    pub(crate) undecodable: u64,
}

/// What became of a value that was given to the remote.
pub(crate) enum Filled {
    /// The remote has it, and changes of it are heard of from before this seal on.
    Yes(Seal),
    /// Somebody changed the key meanwhile: what was read is not to be kept anywhere.
    Outdated,
    /// The remote has it not, or nobody knows. Where it was made to forget what it had, this seal is good from then on.
    Unavailable(Option<Seal>),
}
