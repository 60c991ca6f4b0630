use std::{
    cell::Cell,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// How many threads may count without sharing; those beyond it share one count.
const OWN: usize = 63;
const SHARED: usize = OWN;
const UNKNOWN: usize = usize::MAX;

/// A count that many threads raise at once, without handing one cache line from core to core.
///
/// A thread owns a place in every count for as long as it lives, so there it needs no atomic addition: that alone would
/// cost a tenth of a hit.
pub(crate) struct Striped {
    places: Box<[Place; OWN]>,
    shared: AtomicU64,
}

/// Two cache lines, since processors fetch neighbours in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Place(AtomicU64);

thread_local! {
    // Apart from the tenure, whose destructor would make each access look whether it has run.
    static PLACE: Cell<usize> = const { Cell::new(UNKNOWN) };
    static TENURE: Tenure = Tenure::take();
}

/// Places that no living thread owns, and how many were ever given.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

impl Striped {
    pub(crate) fn new() -> Striped {
        Striped { places: Box::new(std::array::from_fn(|_| Place::default())), shared: AtomicU64::new(0) }
    }

    #[inline]
    pub(crate) fn increment(&self, by: u64) {
        match self.places.get(PLACE.get()) {
            Some(Place(count)) => count.store(count.load(Ordering::Relaxed) + by, Ordering::Relaxed),
            None => self.increment_elsewhere(by),
        }
    }

    #[cold]
    fn increment_elsewhere(&self, by: u64) {
        if PLACE.get() == UNKNOWN {
            // Where a thread ends already, it shares.
            PLACE.set(SHARED);
            let _ = TENURE.try_with(|tenure| PLACE.set(tenure.0));
        }
        match PLACE.get() {
            SHARED => drop(self.shared.fetch_add(by, Ordering::Relaxed)),
            _ => self.increment(by),
        }
    }

    pub(crate) fn get(&self) -> u64 {
        let own = self.places.iter().map(|place| place.0.load(Ordering::Relaxed));
        own.sum::<u64>() + self.shared.load(Ordering::Relaxed)
    }
}

/// A thread's right to its place. The next owner takes it under the same lock, and so sees the last count.
struct Tenure(usize);

impl Tenure {
    fn take() -> Tenure {
        let (free, given) = &mut *FREE.lock().unwrap_or_else(PoisonError::into_inner);
        Tenure(free.pop().unwrap_or_else(|| {
            if *given == OWN {
                return SHARED;
            }
            *given += 1;
            *given - 1
        }))
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        PLACE.set(SHARED);
        if self.0 != SHARED {
            FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_is_lost_though_threads_come_and_go_and_outnumber_the_places() {
        let count = Striped::new();
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for _ in 0..2 * OWN {
                    scope.spawn(|| (0..1_000).for_each(|_| count.increment(1)));
                }
            });
        }
        assert_eq!(count.get(), 2 * 2 * OWN as u64 * 1_000);
    }
}
