use std::{
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::simulation::{Read, Simulation, TTLS};
use super::{SizeUnit, WouldBe, WouldBeRatio};

/// How many entries a small cache holds at most. By these, ratios are within two points of the truth on real traces.
const MOST: u64 = 2048;

/// How many hits wait to be noted at most.
const WAITING: usize = 4096;

const USUAL_TTLS: [Duration; TTLS - 1] = [
    Duration::from_secs(1),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(60 * 60),
    Duration::from_secs(24 * 60 * 60),
];

/// Watches the reads of one cache, for some of its keys.
///
/// Keys are chosen by their hash, so all reads of a chosen key are seen (Waldspurger et al., "Efficient MRC Construction
/// with SHARDS", FAST '15), and a cache that is smaller in the same proportion behaves on them as the large one does on
/// all (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", ATC '17).
pub(crate) struct Sampler {
    hasher: RandomState,
    /// Which bits of a hash must be zero for a key to be seen by any simulation.
    mask: u64,
    start: Instant,
    ttls: [Duration; TTLS],
    ttls_ms: [u32; TTLS],
    simulations: Mutex<Box<[Simulation]>>,
    /// Hits, until somebody has time for them. Locked after `simulations`.
    waiting: Mutex<Vec<Read>>,
    /// Hits that did not come among those.
    unnoted: AtomicU64,
}

/// The hash of a key that is watched.
#[derive(Clone, Copy)]
pub(crate) struct Sampled(u64);

impl Sampler {
    /// For a cache that holds `capacity`, which are about so many `entries`: sizes from an eighth of it to its eightfold.
    pub(crate) fn around(capacity: u64, entries: u64, ttl: Duration) -> Sampler {
        let part =
            |of: u64, eighths: u128| u64::try_from(u128::from(of) * eighths / 8).unwrap_or(u64::MAX).max(1);
        let simulations = [1, 2, 4, 8, 16, 32, 64].map(|eighths| {
            let entries_then = part(entries, eighths);
            // A larger cache may see fewer keys, a smaller one has no need to see more.
            let shift = shift_for(entries_then.max(entries));
            Simulation::new(part(capacity, eighths), entries_then, shift)
        });
        Sampler::new(Box::new(simulations), ttl)
    }

    /// For caches of so many entries.
    pub(crate) fn at(sizes: &[u64], ttl: Duration) -> Sampler {
        let simulations = sizes.iter().map(|size| Simulation::new(*size, *size, shift_for(*size)));
        Sampler::new(simulations.collect(), ttl)
    }

    fn new(simulations: Box<[Simulation]>, ttl: Duration) -> Sampler {
        let shift = simulations.iter().map(|simulation| simulation.shift).min().unwrap_or(0);
        let ttls = ttls_with(ttl);
        Sampler {
            hasher: RandomState::new(),
            mask: mask(shift),
            start: Instant::now(),
            ttls,
            ttls_ms: ttls.map(|ttl| u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX)),
            simulations: Mutex::new(simulations),
            waiting: Mutex::default(),
            unnoted: AtomicU64::new(0),
        }
    }

    /// `None` for most keys: nothing needs to be told of them.
    pub(crate) fn sample<K: Hash + ?Sized>(&self, key: &K) -> Option<Sampled> {
        let hash = self.hasher.hash_one(key);
        (hash & self.mask == 0).then_some(Sampled(hash))
    }

    /// A read that memory answered. Simulations would cost it more than the read: they hear of it later, in order.
    pub(crate) fn hit(&self, key: Sampled, weight: u64) {
        let read = Read { key: key.0, now: self.now(), seconds: 0.0, weight: Some(weight) };
        match self.waiting.try_lock() {
            Ok(mut waiting) if waiting.len() < WAITING => waiting.push(read),
            // It is taken by a thread that reads the same key, or by who makes room: they are not waited for.
            _ => drop(self.unnoted.fetch_add(1, Ordering::Relaxed)),
        }
    }

    pub(crate) fn missed(&self, key: Sampled) {
        self.read(key, Duration::ZERO, None);
    }

    /// A read that takes `load` when no cache answers it.
    pub(crate) fn read(&self, key: Sampled, load: Duration, weight: Option<u64>) {
        let read = Read { key: key.0, now: self.now(), seconds: load.as_secs_f64(), weight };
        for simulation in key.of(&mut self.lock()) {
            simulation.read(&read, &self.ttls_ms, false);
        }
    }

    /// Notes the hits that wait for it.
    pub(crate) fn catch_up(&self) {
        drop(self.lock());
    }

    /// What was read is kept.
    pub(crate) fn stored(&self, key: Sampled, weight: u64) {
        let now = self.now();
        key.of(&mut self.lock()).for_each(|simulation| simulation.store(key.0, now, weight));
    }

    /// The key is invalidated, or is not to be kept.
    pub(crate) fn removed(&self, key: Sampled) {
        key.of(&mut self.lock()).for_each(|simulation| simulation.remove(key.0));
    }

    pub(crate) fn cleared(&self) {
        self.lock().iter_mut().for_each(Simulation::clear);
    }

    /// `requests` are all that there were, and `load_seconds` what they would have taken without any cache.
    pub(crate) fn report(
        &self,
        name: &'static str,
        unit: SizeUnit,
        requests: u64,
        load_seconds: f64,
    ) -> WouldBe {
        let mut ratios = Vec::new();
        // A larger cache is asked for fewer keys, and may miss the most popular: it does no worse than a smaller one.
        let mut least = [(0.0_f64, 0.0_f64); TTLS];
        let simulations = self.lock();
        let unnoted = self.unnoted.load(Ordering::Relaxed) as f64;
        let noted = simulations.iter().map(Simulation::hits_noted).fold(0.0, f64::max);
        // What was not noted was as what was.
        let stand_for = if noted > 0.0 { 1.0 + unnoted / noted } else { 1.0 };
        for simulation in &*simulations {
            for (n, ttl) in
                self.ttls.iter().enumerate().filter(|(n, ttl)| *n == 0 || self.ttls[n - 1] != **ttl)
            {
                let (hits, saved) = simulation.ratios(n, stand_for);
                least[n] = (hits.max(least[n].0), saved.max(least[n].1));
                let (hit_ratio, of_time) = least[n];
                ratios.push(WouldBeRatio {
                    size: simulation.capacity,
                    ttl: *ttl,
                    hit_ratio,
                    hits: (hit_ratio * requests as f64).round() as u64,
                    load_seconds_saved: of_time * load_seconds,
                });
            }
        }
        WouldBe { name: name.into(), unit, requests, load_seconds, ratios }
    }

    /// The simulations, up to date.
    fn lock(&self) -> MutexGuard<'_, Box<[Simulation]>> {
        let mut simulations = self.simulations.lock().unwrap_or_else(PoisonError::into_inner);
        for read in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            for simulation in Sampled(read.key).of(&mut simulations) {
                simulation.read(&read, &self.ttls_ms, true);
            }
        }
        simulations
    }

    fn now(&self) -> u32 {
        self.start.elapsed().as_millis() as u32
    }
}

impl Sampled {
    fn of(self, simulations: &mut [Simulation]) -> impl Iterator<Item = &mut Simulation> {
        simulations.iter_mut().filter(move |simulation| self.0 & mask(simulation.shift) == 0)
    }
}

/// How few keys need be seen to tell what a cache of so many entries would do.
fn shift_for(entries: u64) -> u32 {
    let fewer = entries.div_ceil(MOST);
    64 - fewer.saturating_sub(1).leading_zeros()
}

/// Not the lowest bits and not the highest, by which hash tables place and tell apart what they hold.
fn mask(shift: u32) -> u64 {
    ((1_u64 << shift.min(40)) - 1) << 24
}

fn ttls_with(configured: Duration) -> [Duration; TTLS] {
    let mut ttls = [configured; TTLS];
    ttls[1..].copy_from_slice(&USUAL_TTLS);
    ttls.sort();
    ttls
}
