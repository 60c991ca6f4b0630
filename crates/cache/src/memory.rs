//! L1: what this process keeps. Bounded by entries or by weight; an entry has its own end.

use std::{hash::Hash, sync::Arc, time::Duration};

use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter, sync::Cache};

use crate::{
    CacheConfig,
    clock::Clock,
    policy::{Policy, Weight, millis},
    remote::{Coherence, Seal, Standing},
    tags::TagSet,
    would_be::{Sampled, Sampler, SizeUnit},
};

/// For how many entries room is made at the start. It is address space, and no memory until it is used; but room that
/// grows by doubling would be nearly twice as much in the end.
const ROOM: usize = 1 << 20;

/// What a value weighs, in bytes.
pub(crate) type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u64 + Send + Sync>;

pub(crate) struct Memory<K, V> {
    entries: Cache<K, Entry<V>, Weights, DefaultHashBuilder, Leave>,
    pub(crate) clock: Clock,
    pub(crate) policy: Policy,
    weigher: Option<Weigher<K, V>>,
    coherence: Option<Arc<Coherence>>,
    pub(crate) sampler: Sampler,
}

/// A value, and what decides whether it is still good.
pub(crate) struct Item<V> {
    /// `None` is the source's word that there is no such thing.
    pub(crate) value: Option<Arc<V>>,
    pub(crate) tags: Option<Arc<TagSet>>,
    /// Where the cache has a remote.
    pub(crate) seal: Option<Seal>,
}

/// Each hit copies one out of a large table, so it is small: two words.
enum Entry<V> {
    /// What nothing but time can end, as most of them. `times` is when, and the weight in its lowest bits.
    Plain {
        value: Arc<V>,
        times: u64,
    },
    Rich(Arc<Rich<V>>),
}

const _: () = assert!(size_of::<Entry<u64>>() == 16);

const WEIGHT_BITS: u32 = 24;
const MAX_PLAIN_WEIGHT: u32 = (1 << WEIGHT_BITS) - 1;
const MAX_PLAIN_TIME: u64 = u64::MAX >> WEIGHT_BITS;

struct Rich<V> {
    item: Item<V>,
    /// Where the reads of this key are noted.
    sampled: Option<Sampled>,
    /// When a reader must look twice, in the clock's milliseconds: the entry is to be refreshed, or over.
    look_at: u64,
    fresh_until: u64,
    weight: u32,
}

/// What memory has of a key.
pub(crate) enum Look<V> {
    Fresh(Option<Arc<V>>),
    Old(Old<V>),
    Nothing,
}

/// What is to be loaded anew.
pub(crate) struct Old<V> {
    pub(crate) value: Option<Arc<V>>,
    pub(crate) tags: Option<Arc<TagSet>>,
    pub(crate) age: Age,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Age {
    /// Fresh, and soon no longer: it is served, and refreshed behind.
    Ripe,
    /// Past its TTL: it is served, and refreshed behind.
    Stale,
    /// It is served when there is nothing better.
    Fallback,
    /// It is not served, but the source may say that it is still right.
    Over,
}

// By hand, since the derived ones would ask that V is Clone.
impl<V> Clone for Item<V> {
    fn clone(&self) -> Item<V> {
        Item { value: self.value.clone(), tags: self.tags.clone(), seal: self.seal }
    }
}

impl<V> Clone for Entry<V> {
    #[inline]
    fn clone(&self) -> Entry<V> {
        match self {
            Entry::Plain { value, times } => Entry::Plain { value: Arc::clone(value), times: *times },
            Entry::Rich(rich) => Entry::Rich(Arc::clone(rich)),
        }
    }
}

impl<V> Clone for Rich<V> {
    fn clone(&self) -> Rich<V> {
        Rich { item: self.item.clone(), ..*self }
    }
}

impl<V> Entry<V> {
    fn new(rich: Rich<V>) -> Entry<V> {
        match rich {
            Rich {
                item: Item { value: Some(value), tags: None, seal: None },
                sampled: None,
                look_at,
                fresh_until,
                weight,
            } if look_at == fresh_until && look_at <= MAX_PLAIN_TIME && weight <= MAX_PLAIN_WEIGHT => {
                Entry::Plain { value, times: look_at << WEIGHT_BITS | u64::from(weight) }
            }
            rich => Entry::Rich(Arc::new(rich)),
        }
    }

    fn into_rich(self) -> Rich<V> {
        match self {
            Entry::Plain { value, times } => Rich {
                item: Item { value: Some(value), tags: None, seal: None },
                sampled: None,
                look_at: times >> WEIGHT_BITS,
                fresh_until: times >> WEIGHT_BITS,
                weight: times as u32 & MAX_PLAIN_WEIGHT,
            },
            Entry::Rich(rich) => Arc::unwrap_or_clone(rich),
        }
    }

    fn weight(&self) -> u32 {
        match self {
            Entry::Plain { times, .. } => *times as u32 & MAX_PLAIN_WEIGHT,
            Entry::Rich(rich) => rich.weight,
        }
    }
}

impl<V> Clone for Old<V> {
    fn clone(&self) -> Old<V> {
        Old { value: self.value.clone(), tags: self.tags.clone(), age: self.age }
    }
}

impl<V> Look<V> {
    /// What answers at once.
    pub(crate) fn served(self) -> Option<Option<Arc<V>>> {
        match self {
            Look::Fresh(value) => Some(value),
            Look::Old(old) if old.is_served() => Some(old.value),
            _ => None,
        }
    }

    pub(crate) fn fresh(self) -> Option<Option<Arc<V>>> {
        match self {
            Look::Fresh(value) | Look::Old(Old { value, age: Age::Ripe, .. }) => Some(value),
            _ => None,
        }
    }

    pub(crate) fn old(self) -> Option<Old<V>> {
        match self {
            Look::Old(old) => Some(old),
            _ => None,
        }
    }
}

impl<V> Old<V> {
    /// Whether it answers at once, while it is loaded anew.
    pub(crate) fn is_served(&self) -> bool {
        matches!(self.age, Age::Ripe | Age::Stale)
    }
}

#[derive(Clone)]
struct Weights;

impl<K, V> Weighter<K, Entry<V>> for Weights {
    fn weight(&self, _: &K, entry: &Entry<V>) -> u64 {
        u64::from(entry.weight())
    }
}

#[derive(Clone)]
struct Leave;

impl<K, V> Lifecycle<K, Entry<V>> for Leave {
    type RequestState = Vec<(K, Entry<V>)>;

    fn on_evict(&self, left: &mut Self::RequestState, key: K, entry: Entry<V>) {
        left.push((key, entry));
    }
}

/// What had to go. The caller holds it until its locks are released: dropping it runs the user's code.
#[must_use]
pub(crate) struct Removed<K, V> {
    _left: Vec<(K, Entry<V>)>,
    /// How many had to make room for another.
    pub(crate) evicted: u64,
}

/// What was looked at. If it leaves memory meanwhile, this is the last of it, and dropping it runs the user's code.
#[must_use]
pub(crate) struct Held<V> {
    _entry: Option<Entry<V>>,
}

impl<K, V> Removed<K, V> {
    fn none() -> Removed<K, V> {
        Removed { _left: Vec::new(), evicted: 0 }
    }
}

impl<K: Hash + Eq, V> Memory<K, V> {
    pub(crate) fn new(
        config: &CacheConfig,
        weigher: Option<Weigher<K, V>>,
        coherence: Option<Arc<Coherence>>,
    ) -> Memory<K, V> {
        let capacity = match config.max_bytes {
            0 => config.max_entries as u64,
            bytes => bytes,
        };
        let entries =
            Cache::with(config.max_entries, capacity, Weights, DefaultHashBuilder::default(), Leave);
        if config.max_bytes == 0 {
            // A margin, since one entry too many would double it.
            entries.reserve(config.max_entries.min(ROOM) + 16 * entries.num_shards());
        }
        Memory {
            entries,
            clock: Clock::for_ttl(config.ttl),
            policy: Policy::new(config),
            weigher: weigher.filter(|_| config.max_bytes > 0 || config.max_value_bytes > 0),
            coherence,
            sampler: Sampler::around(capacity, config.max_entries as u64, config.ttl),
        }
    }

    /// What a request gets; its key may be one whose reads are noted. What is not fresh is the error.
    #[inline]
    pub(crate) fn read(&self, key: &K) -> Result<Option<Arc<V>>, Look<V>> {
        match self.entries.get(key) {
            // A clock that stands still is past every end, and started by the second look.
            Some(Entry::Plain { value, times }) if self.clock.shown() < times >> WEIGHT_BITS => {
                Ok(Some(value))
            }
            entry => self.read_twice(key, entry),
        }
    }

    #[inline(never)]
    fn read_twice(&self, key: &K, entry: Option<Entry<V>>) -> Result<Option<Arc<V>>, Look<V>> {
        let Some(entry) = entry else {
            self.note(self.sampler.sample(key), &Look::Nothing, 0);
            return Err(Look::Nothing);
        };
        let rich = entry.into_rich();
        let (sampled, weight) = (rich.sampled, rich.weight);
        let look = self.look_twice(rich);
        self.note(sampled, &look, weight);
        match look {
            Look::Fresh(value) => Ok(value),
            look => Err(look),
        }
    }

    fn note(&self, sampled: Option<Sampled>, look: &Look<V>, weight: u32) {
        let Some(sampled) = sampled else { return };
        match look {
            Look::Fresh(_) | Look::Old(Old { age: Age::Ripe | Age::Stale, .. }) => {
                self.sampler.hit(sampled, u64::from(weight));
            }
            Look::Old(_) => self.sampler.missed(sampled),
            Look::Nothing => {
                if weight > 0 {
                    // Invalidated, which ends it in a cache of any size.
                    self.sampler.removed(sampled);
                }
                self.sampler.missed(sampled);
            }
        }
    }

    /// For who holds a lock: what comes with the look is to be dropped when that is released.
    pub(crate) fn look(&self, key: &K) -> (Look<V>, Held<V>) {
        let held = self.entries.get(key);
        let look = held.clone().map_or(Look::Nothing, |entry| self.look_twice(entry.into_rich()));
        (look, Held { _entry: held })
    }

    fn look_twice(&self, entry: Rich<V>) -> Look<V> {
        let Rich { item: Item { value, tags, seal }, look_at, fresh_until, .. } = entry;
        if tags.as_ref().is_some_and(|tags| !tags.is_current()) {
            return Look::Nothing;
        }
        let standing = match (&self.coherence, seal) {
            (Some(coherence), Some(seal)) => coherence.standing(seal),
            _ => Standing::Current,
        };
        let now = self.clock.now();
        match standing {
            Standing::Changed => Look::Nothing,
            Standing::Current if now < look_at => Look::Fresh(value),
            _ => {
                Look::Old(Old { value, tags, age: self.age(now, fresh_until, standing == Standing::Current) })
            }
        }
    }

    fn age(&self, now: u64, fresh_until: u64, heard: bool) -> Age {
        let Policy { stale_while_revalidate, stale_if_error, .. } = self.policy;
        match () {
            () if heard && now < fresh_until => Age::Ripe,
            () if heard && now < fresh_until.saturating_add(stale_while_revalidate) => Age::Stale,
            () if now < fresh_until.saturating_add(stale_if_error) => Age::Fallback,
            () => Age::Over,
        }
    }

    /// What `insert` would keep it by. Runs the user's code, so it is asked before any lock is taken.
    pub(crate) fn weigh(&self, key: &K, value: Option<&Arc<V>>) -> Weight {
        let bytes = match (&self.weigher, value) {
            (Some(weigher), Some(value)) => weigher(key, value),
            (_, value) => (size_of::<K>() + value.map_or(0, |_| size_of::<V>())) as u64,
        };
        self.policy.weight(bytes)
    }

    /// Keeps an item for `ttl` from now, or, when that is zero, removes what there is.
    pub(crate) fn insert(&self, key: &K, item: Item<V>, weight: Weight, ttl: Duration) -> Removed<K, V>
    where
        K: Clone,
    {
        match weight {
            Weight::Of(weight) if !ttl.is_zero() => {
                let sampled = self.sampler.sample(key);
                if let Some(sampled) = sampled {
                    self.sampler.stored(sampled, u64::from(weight));
                }
                let (look_at, fresh_until) = self.policy.ends(self.clock.exact(), ttl);
                self.put(key.clone(), Rich { item, sampled, look_at, fresh_until, weight })
            }
            _ => self.remove(key),
        }
    }

    /// Keeps an item that is stale already, for `stale_for` at most.
    pub(crate) fn insert_stale(
        &self,
        key: &K,
        item: Item<V>,
        weight: Weight,
        stale_for: Duration,
    ) -> (Removed<K, V>, Old<V>)
    where
        K: Clone,
    {
        let now = self.clock.exact();
        let fresh_until = now.saturating_add(millis(stale_for)).saturating_sub(self.policy.stale()).min(now);
        let age = self.age(now, fresh_until, true);
        let old = Old { value: item.value.clone(), tags: item.tags.clone(), age };
        let removed = match weight {
            Weight::Of(weight) if age != Age::Over => {
                let sampled = self.sampler.sample(key);
                self.put(key.clone(), Rich { item, sampled, look_at: fresh_until, fresh_until, weight })
            }
            _ => Removed::none(),
        };
        (removed, old)
    }

    /// What there is, if it was not invalidated.
    pub(crate) fn prior(&self, key: &K) -> Option<Old<V>> {
        match self.look(key).0 {
            Look::Fresh(value) => {
                let tags = self.entries.peek(key).and_then(|entry| entry.into_rich().item.tags);
                Some(Old { value, tags, age: Age::Ripe })
            }
            look => look.old(),
        }
    }

    /// Gives the entry a new life if its value is still this one.
    pub(crate) fn extend(&self, key: &K, value: &Option<Arc<V>>, seal: Seal, ttl: Duration) -> Removed<K, V>
    where
        K: Clone,
    {
        match self.entries.peek(key).map(Entry::into_rich) {
            Some(entry) if is_same(&entry.item.value, value) && !ttl.is_zero() => {
                let (look_at, fresh_until) = self.policy.ends(self.clock.exact(), ttl);
                let item = Item { seal: Some(seal), ..entry.item };
                self.put(key.clone(), Rich { item, look_at, fresh_until, ..entry })
            }
            // Whoever replaces or evicts it now leaves the last of it to this.
            Some(entry) => Removed { _left: vec![(key.clone(), Entry::new(entry))], evicted: 0 },
            None => Removed::none(),
        }
    }

    fn put(&self, key: K, entry: Rich<V>) -> Removed<K, V>
    where
        K: Clone,
    {
        let mut left = Vec::new();
        self.entries.insert_with_lifecycle(key.clone(), Entry::new(entry), &mut left);
        // One of them may be what the key had before.
        let evicted = left.iter().filter(|(other, _)| *other != key).count() as u64;
        Removed { _left: left, evicted }
    }

    pub(crate) fn remove(&self, key: &K) -> Removed<K, V> {
        if let Some(sampled) = self.sampler.sample(key) {
            self.sampler.removed(sampled);
        }
        Removed { _left: self.entries.remove(key).into_iter().collect(), evicted: 0 }
    }

    /// Removes everything.
    pub(crate) fn clear(&self) -> Removed<K, V> {
        self.sampler.cleared();
        // Not `clear`, which would run the user's code under its locks.
        Removed { _left: self.entries.drain().collect(), evicted: 0 }
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn unit(&self) -> SizeUnit {
        match self.policy.weighs {
            true => SizeUnit::Bytes,
            false => SizeUnit::Entries,
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        self.entries.weight()
    }
}

fn is_same<V>(one: &Option<Arc<V>>, other: &Option<Arc<V>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    // Under a lock, where it must not be dropped.
    #[test]
    fn what_leaves_memory_while_it_is_looked_at_is_left_to_the_caller() {
        let coherence = Arc::new(Coherence::new(Duration::ZERO));
        let seal = coherence.seal(b"1");
        let memory = Memory::<u64, u64>::new(&CacheConfig::default(), None, Some(Arc::clone(&coherence)));
        let insert = || {
            let value = Arc::new(7);
            let weak = Arc::downgrade(&value);
            let item = Item { value: Some(value), tags: None, seal: Some(seal) };
            drop(memory.insert(&1, item, Weight::Of(1), Duration::from_secs(60)));
            weak
        };
        let value = insert();
        coherence.changed(b"1");
        let (look, held) = memory.look(&1);
        assert!(matches!(look, Look::Nothing));
        drop(memory.remove(&1));
        assert!(value.upgrade().is_some());
        drop(held);
        assert!(value.upgrade().is_none());

        let value = insert();
        let removed = memory.extend(&1, &None, seal, Duration::from_secs(60));
        drop(memory.remove(&1));
        assert!(value.upgrade().is_some());
        drop(removed);
        assert!(value.upgrade().is_none());
    }
}
