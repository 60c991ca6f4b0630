//! Who works on a key, and whether what they bring is still wanted.
//!
//! A value that was read before an invalidation must not be stored after it. So whoever is about to read (a load, a
//! look into the remote) first takes a [`Claim`], which notes the key's generation; an invalidation raises the
//! generation; and a value is stored only under a claim of the current one. Check and store happen under one lock,
//! and so do raise and removal: there is no moment between them.
//!
//! Generations exist only while somebody holds a claim. A key that nobody works on costs nothing.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hash},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::RwLock;

use crate::singleflight::Flight;

const SHARDS: usize = 64;

pub(crate) struct Table<K, V> {
    shards: Box<[Mutex<Shard<K, V>>]>,
    hasher: RandomState,
}

type Shard<K, V> = HashMap<K, Work<V>>;

/// What goes on about one key.
struct Work<V> {
    generation: u64,
    claims: usize,
    flight: Option<Arc<Flight<V>>>,
    remote_writes: Option<Arc<RwLock<()>>>,
}

/// How a caller comes to a value that it did not find in memory.
pub(crate) enum Entrance<K: Hash + Eq, V> {
    /// It is there by now.
    Present(Arc<V>),
    /// Somebody loads it: wait for them.
    Join(Arc<Flight<V>>),
    /// Nobody does: load it, for everybody who joins.
    Lead(Claim<K, V>, Arc<Flight<V>>),
}

impl<K: Hash + Eq + Clone, V> Table<K, V> {
    pub(crate) fn new() -> Table<K, V> {
        Table { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    pub(crate) fn claim(self: &Arc<Self>, key: &K) -> Claim<K, V> {
        let mut shard = self.shard(key);
        self.claim_in(&mut shard, key).0
    }

    /// Joins the load of `key`, or claims the key to lead one.
    ///
    /// `look` looks into memory once more: a load may have stored its value and left since the caller looked.
    pub(crate) fn join_or_lead(
        self: &Arc<Self>,
        key: &K,
        look: impl FnOnce() -> Option<Arc<V>>,
    ) -> Entrance<K, V> {
        let mut shard = self.shard(key);
        if let Some(flight) = shard.get(key).and_then(|work| work.flight.as_ref()) {
            return Entrance::Join(Arc::clone(flight));
        }
        if let Some(value) = look() {
            return Entrance::Present(value);
        }
        let flight = Arc::new(Flight::new());
        let (claim, work) = self.claim_in(&mut shard, key);
        work.flight = Some(Arc::clone(&flight));
        Entrance::Lead(claim, flight)
    }

    /// Makes every claim on `key` stale, and does `apply` in the same moment.
    ///
    /// Who comes later does not join a load that began before.
    pub(crate) fn outdate<R>(&self, key: &K, apply: impl FnOnce() -> R) -> R {
        let mut left = None;
        let mut shard = self.shard(key);
        if let Some(work) = shard.get_mut(key) {
            work.generation += 1;
            left = work.flight.take();
        }
        let applied = apply();
        drop(shard);
        drop(left);
        applied
    }

    fn claim_in<'s>(self: &Arc<Self>, shard: &'s mut Shard<K, V>, key: &K) -> (Claim<K, V>, &'s mut Work<V>) {
        let idle = || Work { generation: 0, claims: 0, flight: None, remote_writes: None };
        let work = shard.entry(key.clone()).or_insert_with(idle);
        work.claims += 1;
        let claim = Claim { table: Arc::clone(self), key: key.clone(), generation: work.generation };
        (claim, work)
    }

    #[cfg(test)]
    fn keys_in_work(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

impl<K: Hash, V> Table<K, V> {
    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to store a value for a key, until somebody invalidates it.
pub(crate) struct Claim<K: Hash + Eq, V> {
    table: Arc<Table<K, V>>,
    key: K,
    generation: u64,
}

impl<K: Hash + Eq, V> Claim<K, V> {
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    pub(crate) fn is_current(&self) -> bool {
        self.table.shard(&self.key).get(&self.key).is_some_and(|work| work.generation == self.generation)
    }

    /// Does `store` if the claim is still good, in the same moment; `None` if it is not.
    pub(crate) fn store<R>(&self, store: impl FnOnce() -> R) -> Option<R> {
        let shard = self.table.shard(&self.key);
        let current = shard.get(&self.key).is_some_and(|work| work.generation == self.generation);
        current.then(store)
    }

    /// As [`Claim::store`], and whoever comes later no longer joins `flight`.
    pub(crate) fn land<R>(&self, flight: &Arc<Flight<V>>, store: impl FnOnce() -> R) -> Option<R> {
        let mut shard = self.table.shard(&self.key);
        let work = shard.get_mut(&self.key)?;
        // After an invalidation, the flight that stands there is another.
        work.flight.take_if(|boarding| Arc::ptr_eq(boarding, flight));
        (work.generation == self.generation).then(store)
    }

    /// The lock that orders what is inserted and removed here, so that memory and the remote agree on who was last.
    ///
    /// Removals share it: they need no order among them, and must not queue up where the remote hangs.
    pub(crate) fn remote_writes(&self) -> Arc<RwLock<()>> {
        let mut shard = self.table.shard(&self.key);
        let lock = shard.get_mut(&self.key).map(|work| work.remote_writes.get_or_insert_default());
        // A claim keeps its key's entry alive; the fresh lock is for the type's sake.
        lock.map_or_else(Arc::default, |lock| Arc::clone(lock))
    }
}

impl<K: Hash + Eq, V> Drop for Claim<K, V> {
    fn drop(&mut self) {
        let mut shard = self.table.shard(&self.key);
        let Some(work) = shard.get_mut(&self.key) else { return };
        work.claims -= 1;
        if work.claims == 0 {
            let idle = shard.remove_entry(&self.key);
            drop(shard);
            drop(idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(table: &Arc<Table<u64, u64>>, key: u64) -> (Claim<u64, u64>, Arc<Flight<u64>>) {
        match table.join_or_lead(&key, || None) {
            Entrance::Lead(claim, flight) => (claim, flight),
            _ => panic!("somebody else leads"),
        }
    }

    #[test]
    fn a_claim_is_good_until_its_key_is_outdated() {
        let table = Arc::new(Table::<u64, u64>::new());
        let (one, other) = (table.claim(&1), table.claim(&2));
        assert!(one.is_current());
        table.outdate(&1, || ());
        assert!(!one.is_current());
        assert_eq!(one.store(|| ()), None);
        assert!(other.is_current(), "another key's claim is not touched");
        assert!(table.claim(&1).is_current(), "a later claim is good");
    }

    #[test]
    fn a_stale_claim_stays_stale_while_others_come_and_go() {
        let table = Arc::new(Table::<u64, u64>::new());
        let stale = table.claim(&1);
        for _ in 0..3 {
            table.outdate(&1, || ());
            drop(table.claim(&1));
            assert!(!stale.is_current());
        }
    }

    #[test]
    fn nobody_joins_a_load_from_before_an_invalidation() {
        let table = Arc::new(Table::<u64, u64>::new());
        let (old_claim, old) = lead(&table, 1);
        table.outdate(&1, || ());
        let (claim, new) = lead(&table, 1);
        assert_eq!(old_claim.land(&old, || ()), None);
        match table.join_or_lead(&1, || None) {
            Entrance::Join(flight) => {
                assert!(Arc::ptr_eq(&flight, &new), "the old one's landing took the new")
            }
            _ => panic!("the new load still flies"),
        }
        assert_eq!(claim.land(&new, || 7), Some(7));
    }

    // Between a caller's look into memory and its turn here, a load may have stored its value and left.
    #[test]
    fn nobody_leads_a_load_of_what_is_there_by_now() {
        let table = Arc::new(Table::<u64, u64>::new());
        match table.join_or_lead(&1, || Some(Arc::new(7))) {
            Entrance::Present(value) => assert_eq!(*value, 7),
            _ => panic!("it would be loaded twice"),
        }
        assert_eq!(table.keys_in_work(), 0);
    }

    #[test]
    fn a_key_that_nobody_works_on_costs_nothing() {
        let table = Arc::new(Table::<u64, u64>::new());
        let first = table.claim(&1);
        let (second, flight) = lead(&table, 1);
        table.outdate(&2, || ());
        assert_eq!(table.keys_in_work(), 1);
        drop(first);
        assert_eq!(table.keys_in_work(), 1);
        second.land(&flight, || ());
        drop(second);
        assert_eq!(table.keys_in_work(), 0);
    }
}
