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
    /// Of reads that the real cache answered, and of those that it did not: of the former some may be missing.
    answered: Tally,
    unanswered: Tally,
}

#[derive(Default)]
struct Tally {
    seen: u64,
    seconds_seen: f64,
    hits: [u64; TTLS],
    seconds_saved: [f64; TTLS],
}

/// A read of a key.
pub(super) struct Read {
    /// Its hash.
    pub(super) key: u64,
    /// When, in milliseconds.
    pub(super) now: u32,
    /// How long a load takes.
    pub(super) seconds: f64,
    /// `None` when nobody knows yet what will be stored.
    pub(super) weight: Option<u64>,
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
            answered: Tally::default(),
            unanswered: Tally::default(),
        }
    }

    pub(super) fn read(&mut self, read: &Read, ttls: &[u32; TTLS], answered: bool) {
        let tally = if answered { &mut self.answered } else { &mut self.unanswered };
        tally.seen += 1;
        tally.seconds_seen += read.seconds;
        let Some(mut entry) = self.cache.get_mut(&read.key) else {
            if let Some(weight) = read.weight {
                self.cache.insert(read.key, Entry { weight, loaded: [read.now; TTLS] });
            }
            return;
        };
        for (n, loaded) in entry.loaded.iter_mut().enumerate() {
            if read.now.wrapping_sub(*loaded) < ttls[n] {
                tally.hits[n] += 1;
                tally.seconds_saved[n] += read.seconds;
            } else {
                *loaded = read.now;
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

    /// How many hits of the real cache were noted, of all keys.
    pub(super) fn hits_noted(&self) -> f64 {
        self.answered.seen as f64
    }

    /// What part of the reads it answers with the `n`th TTL, and what part of the load time that saves. Each read that
    /// the real cache answered stands for so many.
    pub(super) fn ratios(&self, n: usize, stand_for: f64) -> (f64, f64) {
        let (answered, unanswered) = (&self.answered, &self.unanswered);
        let sum = |of: fn(&Tally, usize) -> f64| stand_for * of(answered, n) + of(unanswered, n);
        let seen = sum(|tally, _| tally.seen as f64).max(1.0);
        let hits = sum(|tally, n| tally.hits[n] as f64) / seen;
        let seconds = sum(|tally, _| tally.seconds_seen);
        // Where loads are not timed, one is as long as another.
        (hits, if seconds > 0.0 { sum(|tally, n| tally.seconds_saved[n]) / seconds } else { hits })
    }
}
