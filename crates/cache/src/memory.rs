use std::{hash::Hash, sync::Arc, time::Duration};

use quick_cache::{
    Lifecycle,
    sync::{Cache, DefaultLifecycle},
};

use crate::clock::Clock;

/// L1: what this process keeps. Bounded by entries; an entry has its own end.
pub(crate) struct Memory<K, V> {
    entries: Cache<K, Entry<V>>,
    clock: Clock,
    ttl: Duration,
}

pub(crate) struct Entry<V> {
    value: Arc<V>,
    expires: u64,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Entry<V> {
        Entry { value: Arc::clone(&self.value), expires: self.expires }
    }
}

/// What had to go. The caller holds it until its locks are released: dropping it runs the user's code.
#[must_use]
pub(crate) struct Removed<K, V> {
    _evicted: Option<Evicted<K, Entry<V>>>,
    _removed: Option<(K, Entry<V>)>,
}

type Evicted<K, E> = <DefaultLifecycle<K, E> as Lifecycle<K, E>>::RequestState;

impl<K: Hash + Eq, V> Memory<K, V> {
    pub(crate) fn new(max_entries: usize, ttl: Duration) -> Memory<K, V> {
        Memory { entries: Cache::new(max_entries), clock: Clock::for_ttl(ttl), ttl }
    }

    #[inline]
    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        let entry = self.entries.get(key)?;
        (entry.expires > self.clock.now()).then_some(entry.value)
    }

    pub(crate) fn insert(&self, key: K, value: Arc<V>) -> Removed<K, V> {
        if self.ttl.is_zero() {
            return self.remove(&key);
        }
        let ttl = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        // A TTL under a millisecond is still one.
        let expires = self.clock.exact().saturating_add(ttl.max(1));
        let mut evicted = Default::default();
        self.entries.insert_with_lifecycle(key, Entry { value, expires }, &mut evicted);
        Removed { _evicted: Some(evicted), _removed: None }
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn weight(&self) -> u64 {
        self.entries.weight()
    }

    pub(crate) fn remove(&self, key: &K) -> Removed<K, V> {
        Removed { _evicted: None, _removed: self.entries.remove(key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_past_the_end_of_time_is_no_panic() {
        let memory = Memory::new(10, Duration::MAX);
        let _ = memory.insert(1, Arc::new("a"));
        assert_eq!(memory.get(&1).as_deref(), Some(&"a"));
    }

    #[test]
    fn a_zero_ttl_keeps_nothing() {
        let memory = Memory::new(10, Duration::ZERO);
        let _ = memory.insert(1, Arc::new("a"));
        assert!(memory.get(&1).is_none());
    }

    #[test]
    fn no_more_entries_stay_than_allowed() {
        for max_entries in [0, 1, 100] {
            let memory = Memory::new(max_entries, Duration::from_secs(60));
            for key in 0..1_000 {
                let _ = memory.insert(key, Arc::new(key));
            }
            let kept = (0..1_000).filter(|key| memory.get(key).is_some()).count();
            assert!(kept <= max_entries, "{kept} of at most {max_entries}");
            assert_eq!(kept == 0, max_entries == 0);
        }
        let _ = Memory::<u64, u64>::new(usize::MAX, Duration::from_secs(60));
    }
}
