use std::{fmt, hash::Hash, sync::Arc};

use tokio_util::task::TaskTracker;

use crate::{
    Cache, CacheConfig, cache::Inner, invalidate::Table, memory::Memory, remote::Tier, telemetry::Metrics,
};

/// Puts a [`Cache`] together.
pub struct CacheBuilder<K, V> {
    name: &'static str,
    config: CacheConfig,
    tier: Option<MakeTier<K, V>>,
}

type MakeTier<K, V> = Box<dyn FnOnce(&'static str, &CacheConfig) -> Tier<K, V> + Send>;

impl<K, V> CacheBuilder<K, V> {
    pub(crate) fn new(name: &'static str) -> CacheBuilder<K, V> {
        assert!(
            !name.contains(':'),
            "a cache's name must hold no colon, which ends it in the remote's keys: {name}"
        );
        CacheBuilder { name, config: CacheConfig::default(), tier: None }
    }

    /// How much to keep, and for how long; by default [`CacheConfig::default`].
    pub fn config(mut self, config: CacheConfig) -> CacheBuilder<K, V> {
        self.config = config;
        self
    }

    /// Keeps values in Redis too, behind this process's memory and in front of the source.
    ///
    /// Only this asks that values can be serialised. The key there is `{name}:{key}`, so different keys must have
    /// different `Display` texts. Mind [`CacheConfig::ttl`]: it bounds how old an answer from memory may be when
    /// another process writes.
    #[cfg(feature = "redis")]
    pub fn remote(mut self, remote: crate::Remote) -> CacheBuilder<K, V>
    where
        K: fmt::Display,
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        self.tier = Some(Box::new(move |name, config| Tier::new(remote, name, config)));
        self
    }

    /// Makes the cache.
    ///
    /// Its metrics go to the `metrics` recorder that is installed now: install yours before.
    pub fn build(self) -> Cache<K, V>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        let tasks = TaskTracker::new();
        // Closed means only that `wait` ends when no task is left.
        tasks.close();
        Cache::new(Inner {
            name: self.name,
            memory: Memory::new(self.config.max_entries, self.config.ttl),
            table: Arc::new(Table::new()),
            remote: self.tier.map(|make| make(self.name, &self.config)),
            load_timeout: self.config.load_timeout,
            metrics: Metrics::new(self.name),
            tasks,
        })
    }
}

impl<K, V> fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("name", &self.name)
            .field("config", &self.config)
            .field("remote", &self.tier.is_some())
            .finish()
    }
}
