//! One fetch for all who want the same at the same time.

use std::collections::HashMap;
use std::collections::hash_map::{Entry as MapEntry, RandomState};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::entry::Entry;
use super::growing::Growing;
use super::key::Key;
use super::store::{Epoch, Store};
use super::vary::Vary;
use crate::proxy::answer::Refusal;

const SHARDS: usize = 16;

/// How far a fetch has come.
#[derive(Clone, Debug)]
pub(super) enum Progress {
    Asking,
    /// An answer that may be shared is coming in.
    Growing(Arc<Growing>),
    /// The kept answer holds.
    Valid(Entry),
    /// The kept answer is given without a word from its origin: it just came, or stands in after a failure.
    Kept(Entry),
    /// The answer is for one request alone.
    Alone,
    Failed(Refusal),
}

/// What is being fetched: for whom, where that is known to matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    key: Arc<Key>,
    vary: Vary,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    epoch: Epoch,
    progress: watch::Receiver<Progress>,
}

/// All fetches that are shared.
#[derive(Debug)]
pub(super) struct Flights {
    shards: [Mutex<HashMap<Wanted, Flight>>; SHARDS],
    hasher: RandomState,
    next: AtomicU64,
}

/// A place in a fetch.
pub(super) enum Seat {
    Lead(Lead),
    Follow(watch::Receiver<Progress>),
}

/// The duty to fetch. Whoever follows goes on alone when it is dropped before there was an outcome.
pub(super) struct Lead {
    pub(super) epoch: Epoch,
    store: Arc<Store>,
    wanted: Wanted,
    number: u64,
    progress: watch::Sender<Progress>,
}

impl Flights {
    pub(super) fn new() -> Self {
        Self { shards: Default::default(), hasher: RandomState::new(), next: AtomicU64::new(0) }
    }

    fn shard(&self, wanted: &Wanted) -> MutexGuard<'_, HashMap<Wanted, Flight>> {
        // The remainder is far below what a `usize` holds.
        let index = (self.hasher.hash_one(wanted) % SHARDS as u64) as usize;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Joins the fetch of this, or begins it. A fetch that began before a purge is not joined after it.
    pub(super) fn board(self: &Arc<Self>, key: &Arc<Key>, vary: Vary) -> Seat {
        let wanted = Wanted { key: Arc::clone(key), vary };
        let epoch = self.epoch(key);
        let number = self.flights.next.fetch_add(1, Ordering::Relaxed);
        let (progress, watched) = watch::channel(Progress::Asking);
        let flight = Flight { number, epoch, progress: watched };
        match self.flights.shard(&wanted).entry(wanted.clone()) {
            MapEntry::Occupied(mut running) => {
                if running.get().epoch == epoch {
                    return Seat::Follow(running.get().progress.clone());
                }
                running.insert(flight);
            }
            MapEntry::Vacant(place) => {
                place.insert(flight);
            }
        }
        Seat::Lead(Lead { store: Arc::clone(self), epoch, wanted, number, progress })
    }
}

impl Lead {
    pub(super) fn publish(&self, progress: Progress) {
        if matches!(progress, Progress::Failed(_)) {
            // Before anybody hears of it: who then begins anew is not to come here again.
            self.leave();
        }
        self.progress.send_replace(progress);
    }

    fn leave(&self) {
        let mut shard = self.store.flights.shard(&self.wanted);
        // It may be another's by now.
        if shard.get(&self.wanted).is_some_and(|flight| flight.number == self.number) {
            shard.remove(&self.wanted);
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.leave();
    }
}
