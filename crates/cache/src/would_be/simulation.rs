use quick_cache::{Weighter, unsync::Cache};

/// How many TTLs are tried at once.
pub(super) const TTLS: usize = 7;

/// A small cache that stands for a large one: of the keys it sees one in so many, and it is smaller by as much.
///
/// It decides by the policy of the real one, and keeps when each key would last have been loaded, by TTL.
pub(super) struct Simulation {
    /// How large the cache is that it stands for.
    pub(super) capacity: u64,
    /// Of how many keys it sees one, as a power of two.
    pub(super) shift: u32,
    cache: Cache<u64, Entry, Weight>,
    seen: u64,
    seconds_seen: f64,
    hits: [u64; TTLS],
    seconds_saved: [f64; TTLS],
}

#[derive(Clone, Copy)]
struct Entry {
    weight: u64,
    /// Milliseconds, in a circle of 49 days: an entry that nobody asked for in that time may be taken for a younger one.
    loaded: [u32; TTLS],
}

struct Weight;

impl Weighter<u64, Entry> for Weight {
    fn weight(&self, _: &u64, entry: &Entry) -> u64 {
        // An entry without weight is never evicted.
        entry.weight.max(1)
    }
}

impl Simulation {
    /// `capacity` of the large cache, and about how many entries that are.
    pub(super) fn new(capacity: u64, entries: u64, shift: u32) -> Simulation {
        let small = |large: u64| (large >> shift).max(1);
        Simulation {
            capacity,
            shift,
            cache: Cache::with_weighter(small(entries) as usize, small(capacity), Weight),
            seen: 0,
            seconds_seen: 0.0,
            hits: [0; TTLS],
            seconds_saved: [0.0; TTLS],
        }
    }

    /// A read of `key`, and how long a load takes. Without a weight nobody knows yet what will be stored.
    pub(super) fn read(&mut self, key: u64, now: u32, seconds: f64, ttls: &[u32; TTLS], weight: Option<u64>) {
        self.seen += 1;
        self.seconds_seen += seconds;
        let Some(mut entry) = self.cache.get_mut(&key) else {
            if let Some(weight) = weight {
                self.cache.insert(key, Entry { weight, loaded: [now; TTLS] });
            }
            return;
        };
        for (n, loaded) in entry.loaded.iter_mut().enumerate() {
            if now.wrapping_sub(*loaded) < ttls[n] {
                self.hits[n] += 1;
                self.seconds_saved[n] += seconds;
            } else {
                *loaded = now;
            }
        }
    }

    pub(super) fn store(&mut self, key: u64, now: u32, weight: u64) {
        let entry = match self.cache.peek(&key) {
            Some(entry) if entry.weight == weight => return,
            Some(entry) => Entry { weight, ..*entry },
            None => Entry { weight, loaded: [now; TTLS] },
        };
        self.cache.insert(key, entry);
    }

    pub(super) fn remove(&mut self, key: u64) {
        self.cache.remove(&key);
    }

    pub(super) fn clear(&mut self) {
        self.cache.clear();
    }

    /// What part of the reads it answers with the `n`th TTL, and what part of the load time that saves.
    pub(super) fn ratios(&self, n: usize) -> (f64, f64) {
        let hits = self.hits[n] as f64 / self.seen.max(1) as f64;
        // Where loads are not timed, one is as long as another.
        (hits, if self.seconds_seen > 0.0 { self.seconds_saved[n] / self.seconds_seen } else { hits })
    }
}
