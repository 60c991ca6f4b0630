//! Whether what was read from the remote is still what it has.
//!
//! Redis tells of changes to the keys that this process has read. Each key has one of many stamps, by its hash, and a
//! change of the key changes the stamp. Whoever is about to read takes a [`Seal`], which notes the stamp; it goes with
//! the value into memory, and is looked at whenever the value is. So there is no moment in which news of a change can
//! come too early or too late, no channel that may overflow, and no list of which key is where. Keys that share a stamp
//! fall together, which costs a read.
//!
//! When the connection breaks, changes go unheard: each connection is an epoch, and a seal is good in its own only.

use std::{
    hash::BuildHasher,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

// Not `crate::sync`: the model of this includes this file beside other locks.
use super::sync::{AtomicU32, Hashing, Mutex, STAMPS};

pub(crate) struct Coherence {
    stamps: Box<[AtomicU32]>,
    hasher: Hashing,
    /// Even while changes are heard, odd while they are not.
    epoch: AtomicU32,
    lost: Mutex<Instant>,
    untracked_ttl: Duration,
}

/// What was known of a key before it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    slot: u32,
    stamp: u32,
    epoch: u32,
}

impl Seal {
    /// Whether the key was changed before `other` was taken, a seal of the same key.
    pub(crate) fn is_older(self, other: Seal) -> bool {
        (self.stamp.wrapping_sub(other.stamp) as i32) < 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Standing {
    Current,
    /// It was changed by somebody: it must not be served.
    Changed,
    /// Nobody told of a change, and nobody would have.
    Unheard,
}

impl Coherence {
    /// Begins deaf. `untracked_ttl` is how long what memory has is trusted while changes are not heard.
    pub(crate) fn new(untracked_ttl: Duration) -> Coherence {
        Coherence {
            stamps: (0..STAMPS).map(|_| AtomicU32::new(0)).collect(),
            hasher: Hashing::default(),
            epoch: AtomicU32::new(1),
            lost: Mutex::new(Instant::now()),
            untracked_ttl,
        }
    }

    /// To be taken before the read whose result it seals.
    pub(crate) fn seal(&self, redis_key: &[u8]) -> Seal {
        let slot = self.slot(redis_key);
        let epoch = self.epoch.load(Ordering::SeqCst);
        Seal { slot: slot as u32, stamp: self.stamps[slot].load(Ordering::SeqCst), epoch }
    }

    #[inline]
    pub(crate) fn standing(&self, seal: Seal) -> Standing {
        if self.stamps[seal.slot as usize].load(Ordering::SeqCst) != seal.stamp {
            return Standing::Changed;
        }
        match self.epoch.load(Ordering::SeqCst) {
            epoch if epoch == seal.epoch => Standing::Current,
            epoch => self.in_another_epoch(seal, epoch),
        }
    }

    #[cold]
    fn in_another_epoch(&self, seal: Seal, epoch: u32) -> Standing {
        let just_lost = epoch == seal.epoch.wrapping_add(1) && !hears(epoch);
        let lost = || *self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        match just_lost && lost().elapsed() < self.untracked_ttl {
            true => Standing::Current,
            false => Standing::Unheard,
        }
    }

    /// How long memory may keep what has this seal, of `ttl`.
    pub(crate) fn bound(&self, seal: Seal, ttl: Duration) -> Duration {
        match hears(seal.epoch) {
            true => ttl,
            false => ttl.min(self.untracked_ttl),
        }
    }

    /// The same for what has not reached the remote, whose changes nobody hears of.
    pub(crate) fn unconfirmed(&self, ttl: Duration) -> Duration {
        ttl.min(self.untracked_ttl)
    }

    /// Somebody changed the key.
    pub(crate) fn changed(&self, redis_key: &[u8]) {
        self.stamps[self.slot(redis_key)].fetch_add(1, Ordering::SeqCst);
    }

    /// Somebody changed everything, as by `FLUSHALL`.
    pub(crate) fn changed_all(&self) {
        for stamp in &self.stamps {
            stamp.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// This process changed the key itself, of which the remote does not tell it: readers from before are outdated,
    /// as by [`Coherence::changed`], but for the one who made the change. Its seal, from before, is exchanged for one
    /// that is good if nobody else changed the key meanwhile.
    pub(crate) fn changed_here(&self, before: Seal) -> Seal {
        let stamp = self.stamps[before.slot as usize].fetch_add(1, Ordering::SeqCst);
        match stamp == before.stamp {
            true => Seal { stamp: stamp.wrapping_add(1), ..before },
            false => before,
        }
    }

    /// Changes have gone unheard since then.
    pub(crate) fn lose(&self, since: Instant) {
        // The time stands there before the epoch sends readers to it; a second loss must not renew it.
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if hears(self.epoch()) {
            *lost = since;
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// From now on changes of what is read are heard.
    pub(crate) fn hear(&self) {
        let _lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if !hears(self.epoch()) {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether changes are heard of now.
    #[cfg(test)]
    pub(crate) fn hears(&self) -> bool {
        hears(self.epoch.load(Ordering::SeqCst))
    }

    /// Changes are heard, but some were not: nothing from before is certain.
    pub(crate) fn renew(&self) {
        let _lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if hears(self.epoch()) {
            self.epoch.fetch_add(2, Ordering::SeqCst);
        }
    }

    /// Tells apart what was learnt on one connection from what was learnt on another.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn slot(&self, redis_key: &[u8]) -> usize {
        self.hasher.hash_one(redis_key) as usize % STAMPS
    }
}

fn hears(epoch: u32) -> bool {
    epoch.is_multiple_of(2)
}
