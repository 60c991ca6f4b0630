//! Who works on a key, and whether what they bring is still wanted.
//!
//! A value that was read before an invalidation must not be stored after it. So whoever is about to read (a load, a
//! look into the remote) first takes a [`Claim`], which notes the key's generation; an invalidation raises the
//! generation; and a value is stored only under a claim of the current one. Check and store happen under one lock,
//! and so do raise and removal: there is no moment between them.
//!
//! Generations exist only while somebody holds a claim. A key that nobody works on costs nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
    sync::{Arc, PoisonError},
};

use tokio::sync::RwLock;

// Not `crate::sync`: the model of this table includes this file beside other locks.
use super::sync::{Hashing, Mutex, MutexGuard, SHARDS};

/// `F` is a load that is under way, which the table only hands out.
pub(crate) struct Table<K, F> {
    shards: Box<[Mutex<Shard<K, F>>]>,
    hasher: Hashing,
}

type Shard<K, F> = HashMap<K, Work<F>, Hashing>;

/// What goes on about one key.
struct Work<F> {
    generation: u64,
    claims: usize,
    flight: Option<Arc<F>>,
    remote_writes: Option<Arc<RwLock<()>>>,
}

/// How a caller comes to what it did not find in memory.
pub(crate) enum Entrance<K: Hash + Eq, F, P> {
    /// It is there by now.
    Present(P),
    /// Somebody loads it: wait for them.
    Join(Arc<F>),
    /// Nobody does: load it, for everybody who joins.
    Lead(Claim<K, F>, Arc<F>),
}

impl<K: Hash + Eq + Clone, F> Table<K, F> {
    pub(crate) fn new() -> Table<K, F> {
        let shard = |_| Mutex::new(HashMap::default());
        Table { shards: (0..SHARDS).map(shard).collect(), hasher: Hashing::default() }
    }

    pub(crate) fn claim(self: &Arc<Self>, key: &K) -> Claim<K, F> {
        let place = self.place(key);
        self.claim_in(&mut self.shard(place), key, place).0
    }

    /// Joins the load of `key`, if `joins` lets it, or claims the key to lead one.
    ///
    /// A load that is not joined gives way to the new one: it will not be kept. `look` looks into memory once more: a
    /// load may have stored its value and left since the caller looked. What else it returns is dropped when the lock is
    /// released: that may run the user's code.
    pub(crate) fn join_or_lead<P, H>(
        self: &Arc<Self>,
        key: &K,
        joins: impl FnOnce(&Arc<F>) -> bool,
        look: impl FnOnce() -> (Option<P>, H),
        begin: impl FnOnce() -> F,
    ) -> Entrance<K, F, P> {
        let mut left = None;
        let place = self.place(key);
        let mut shard = self.shard(place);
        if let Some(work) = shard.get_mut(key)
            && let Some(flight) = &work.flight
        {
            if joins(flight) {
                return Entrance::Join(Arc::clone(flight));
            }
            work.generation += 1;
            left = work.flight.take();
        }
        let (present, held) = look();
        let entrance = match present {
            Some(present) => Entrance::Present(present),
            None => {
                let flight = Arc::new(begin());
                let (claim, work) = self.claim_in(&mut shard, key, place);
                work.flight = Some(Arc::clone(&flight));
                Entrance::Lead(claim, flight)
            }
        };
        drop(shard);
        drop((left, held));
        entrance
    }

    /// Makes every claim on `key` stale, and does `apply` in the same moment.
    ///
    /// Who comes later does not join a load that began before.
    pub(crate) fn outdate<R>(&self, key: &K, apply: impl FnOnce() -> R) -> R {
        self.raise(key, |_| apply())
    }

    /// Makes all claims stale that there are. What they have stored before is to be removed afterwards.
    pub(crate) fn outdate_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let outdated = shard.values_mut().filter_map(|work| {
                work.generation += 1;
                work.flight.take()
            });
            let left: Vec<_> = outdated.collect();
            drop(shard);
            drop(left);
        }
    }

    /// The order in which several keys are to be locked.
    pub(crate) fn rank(&self, key: &K) -> u64 {
        self.hasher.hash_one(key)
    }

    fn claim_in<'s>(
        self: &Arc<Self>,
        shard: &'s mut Shard<K, F>,
        key: &K,
        place: usize,
    ) -> (Claim<K, F>, &'s mut Work<F>) {
        let idle = || Work { generation: 0, claims: 0, flight: None, remote_writes: None };
        let work = shard.entry(key.clone()).or_insert_with(idle);
        work.claims += 1;
        let claim = Claim {
            table: Arc::clone(self),
            key: key.clone(),
            place,
            generation: work.generation,
            held: true,
        };
        (claim, work)
    }

    #[cfg(test)]
    pub(crate) fn keys_in_work(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

impl<K: Hash, F> Table<K, F> {
    /// In which shard a key is.
    fn place(&self, key: &K) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }

    fn shard(&self, place: usize) -> MutexGuard<'_, Shard<K, F>> {
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the key's generation, and does `apply` in the same moment, which is told what it was.
    fn raise<R>(&self, key: &K, apply: impl FnOnce(Option<u64>) -> R) -> R
    where
        K: Eq,
    {
        let (mut before, mut left) = (None, None);
        let mut shard = self.shard(self.place(key));
        if let Some(work) = shard.get_mut(key) {
            before = Some(work.generation);
            work.generation += 1;
            left = work.flight.take();
        }
        let applied = apply(before);
        drop(shard);
        drop(left);
        applied
    }
}

/// The right to store a value for a key, until somebody invalidates it.
pub(crate) struct Claim<K: Hash + Eq, F> {
    table: Arc<Table<K, F>>,
    key: K,
    place: usize,
    generation: u64,
    /// Until it is given up.
    held: bool,
}

impl<K: Hash + Eq, F> Claim<K, F> {
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    pub(crate) fn is_current(&self) -> bool {
        self.store(|| ()).is_some()
    }

    /// Does `store` if the claim is still good, in the same moment; `None` if it is not.
    pub(crate) fn store<R>(&self, store: impl FnOnce() -> R) -> Option<R> {
        let shard = self.table.shard(self.place);
        let current = shard.get(&self.key).is_some_and(|work| work.generation == self.generation);
        current.then(store)
    }

    /// As [`Claim::store`], and gives the claim up, under one lock.
    pub(crate) fn store_last<R>(mut self, store: impl FnOnce() -> R) -> Option<R> {
        let mut shard = self.table.shard(self.place);
        let current = shard.get(&self.key).is_some_and(|work| work.generation == self.generation);
        let stored = current.then(store);
        let idle = give_up(&mut shard, &self.key);
        drop(shard);
        drop(idle);
        self.held = false;
        stored
    }

    /// As [`Table::outdate`], and tells `apply` whether this claim was still good.
    pub(crate) fn outdate<R>(&self, apply: impl FnOnce(bool) -> R) -> R {
        self.table.raise(&self.key, |generation| apply(generation == Some(self.generation)))
    }

    /// As [`Claim::store`], and whoever comes later no longer joins `flight`.
    pub(crate) fn land<R>(&self, flight: &Arc<F>, store: impl FnOnce() -> R) -> Option<R> {
        let mut shard = self.table.shard(self.place);
        let work = shard.get_mut(&self.key)?;
        // After an invalidation, the flight that stands there is another.
        let left = work.flight.take_if(|boarding| Arc::ptr_eq(boarding, flight));
        let stored = (work.generation == self.generation).then(store);
        drop(shard);
        drop(left);
        stored
    }

    /// The lock that orders what is inserted and removed here, so that memory and the remote agree on who was last.
    ///
    /// Removals share it: they need no order among them, and must not queue up where the remote hangs.
    pub(crate) fn remote_writes(&self) -> Arc<RwLock<()>> {
        let mut shard = self.table.shard(self.place);
        let lock = shard.get_mut(&self.key).map(|work| {
            let lock = work.remote_writes.get_or_insert_with(|| Arc::new(RwLock::new(())));
            Arc::clone(lock)
        });
        // A claim keeps its key's entry alive; the fresh lock is for the type's sake.
        lock.unwrap_or_else(|| Arc::new(RwLock::new(())))
    }
}

/// Returns what is to be dropped when the lock is released.
fn give_up<K: Hash + Eq, F>(shard: &mut Shard<K, F>, key: &K) -> Option<(K, Work<F>)> {
    let work = shard.get_mut(key)?;
    work.claims -= 1;
    if work.claims > 0 {
        return None;
    }
    shard.remove_entry(key)
}

impl<K: Hash + Eq, F> Drop for Claim<K, F> {
    fn drop(&mut self) {
        if self.held {
            let mut shard = self.table.shard(self.place);
            let idle = give_up(&mut shard, &self.key);
            drop(shard);
            drop(idle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sync::check, *};

    type Loads = Table<u64, ()>;

    fn enter(table: &Arc<Loads>, key: u64) -> Entrance<u64, (), u64> {
        table.join_or_lead(&key, |_| true, || (None, ()), || ())
    }

    fn lead(table: &Arc<Loads>, key: u64) -> (Claim<u64, ()>, Arc<()>) {
        match enter(table, key) {
            Entrance::Lead(claim, flight) => (claim, flight),
            _ => panic!("somebody else leads"),
        }
    }

    #[test]
    fn a_claim_is_good_until_its_key_is_outdated() {
        check(|| {
            let table = Arc::new(Loads::new());
            let (one, other) = (table.claim(&1), table.claim(&2));
            assert!(one.is_current());
            table.outdate(&1, || ());
            assert!(!one.is_current());
            assert_eq!(one.store(|| ()), None);
            assert!(other.is_current(), "another key's claim is not touched");
            assert!(table.claim(&1).is_current(), "a later claim is good");
            table.outdate_all();
            assert!(!other.is_current());
        });
    }

    #[test]
    fn who_writes_twice_learns_whether_the_key_was_changed_in_between() {
        check(|| {
            let table = Arc::new(Loads::new());
            let (writer, reader) = (table.claim(&1), table.claim(&1));
            assert!(writer.outdate(|good| good));
            assert!(!reader.is_current(), "who has read in between");
            let writer = table.claim(&1);
            table.outdate_all();
            assert!(!writer.outdate(|good| good));
        });
    }

    #[test]
    fn a_stale_claim_stays_stale_while_others_come_and_go() {
        check(|| {
            let table = Arc::new(Loads::new());
            let stale = table.claim(&1);
            for _ in 0..3 {
                table.outdate(&1, || ());
                drop(table.claim(&1));
                assert!(!stale.is_current());
            }
        });
    }

    #[test]
    fn nobody_joins_a_load_from_before_an_invalidation() {
        check(|| {
            for outdate in [|table: &Loads| table.outdate(&1, || ()), |table: &Loads| table.outdate_all()] {
                let table = Arc::new(Loads::new());
                let (old_claim, old) = lead(&table, 1);
                outdate(&table);
                let (claim, new) = lead(&table, 1);
                assert_eq!(old_claim.land(&old, || ()), None);
                match enter(&table, 1) {
                    Entrance::Join(flight) => {
                        assert!(Arc::ptr_eq(&flight, &new), "the old one's landing took the new")
                    }
                    _ => panic!("the new load still flies"),
                }
                assert_eq!(claim.land(&new, || 7), Some(7));
            }
        });
    }

    // Between a caller's look into memory and its turn here, a load may have stored its value and left.
    #[test]
    fn nobody_leads_a_load_of_what_is_there_by_now() {
        check(|| {
            let table = Arc::new(Loads::new());
            match table.join_or_lead(&1, |_| true, || (Some(7), ()), || ()) {
                Entrance::Present(value) => assert_eq!(value, 7),
                _ => panic!("it would be loaded twice"),
            }
            assert_eq!(table.keys_in_work(), 0);
        });
    }

    struct Caller(Arc<Loads>);

    impl Drop for Caller {
        fn drop(&mut self) {
            self.0.outdate(&1, || ());
        }
    }

    #[test]
    fn a_value_that_was_looked_at_may_use_the_table_when_it_is_dropped() {
        check(|| {
            let table = Arc::new(Loads::new());
            let last = Caller(Arc::clone(&table));
            drop(table.join_or_lead(&1, |_| true, || (None::<u64>, last), || ()));
            assert_eq!(table.keys_in_work(), 0);
        });
    }

    #[test]
    fn a_load_that_nobody_wants_to_join_gives_way() {
        check(|| {
            let table = Arc::new(Loads::new());
            let (unwanted, flight) = lead(&table, 1);
            let Entrance::Lead(claim, _) =
                table.join_or_lead(&1, |load| !Arc::ptr_eq(load, &flight), || (None::<u64>, ()), || ())
            else {
                panic!("nobody else leads")
            };
            assert!(claim.is_current());
            assert_eq!(unwanted.land(&flight, || ()), None);
        });
    }

    #[test]
    fn a_key_that_nobody_works_on_costs_nothing() {
        check(|| {
            let table = Arc::new(Loads::new());
            let first = table.claim(&1);
            let (second, flight) = lead(&table, 1);
            table.outdate(&2, || ());
            assert_eq!(table.keys_in_work(), 1);
            drop(first);
            assert_eq!(table.keys_in_work(), 1);
            second.land(&flight, || ());
            drop(second);
            assert_eq!(table.keys_in_work(), 0);
        });
    }
}
