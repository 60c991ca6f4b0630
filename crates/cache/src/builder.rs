use std::{
    fmt,
    hash::Hash,
    sync::{Arc, Mutex},
};

use tokio_util::task::TaskTracker;

use crate::{
    Cache, CacheConfig,
    cache::Inner,
    invalidate::Table,
    memory::{Memory, Weigher},
    remote::Tier,
    tags::Tags,
    telemetry::Metrics,
};

/// Puts a [`Cache`] together.
pub struct CacheBuilder<K, V> {
    name: &'static str,
    config: CacheConfig,
    weigher: Option<Weigher<K, V>>,
    tier: Option<MakeTier<K, V>>,
}

type MakeTier<K, V> = Box<dyn FnOnce(&'static str, &CacheConfig, Arc<Tags>) -> Tier<K, V> + Send>;

impl<K, V> CacheBuilder<K, V> {
    pub(crate) fn new(name: &'static str) -> CacheBuilder<K, V> {
        assert!(
            !name.contains([':', '\0']),
            "a cache's name must hold no colon or zero, which end it in the remote's keys: {name}"
        );
        CacheBuilder { name, config: CacheConfig::default(), weigher: None, tier: None }
    }

    /// How much to keep, and for how long; by default [`CacheConfig::default`].
    pub fn config(mut self, config: CacheConfig) -> CacheBuilder<K, V> {
        self.config = config;
        self
    }

    /// What a value weighs, in bytes, for [`CacheConfig::max_bytes`] and [`CacheConfig::max_value_bytes`].
    ///
    /// By default each weighs what its type and its key's take, which is right for values that own nothing. It is asked
    /// once for each value that is kept. What the cache itself needs for an entry comes on top of it.
    ///
    /// ```
    /// use greenwave_cache::{Cache, CacheConfig};
    ///
    /// let config = CacheConfig { max_bytes: 64 << 20, ..Default::default() };
    /// let pages = Cache::<u64, String>::builder("page")
    ///     .config(config)
    ///     .weigher(|_, page| page.len() as u64)
    ///     .build();
    /// ```
    pub fn weigher(mut self, weigher: impl Fn(&K, &V) -> u64 + Send + Sync + 'static) -> CacheBuilder<K, V> {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// Keeps values in Redis too, behind this process's memory and in front of the source.
    ///
    /// Only this asks that values can be serialised: they are kept as [`MessagePack`](crate::MessagePack). The key there
    /// is `{namespace}:{name}:{key}`, so different keys must have different `Display` texts; where they have not, or
    /// have none, use [`remote_with`](CacheBuilder::remote_with).
    #[cfg(feature = "redis")]
    pub fn remote(self, remote: crate::Remote) -> CacheBuilder<K, V>
    where
        K: fmt::Display + 'static,
        V: serde::Serialize + serde::de::DeserializeOwned + 'static,
    {
        self.remote_by(remote, Box::new(crate::remote::display), crate::MessagePack)
    }

    /// The same with keys and values written as you like.
    ///
    /// `key` gives the bytes that stand for a key, which may be any, and must be others for another key. All processes
    /// must write the same key the same way, or they will not hear of each other's changes.
    ///
    /// ```
    /// # use greenwave_cache::{Cache, MessagePack, Remote};
    /// # fn main() -> Result<(), greenwave_cache::Error> {
    /// let remote = Remote::connect("redis://127.0.0.1:6379")?;
    /// let key = |(x, y): &(u32, u32)| [x.to_be_bytes(), y.to_be_bytes()].concat();
    /// let tiles = Cache::<(u32, u32), String>::builder("tile").remote_with(remote, key, MessagePack).build();
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "redis")]
    pub fn remote_with<B: AsRef<[u8]>>(
        self,
        remote: crate::Remote,
        key: impl Fn(&K) -> B + Send + Sync + 'static,
        codec: impl crate::Codec<V>,
    ) -> CacheBuilder<K, V>
    where
        K: 'static,
        V: 'static,
    {
        let append = move |of: &K, bytes: &mut Vec<u8>| bytes.extend_from_slice(key(of).as_ref());
        self.remote_by(remote, Box::new(append), codec)
    }

    #[cfg(feature = "redis")]
    fn remote_by(
        mut self,
        remote: crate::Remote,
        key: crate::remote::MakeKey<K>,
        codec: impl crate::Codec<V>,
    ) -> CacheBuilder<K, V>
    where
        K: 'static,
        V: 'static,
    {
        let codec = Box::new(codec);
        self.tier =
            Some(Box::new(move |name, config, tags| Tier::new(remote, name, config, tags, key, codec)));
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
        let tags = Arc::default();
        let remote = self.tier.map(|make| make(self.name, &self.config, Arc::clone(&tags)));
        let coherence = remote.as_ref().map(Tier::coherence).cloned();
        Cache::new(Inner {
            name: self.name,
            memory: Memory::new(&self.config, self.weigher, coherence),
            table: Arc::new(Table::new()),
            tags,
            remote,
            metrics: Metrics::new(self.name),
            tasks,
            failed: Mutex::default(),
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
