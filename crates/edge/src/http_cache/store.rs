//! Where answers are kept, bounded by bytes and shared by all cores.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderMap;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use tokio::time::Instant;

use super::CacheConfig;
use super::entry::Entry;
use super::flight::Flights;
use super::key::{Key, KeyRef};
use super::stats::Counters;
use super::vary::Vary;

// How long it is remembered that answers to a URI are not for sharing, so that requests don't wait for one another.
const PASS_FOR: Duration = Duration::from_secs(10);
const MAX_VARIANTS: usize = 32;
const MAX_SHARDS: u64 = 64;
const STRIPES: usize = 4096;
// Purges by prefix or tag that a fetch may miss before it counts as hit by one of them.
const REMEMBERED_PURGES: usize = 256;
// What is remembered of a URI besides its text.
const KEY_OVERHEAD: u64 = 128;

/// What is known of a URI.
#[derive(Clone, Debug)]
enum Slot {
    /// The answers to it, the youngest first.
    Kept(Arc<[Entry]>),
    /// Its answers are not for sharing.
    Pass { until: Instant, silent: bool },
}

/// What a look brings.
#[derive(Debug)]
pub(super) enum Found {
    Entry(Entry),
    /// Answers for other requests, which varied by these fields.
    Other(Vary),
    Pass,
    /// The answer before said nothing of caching, not long ago.
    Silent,
    Nothing,
}

/// A moment between two purges of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    own: u64,
    of_all: u64,
}

/// A purge of more than one URI.
#[derive(Clone, Debug)]
pub(super) enum Purge {
    All,
    Prefix { host: String, path: String },
    Tag(String),
}

impl Purge {
    fn names(&self, key: &Key) -> bool {
        match self {
            Self::All => true,
            Self::Prefix { host, path } => *key.host == **host && key.target.starts_with(&**path),
            Self::Tag(_) => false,
        }
    }

    fn hits(&self, key: &Key, entry: &Entry) -> bool {
        match self {
            Self::Tag(tag) => entry.head.tags.iter().any(|other| **other == **tag),
            purge => purge.names(key),
        }
    }
}

#[derive(Debug, Default)]
struct Purges {
    number: u64,
    recent: VecDeque<Purge>,
}

impl Purges {
    /// Whether one since that moment hits the entry.
    fn hit(&self, since: u64, key: &Key, entry: &Entry) -> bool {
        let missed = usize::try_from(self.number - since).unwrap_or(usize::MAX);
        missed > self.recent.len()
            || self.recent.iter().rev().take(missed).any(|purge| purge.hits(key, entry))
    }
}

pub(super) struct Store {
    pub(super) config: CacheConfig,
    pub(super) counters: Counters,
    pub(super) flights: Flights,
    /// Bytes of answers that are on their way, to the cache and to slow clients.
    pub(super) on_way: Arc<AtomicU64>,
    slots: Cache<Arc<Key>, Slot, Weigh, quick_cache::DefaultHashBuilder, Evictions>,
    // Each guards the keys that fall on it against two changes at once, and counts their purges.
    stripes: Box<[Mutex<u64>]>,
    hasher: RandomState,
    purges: RwLock<Purges>,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Arc<Key>, Slot> for Weigh {
    fn weight(&self, key: &Arc<Key>, slot: &Slot) -> u64 {
        let entries = match slot {
            Slot::Kept(entries) => entries.iter().map(Entry::weight).sum(),
            Slot::Pass { .. } => 0,
        };
        KEY_OVERHEAD + (key.host.len() + key.target.len()) as u64 + entries
    }
}

#[derive(Clone)]
struct Evictions(Counters);

impl Lifecycle<Arc<Key>, Slot> for Evictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: Arc<Key>, slot: Slot) {
        if let Slot::Kept(entries) = slot {
            self.0.evicted(entries.len() as u64);
        }
    }
}

impl Store {
    pub(super) fn new(config: CacheConfig) -> Self {
        let counters = Counters::new();
        // Each shard has its part of the bytes, in which the largest answers have to find a place.
        let largest = config.max_object_bytes.saturating_mul(4).max(1);
        let shards = (config.max_bytes / largest).clamp(1, MAX_SHARDS);
        let options = OptionsBuilder::new()
            .weight_capacity(config.max_bytes)
            .estimated_items_capacity(
                usize::try_from(config.max_bytes / 4096).unwrap_or(usize::MAX).max(1024),
            )
            .shards(shards as usize)
            .build();
        let evictions = Evictions(counters.clone());
        let slots = match options {
            Ok(options) => Cache::with_options(options, Weigh, Default::default(), evictions),
            Err(_) => Cache::with(1024, config.max_bytes, Weigh, Default::default(), evictions),
        };
        Self {
            config,
            counters,
            flights: Flights::new(),
            on_way: Arc::default(),
            slots,
            stripes: (0..STRIPES).map(|_| Mutex::new(0)).collect(),
            hasher: RandomState::new(),
            purges: RwLock::default(),
        }
    }

    pub(super) fn find(&self, key: &KeyRef<'_>, request: &HeaderMap, now: Instant) -> Found {
        match self.slots.get(key) {
            None => Found::Nothing,
            Some(Slot::Pass { until, silent: true }) if now + PASS_FOR / 2 < until => Found::Silent,
            Some(Slot::Pass { until, .. }) if now < until => Found::Pass,
            Some(Slot::Pass { .. }) => Found::Nothing,
            Some(Slot::Kept(entries)) => {
                match (entries.iter().find(|entry| entry.head.vary.matches(request)), entries.first()) {
                    (Some(entry), _) => Found::Entry(entry.clone()),
                    (None, Some(other)) => Found::Other(other.head.vary.with_values_of(request)),
                    (None, None) => Found::Nothing,
                }
            }
        }
    }

    fn stripe(&self, key: &impl Hash) -> MutexGuard<'_, u64> {
        // The remainder is far below what a `usize` holds.
        let index = (self.hasher.hash_one(key) % STRIPES as u64) as usize;
        self.stripes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment at which a fetch begins.
    pub(super) fn epoch(&self, key: &Key) -> Epoch {
        let own = *self.stripe(key);
        let purges = self.purges.read().unwrap_or_else(PoisonError::into_inner);
        Epoch { own, of_all: purges.number }
    }

    /// Keeps an answer that was asked for at that moment, unless it was purged since.
    pub(super) fn keep(&self, key: &Arc<Key>, epoch: Epoch, entry: Entry) -> bool {
        let stripe = self.stripe(key);
        // Held until the entry is in place, so that a purge from now on finds it.
        let purges = self.purges.read().unwrap_or_else(PoisonError::into_inner);
        if *stripe != epoch.own || purges.hit(epoch.of_all, key, &entry) {
            return false;
        }
        let mut entries = vec![entry];
        if let Some(Slot::Kept(others)) = self.slots.peek(key) {
            // An answer that varies by other fields than before replaces them all: their rule no longer holds.
            let vary = &entries[0].head.vary;
            let stay = |other: &&Entry| other.head.vary != *vary && other.head.vary.has_fields_of(vary);
            let others: Vec<Entry> = others.iter().filter(stay).take(MAX_VARIANTS - 1).cloned().collect();
            entries.extend(others);
        }
        self.slots.insert(Arc::clone(key), Slot::Kept(entries.into()));
        self.counters.stored();
        self.counters.holds(self.slots.weight());
        true
    }

    /// Remembers that an answer to this request was not for sharing. What was kept for it no longer counts.
    pub(super) fn pass(&self, key: &Arc<Key>, request: &HeaderMap, now: Instant, silent: bool) {
        let _stripe = self.stripe(key);
        let others: Vec<Entry> = match self.slots.peek(key) {
            // It is remembered for long enough.
            Some(Slot::Pass { until, .. }) if until > now + PASS_FOR / 2 => return,
            Some(Slot::Kept(entries)) => {
                entries.iter().filter(|entry| !entry.head.vary.matches(request)).cloned().collect()
            }
            _ => Vec::new(),
        };
        let slot = if others.is_empty() {
            Slot::Pass { until: now + PASS_FOR, silent }
        } else {
            Slot::Kept(others.into())
        };
        self.slots.insert(Arc::clone(key), slot);
    }

    /// Forgets that an answer was not for sharing.
    pub(super) fn forget_pass(&self, key: &Key) {
        let _stripe = self.stripe(key);
        if let Some(Slot::Pass { .. }) = self.slots.peek(&key.borrowed()) {
            self.slots.remove(&key.borrowed());
        }
    }

    /// Drops what is kept under this key, and what is being fetched for it.
    pub(super) fn remove(&self, key: &KeyRef<'_>) -> u64 {
        let mut stripe = self.stripe(key);
        *stripe += 1;
        match self.slots.remove(key) {
            Some((_, Slot::Kept(entries))) => entries.len() as u64,
            _ => 0,
        }
    }

    /// Drops all that a purge hits, also of what is being fetched.
    pub(super) fn purge(&self, purge: Purge) -> u64 {
        let hits = |key: &Key, slot: &Slot| match slot {
            Slot::Kept(entries) => entries.iter().any(|entry| purge.hits(key, entry)),
            Slot::Pass { .. } => purge.names(key),
        };
        let removed = AtomicU64::new(0);
        let stays = |key: &Arc<Key>, slot: &Slot| {
            let hit = hits(key, slot);
            if let (true, Slot::Kept(entries)) = (hit, slot) {
                removed.fetch_add(entries.len() as u64, Ordering::Relaxed);
            }
            !hit
        };
        self.announce(&purge);
        self.slots.retain(stays);
        self.counters.holds(self.slots.weight());
        removed.into_inner()
    }

    /// From here on no answer is kept that was asked for earlier and that this purge hits.
    fn announce(&self, purge: &Purge) {
        let mut purges = self.purges.write().unwrap_or_else(PoisonError::into_inner);
        purges.number += 1;
        if purges.recent.len() == REMEMBERED_PURGES {
            purges.recent.pop_front();
        }
        purges.recent.push_back(purge.clone());
    }

    /// Whether more is on its way than may be kept.
    pub(super) fn is_flooded(&self) -> bool {
        self.on_way.load(Ordering::Relaxed) > self.config.max_bytes
    }

    /// Bytes that are held.
    pub(super) fn weight(&self) -> u64 {
        self.slots.weight()
    }

    /// All entries, with their keys.
    pub(super) fn entries(&self) -> impl Iterator<Item = (Arc<Key>, Entry)> {
        self.slots.iter().flat_map(|(key, slot)| {
            let entries = match slot {
                Slot::Kept(entries) => entries.to_vec(),
                Slot::Pass { .. } => Vec::new(),
            };
            // The oldest first, so that they come into the same order again one by one.
            entries.into_iter().rev().map(move |entry| (Arc::clone(&key), entry))
        })
    }
}
