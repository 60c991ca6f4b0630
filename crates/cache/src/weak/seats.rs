//! Which keys have a value that somebody holds, or that somebody is making or dropping.
//!
//! A key is a [`Seat`], and there is never more than one of it. It is taken before the value is made, travels with the
//! value, and is given up when the value's destructor has returned. The table itself holds values weakly: how many
//! hold one is counted by its `Arc` alone, so there is no second count that could disagree.
//!
//! Who finds a key's seat taken and no value on it waits for the seat's next [`Turn`], and looks again.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::{Arc, PoisonError, Weak},
};

use super::sync::{Mutex, MutexGuard, SetOnce};

pub(super) struct Seats<K: Hash + Eq, V, F> {
    shards: Box<[Shard<K, V, F>]>,
    hasher: RandomState,
}

type Shard<K, V, F> = Mutex<HashMap<K, Taken<K, V, F>>>;

/// What the table knows of a seat.
struct Taken<K: Hash + Eq, V, F> {
    /// Dead before the value is made, and again when its last holder has gone.
    guest: Weak<Guest<K, V, F>>,
    next: Arc<Turn<K, V, F>>,
}

/// A value on its seat. The order of the fields is the order in which they are dropped.
pub(super) struct Guest<K: Hash + Eq, V, F> {
    pub(super) value: V,
    seat: Seat<K, V, F>,
}

/// The right to be the one value of a key.
pub(super) struct Seat<K: Hash + Eq, V, F> {
    table: Arc<Seats<K, V, F>>,
    key: K,
    next: Arc<Turn<K, V, F>>,
    failure: Option<F>,
}

/// What becomes of a seat on which there is no value.
pub(super) type Turn<K, V, F> = SetOnce<Outcome<K, V, F>>;

pub(super) enum Outcome<K: Hash + Eq, V, F> {
    Made(Arc<Guest<K, V, F>>),
    Failed(F),
    /// The seat is free: its maker gave up, or its value is gone.
    Free,
}

pub(super) enum Entrance<K: Hash + Eq, V, F> {
    Found(Arc<Guest<K, V, F>>),
    Wait(Arc<Turn<K, V, F>>),
    Make(Seat<K, V, F>),
}

impl<K: Hash + Eq, V, F> Seats<K, V, F> {
    pub(super) fn new(shards: usize) -> Arc<Seats<K, V, F>> {
        let shards = (0..shards.max(1)).map(|_| Mutex::new(HashMap::new())).collect();
        Arc::new(Seats { shards, hasher: RandomState::new() })
    }

    pub(super) fn find(&self, key: &K) -> Option<Arc<Guest<K, V, F>>> {
        self.shard(key).get(key)?.guest.upgrade()
    }

    pub(super) fn enter(self: &Arc<Self>, key: &K) -> Entrance<K, V, F>
    where
        K: Clone,
    {
        let mut shard = self.shard(key);
        if let Some(taken) = shard.get(key) {
            return match taken.guest.upgrade() {
                Some(guest) => Entrance::Found(guest),
                None => Entrance::Wait(Arc::clone(&taken.next)),
            };
        }
        let next = Arc::new(Turn::new());
        shard.insert(key.clone(), Taken { guest: Weak::new(), next: Arc::clone(&next) });
        Entrance::Make(Seat { table: Arc::clone(self), key: key.clone(), next, failure: None })
    }

    // A guest must not be dropped while this is held: its seat would ask for the same lock.
    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, Taken<K, V, F>>> {
        let index = self.hasher.hash_one(key) as usize % self.shards.len();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq, V, F> Seat<K, V, F> {
    pub(super) fn key(&self) -> &K {
        &self.key
    }

    /// What will tell whether this seat got a value.
    pub(super) fn turn(&self) -> Arc<Turn<K, V, F>> {
        Arc::clone(&self.next)
    }

    /// Puts the value on it, and shows it to those who wait.
    pub(super) fn fill(mut self, value: V) -> Arc<Guest<K, V, F>> {
        let departure = Arc::new(Turn::new());
        let made = std::mem::replace(&mut self.next, Arc::clone(&departure));
        let guest = Arc::new(Guest { value, seat: self });
        let seat = &guest.seat;
        if let Some(taken) = seat.table.shard(&seat.key).get_mut(&seat.key) {
            *taken = Taken { guest: Arc::downgrade(&guest), next: departure };
        }
        // Fails only for a turn that was told before.
        let _ = made.set(Outcome::Made(Arc::clone(&guest)));
        guest
    }

    /// Gives it up, and tells those who wait why.
    pub(super) fn fail(mut self, failure: F) {
        self.failure = Some(failure);
    }
}

impl<K: Hash + Eq, V, F> Guest<K, V, F> {
    pub(super) fn key(&self) -> &K {
        self.seat.key()
    }
}

impl<K: Hash + Eq, V, F> Drop for Seat<K, V, F> {
    fn drop(&mut self) {
        let mut shard = self.table.shard(&self.key);
        let taken = shard.remove_entry(&self.key);
        drop(shard);
        drop(taken);
        let _ = self.next.set(self.failure.take().map_or(Outcome::Free, Outcome::Failed));
    }
}
