//! What a cache keeps and what it forgets, in memory and in the remote.

use std::{collections::HashSet, hash::Hash, sync::Arc, time::Duration};

use super::Inner;
use crate::{
    Loaded,
    landing::Answered,
    loaded::Answer,
    memory::{Item, Look, Old, Removed},
    policy::{Policy, Weight},
    remote::{Coherence, Filled, Outgoing, Seal, Tier},
};

impl<K: Hash + Eq + Clone, V> Inner<K, V> {
    pub(crate) fn policy(&self) -> &Policy {
        &self.memory.policy
    }

    /// What to keep of what the source said.
    pub(crate) fn answered(&self, loaded: Loaded<V>, prior: Option<&Old<V>>, tags_seen: u64) -> Answered<V> {
        let mut names = loaded.tags;
        let value = match loaded.answer {
            Answer::Value(value) => Some(value),
            Answer::Absent => None,
            Answer::NotModified => {
                if names.is_empty() {
                    let tags = prior.and_then(|prior| prior.tags.as_ref());
                    names = tags.map(|tags| tags.names()).unwrap_or_default();
                }
                prior.and_then(|prior| prior.value.clone())
            }
        };
        let life = match loaded.store {
            true => self.policy().life(value.is_some(), loaded.ttl),
            false => Default::default(),
        };
        Answered { tags: self.tags.set(tags_seen, &names), value, life }
    }

    pub(crate) fn outgoing<'a>(&self, answered: &'a Answered<V>, tags: &'a [Arc<str>]) -> Outgoing<'a, V> {
        let fresh_for = answered.life.remote;
        let stale_for = match fresh_for.is_zero() {
            true => Duration::ZERO,
            false => Duration::from_millis(self.policy().stale()),
        };
        Outgoing { value: answered.value.as_deref(), fresh_for, stale_for, tags }
    }

    pub(super) fn coherence(&self) -> Option<&Arc<Coherence>> {
        self.remote.as_ref().map(Tier::coherence)
    }

    /// How long memory keeps what the remote has.
    pub(crate) fn found_ttl(&self, seal: Seal, fresh_for: Duration) -> Duration {
        self.bound(seal, self.policy().found(fresh_for))
    }

    fn bound(&self, seal: Seal, ttl: Duration) -> Duration {
        self.coherence().map_or(ttl, |coherence| coherence.bound(seal, ttl))
    }

    /// How long memory keeps what the remote has not confirmed, and so tells nobody of.
    pub(crate) fn unconfirmed_ttl(&self, ttl: Duration) -> Duration {
        self.coherence().map_or(ttl, |coherence| coherence.unconfirmed(ttl))
    }

    /// Gives what is in memory the life that the remote's word allows. Under a claim of the key.
    pub(crate) fn confirm(&self, key: &K, answered: &Answered<V>, filled: Filled) -> Option<Removed<K, V>> {
        match filled {
            Filled::Yes(seal) => {
                let ttl = self.bound(seal, answered.life.memory);
                Some(self.memory.extend(key, &answered.value, seal, ttl))
            }
            Filled::Outdated => Some(self.memory.remove(key)),
            Filled::Unavailable(_) => None,
        }
    }

    pub(super) fn put(&self, key: &K, answered: &Answered<V>, seal: Option<Seal>, ttl: Duration) {
        let weight = self.weigh(key, answered);
        let item = Item { value: answered.value.clone(), tags: answered.tags.clone(), seal };
        let removed = self.table.outdate(key, || self.memory.insert(key, item, weight, ttl));
        self.metrics.evictions.increment(removed.evicted);
    }

    fn weigh(&self, key: &K, answered: &Answered<V>) -> Weight {
        let weight = self.memory.weigh(key, answered.value.as_ref());
        if weight == Weight::TooLarge {
            self.metrics.too_large.increment(1);
        }
        weight
    }

    pub(super) fn forget(&self, keys: &[K]) {
        for key in keys {
            let removed = self.table.outdate(key, || self.memory.remove(key));
            drop(removed);
        }
    }

    pub(super) fn clear_memory(&self) -> Removed<K, V> {
        // In this order: what a claim from before has stored must be there to be removed.
        self.table.outdate_all();
        self.memory.clear()
    }
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(super) async fn get_elsewhere(&self, key: &K, look: Look<V>) -> Option<Arc<V>> {
        if let Some(value) = look.fresh() {
            self.metrics.hits.increment(1);
            return value;
        }
        let found = self.look_remotely(key).await;
        match &found {
            Some(_) => self.metrics.remote_hits.increment(1),
            None => self.metrics.misses.increment(1),
        }
        found.flatten()
    }

    async fn look_remotely(&self, key: &K) -> Option<Option<Arc<V>>> {
        let remote = self.remote.as_ref()?;
        // Where memory keeps nothing, nobody needs to know whether it may.
        let claim = self.policy().keeps_found().then(|| self.table.claim(key));
        let kept = remote.get(key).await.filter(|kept| !kept.fresh_for.is_zero())?;
        if let Some(claim) = claim {
            let ttl = self.found_ttl(kept.seal, kept.fresh_for);
            let weight = self.memory.weigh(key, kept.value.as_ref());
            let item = Item { value: kept.value.clone(), tags: kept.tags, seal: Some(kept.seal) };
            let removed = claim.store_last(|| self.memory.insert(key, item, weight, ttl));
            self.metrics.evictions.increment(removed.as_ref().map_or(0, |removed| removed.evicted));
        }
        Some(kept.value)
    }

    // All writers below change memory a second time when the remote has answered: who looked into the remote before it
    // changed, and began after the first change, carries an old value under a good claim.

    pub(super) async fn insert_remotely(self: Arc<Self>, key: K, answered: Answered<V>) {
        let Some(remote) = &self.remote else { return };
        let first = self.table.claim(&key);
        let writes = first.remote_writes();
        let _turn = writes.write().await;
        let before = remote.seal(&key);
        let unconfirmed = self.unconfirmed_ttl(answered.life.memory);
        let weight = self.weigh(&key, &answered);
        let item =
            |seal| Item { value: answered.value.clone(), tags: answered.tags.clone(), seal: Some(seal) };
        let removed =
            self.table.outdate(&key, || self.memory.insert(&key, item(before), weight, unconfirmed));
        self.metrics.evictions.increment(removed.evicted);
        drop(removed);
        // A clearing waits for no turn: what one has removed since now is not to come back.
        let claim = self.table.claim(&key);
        let (seal, ttl) = match remote.set(&key, self.outgoing(&answered, &answered.names())).await {
            Filled::Yes(seal) => (seal, self.bound(seal, answered.life.memory)),
            Filled::Unavailable(seal) => (seal.unwrap_or(before), unconfirmed),
            Filled::Outdated => (before, Duration::ZERO),
        };
        let removed = claim.outdate(|is_good| {
            let ttl = if is_good { ttl } else { Duration::ZERO };
            self.memory.insert(&key, item(seal), weight, ttl)
        });
        self.metrics.evictions.increment(removed.evicted);
    }

    pub(super) async fn remove_remotely(self: Arc<Self>, keys: HashSet<K>) {
        let Some(remote) = &self.remote else { return };
        // In one order, or two that want the same keys would wait for each other.
        let mut keys = Vec::from_iter(keys);
        keys.sort_by_cached_key(|key| self.table.rank(key));
        let claims: Vec<_> = keys.iter().map(|key| self.table.claim(key)).collect();
        let mut turns = Vec::with_capacity(keys.len());
        for claim in &claims {
            turns.push(claim.remote_writes().read_owned().await);
        }
        remote.delete(&keys).await;
        self.forget(&keys);
    }

    pub(super) async fn invalidate_tag_remotely(self: Arc<Self>, tag: Arc<str>) {
        let Some(remote) = &self.remote else { return };
        remote.invalidate_tag(&tag).await;
        self.tags.invalidate(&tag);
    }

    pub(super) async fn clear_remotely(self: Arc<Self>) {
        let Some(remote) = &self.remote else { return };
        remote.clear().await;
        drop(self.clear_memory());
    }
}
