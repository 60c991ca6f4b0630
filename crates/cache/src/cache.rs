use std::{fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::{
    CacheBuilder, LoadError,
    invalidate::{Entrance, Table},
    memory::Memory,
    remote::Tier,
    singleflight::{self, Landing},
    telemetry::Metrics,
};

/// A cache in this process, if you like with Redis behind it, that asks the source once for what many want.
///
/// A clone is another handle to the same cache. All methods need a tokio runtime with time enabled.
///
/// ```
/// use greenwave_cache::Cache;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let squares = Cache::<u64, u64>::builder("square").build();
///
/// let four = squares.get_or_load(&2, || async { Ok::<_, std::io::Error>(Some(2 * 2)) }).await;
/// assert_eq!(*four.unwrap().unwrap(), 4);
/// assert_eq!(squares.get(&2).await.as_deref(), Some(&4));
///
/// squares.invalidate(&2).await;
/// assert_eq!(squares.get(&2).await, None);
/// # }
/// ```
pub struct Cache<K, V> {
    inner: Arc<Inner<K, V>>,
}

pub(crate) struct Inner<K, V> {
    pub(crate) name: &'static str,
    pub(crate) memory: Memory<K, V>,
    pub(crate) table: Arc<Table<K, V>>,
    pub(crate) remote: Option<Tier<K, V>>,
    pub(crate) load_timeout: Duration,
    pub(crate) metrics: Metrics,
    /// Loads, and writes to the remote: each ends by its own deadline.
    pub(crate) tasks: TaskTracker,
}

impl<K, V> Cache<K, V> {
    /// Begins a cache. `name` labels its metrics and begins its keys in the remote.
    ///
    /// # Panics
    ///
    /// If `name` holds a colon, which is what ends it in the remote's keys.
    pub fn builder(name: &'static str) -> CacheBuilder<K, V> {
        CacheBuilder::new(name)
    }

    pub(crate) fn new(inner: Inner<K, V>) -> Cache<K, V> {
        Cache { inner: Arc::new(inner) }
    }

    #[cfg(feature = "tower")]
    pub(crate) fn name(&self) -> &'static str {
        self.inner.name
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// The value of `key`: from memory, from the remote, or by `load`.
    ///
    /// However many callers want a key at once, one `load` runs; the others wait for what it brings, be it a value,
    /// an error or a panic. `load` is called only when it is needed, so let it clone what its future takes along.
    ///
    /// `Ok(None)` means that the source has no such thing. That is passed on to all who wait, and not kept.
    ///
    /// # When it fails
    ///
    /// The source's error is shared, hence the `Arc` in [`LoadError::Source`]. Nothing is kept: the next caller loads
    /// again. A remote that is down, slow or full of garbage never fails a call, the source is asked instead.
    /// Callers whose loads have different error types share values but no errors: each type then asks for itself.
    ///
    /// # Invalidation
    ///
    /// When [`invalidate`](Cache::invalidate) or [`insert`](Cache::insert) comes during the load, those who already
    /// wait get the loaded value, but it is not kept, and those who come later do not wait for it.
    ///
    /// # Cancel safety
    ///
    /// The load runs in a task of its own, within the caller's span. Dropping this future, as a timeout does, neither
    /// stops nor repeats it; its value will be there for the next caller.
    pub async fn get_or_load<E, F, Fut>(&self, key: &K, load: F) -> Result<Option<Arc<V>>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
    {
        let inner = &self.inner;
        let look = || inner.memory.get(key).inspect(|_| inner.metrics.hits.increment(1));
        if let Some(value) = look() {
            return Ok(Some(value));
        }
        let (claim, flight) = loop {
            match inner.table.join_or_lead(key, look) {
                Entrance::Present(value) => return Ok(Some(value)),
                Entrance::Join(flight) => {
                    if let Some(received) = singleflight::received(flight.outcome().await, &inner.metrics) {
                        return received;
                    }
                }
                Entrance::Lead(claim, flight) => break (claim, flight),
            }
        };
        let landing = Landing { cache: Arc::clone(inner), claim, flight: Arc::clone(&flight) };
        inner.tasks.spawn(singleflight::fly(landing, singleflight::boxed(load)).instrument(Span::current()));
        match flight.outcome().await {
            Ok(value) => Ok(value.clone()),
            // Our own load fails with an E, so there is always an error.
            Err(failure) => Err(failure.to_error().unwrap_or(LoadError::Aborted)),
        }
    }

    /// The value of `key` if memory or the remote has it. Asks no source, and waits for no load.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn get(&self, key: &K) -> Option<Arc<V>> {
        let inner = &self.inner;
        if let Some(value) = inner.memory.get(key) {
            inner.metrics.hits.increment(1);
            return Some(value);
        }
        let found = inner.look_remotely(key).await;
        match &found {
            Some(_) => inner.metrics.remote_hits.increment(1),
            None => inner.metrics.misses.increment(1),
        }
        found
    }

    /// Puts a value into memory and the remote. It replaces what is there, and what a running load will bring.
    ///
    /// When the remote does not take the value, it is in memory only, and the remote is told to forget what it had.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn insert(&self, key: K, value: impl Into<Arc<V>>) {
        let value = value.into();
        match &self.inner.remote {
            None => self.inner.put(&key, &value),
            Some(_) => self.finish(Arc::clone(&self.inner).insert_remotely(key, value)).await,
        }
    }

    /// Forgets `key` in memory and the remote, and what a running load will bring.
    ///
    /// Call it *after* the change at the source is committed: a load that begins before would see the old state. When
    /// the future ends, no later call on this cache answers with a value from before, and the remote will not be given
    /// one, not even by a load that another process began before. Other processes' memory is not reached; see
    /// [`CacheConfig::ttl`](crate::CacheConfig::ttl).
    ///
    /// The remote is told even if it has just failed, so this may take its `timeout`. When it fails again, its entry
    /// stays until its TTL ends: that is logged, and counted in `greenwave.cache.remote.failures`.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn invalidate(&self, key: &K) {
        self.inner.metrics.invalidations.increment(1);
        self.inner.forget(key);
        if self.inner.remote.is_some() {
            self.finish(Arc::clone(&self.inner).remove_remotely(key.clone())).await;
        }
    }

    /// Waits until no load and no write to the remote is under way, as before a shutdown.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub async fn settled(&self) {
        self.inner.tasks.wait().await;
    }

    /// Runs `work` in a task of its own, and waits for it.
    async fn finish(&self, work: impl Future<Output = ()> + Send + 'static) {
        // Fails only when the runtime ends; then nobody is left to tell.
        let _ = self.inner.tasks.spawn(work.instrument(Span::current())).await;
    }
}

impl<K, V> Inner<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn put(&self, key: &K, value: &Arc<V>) {
        let removed = self.table.outdate(key, || self.memory.insert(key.clone(), Arc::clone(value)));
        drop(removed);
    }

    fn forget(&self, key: &K) {
        let removed = self.table.outdate(key, || self.memory.remove(key));
        drop(removed);
    }

    async fn look_remotely(&self, key: &K) -> Option<Arc<V>> {
        let remote = self.remote.as_ref()?;
        let claim = self.table.claim(key);
        let value = Arc::new(remote.get(key).await?);
        let removed = claim.store(|| self.memory.insert(key.clone(), Arc::clone(&value)));
        drop(removed);
        Some(value)
    }

    // Both writers below change memory a second time when the remote has answered: who looked into the remote before
    // it changed, and began after the first change, carries an old value under a good claim.

    async fn insert_remotely(self: Arc<Self>, key: K, value: Arc<V>) {
        let Some(remote) = &self.remote else { return };
        let claim = self.table.claim(&key);
        let writes = claim.remote_writes();
        let _turn = writes.write().await;
        self.put(&key, &value);
        remote.set(&key, &value).await;
        self.put(&key, &value);
    }

    async fn remove_remotely(self: Arc<Self>, key: K) {
        let Some(remote) = &self.remote else { return };
        let claim = self.table.claim(&key);
        let writes = claim.remote_writes();
        let _turn = writes.read().await;
        remote.delete(&key).await;
        self.forget(&key);
    }
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Cache<K, V> {
        Cache { inner: Arc::clone(&self.inner) }
    }
}

impl<K, V> fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.inner.name)
            .field("remote", &self.inner.remote.is_some())
            .finish_non_exhaustive()
    }
}
