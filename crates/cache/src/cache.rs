mod fetch;
mod get;
mod get_many;
mod keep;

use std::{
    fmt,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex},
};

use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use self::get::Get;
use crate::{
    CacheBuilder, LoadError, Loaded,
    invalidate::Table,
    loaded::Answer,
    memory::Memory,
    remote::Tier,
    singleflight::{Flight, Load},
    tags::Tags,
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
    pub(crate) inner: Arc<Inner<K, V>>,
}

pub(crate) struct Inner<K, V> {
    pub(crate) name: &'static str,
    pub(crate) memory: Memory<K, V>,
    pub(crate) table: Arc<Table<K, Flight<V>>>,
    pub(crate) tags: Arc<Tags>,
    pub(crate) remote: Option<Tier<K, V>>,
    pub(crate) metrics: Metrics,
    /// Loads, and writes to the remote: each ends by its own deadline.
    pub(crate) tasks: TaskTracker,
    /// Loads that have failed and stay for a while, so that the source is left alone. They end with the cache.
    pub(crate) failed: Mutex<JoinSet<()>>,
}

impl<K, V> Cache<K, V> {
    /// Begins a cache. `name` labels its metrics and begins its keys in the remote.
    ///
    /// # Panics
    ///
    /// If `name` holds a colon or a zero, which are what ends it in the remote's keys.
    pub fn builder(name: &'static str) -> CacheBuilder<K, V> {
        CacheBuilder::new(name)
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
    pub(crate) fn new(inner: Inner<K, V>) -> Cache<K, V> {
        let inner = Arc::new(inner);
        let cache = Arc::downgrade(&inner);
        inner.memory.clock.on_tick(Box::new(move || {
            if let Some(cache) = cache.upgrade() {
                cache.metrics.publish(cache.memory.entries(), cache.memory.weight());
                cache.memory.sampler.catch_up();
            }
        }));
        if let Some(remote) = &inner.remote {
            let cache = Arc::downgrade(&inner);
            remote.on_clear(Box::new(move || {
                let Some(cache) = cache.upgrade() else { return };
                let removed = cache.clear_memory();
                // Who tells of it is the connection's task, which must not wait for the user's destructors.
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn_blocking(move || drop(removed));
                }
            }));
        }
        Cache { inner }
    }

    /// The value of `key`: from memory, from the remote, or by `load`.
    ///
    /// However many callers want a key at once, one `load` runs; the others wait for what it brings, be it a value,
    /// an error or a panic. `load` is called only when it is needed, so let it clone what its future takes along.
    ///
    /// A load gives an `Option<V>`, where `Ok(None)` means that the source has no such thing, or a [`Loaded`], which
    /// says how long the answer is good, what tags it has, or that it is not to be kept.
    ///
    /// # Stale values
    ///
    /// With the [config](crate::CacheConfig)'s `stale_while_revalidate` and `refresh_after`, what is past its TTL or
    /// soon will be is answered at once, and `load` runs in the background. With `stale_if_error` it is answered when
    /// `load` fails, or is slower than `soft_timeout`. What was invalidated is never answered.
    ///
    /// # When it fails
    ///
    /// The source's error is shared, hence the `Arc` in [`LoadError::Source`], and answers those who come within
    /// `error_ttl`. A remote that is down, slow or full of garbage never fails a call, the source is asked instead.
    /// Callers whose loads have different error types share values but no errors: each type then asks for itself.
    ///
    /// # Invalidation
    ///
    /// When [`invalidate`](Cache::invalidate) or [`insert`](Cache::insert) comes during the load, those who already
    /// wait get the loaded value, but it is not kept, and those who come later do not wait for it.
    ///
    /// # Cancel safety
    ///
    /// The load runs in a task of its own, in a span `cache.load` within the caller's. Dropping this future, as a
    /// timeout does, neither stops nor repeats it; its value will be there for the next caller.
    pub async fn get_or_load<R, E, F, Fut>(&self, key: &K, load: F) -> Result<Option<Arc<V>>, LoadError<E>>
    where
        R: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        match self.inner.memory.read(key) {
            Ok(value) => {
                self.inner.metrics.hits.increment(1);
                Ok(value)
            }
            Err(look) => self.inner.fetch(key, look.old(), || Load::begin(load)).await,
        }
    }

    /// As [`get_or_load`](Cache::get_or_load), with a load that is given what there was before.
    ///
    /// That is the value past its TTL, if memory or the remote still has it: ask the source whether it has changed,
    /// and if not answer [`Loaded::not_modified`], which begins its life anew without a transfer. What was invalidated
    /// is not given.
    ///
    /// ```
    /// use greenwave_cache::{Cache, CacheConfig, Loaded};
    /// use std::{convert::Infallible, sync::Arc, time::Duration};
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// struct Page { etag: u64 }
    ///
    /// let config = CacheConfig { ttl: Duration::from_secs(60), ..Default::default() };
    /// let pages = Cache::<u64, Page>::builder("page").config(config).build();
    /// let fetch = |known: Option<Arc<Page>>| async move {
    ///     match known {
    ///         Some(page) if page.etag == 9 => Ok::<_, Infallible>(Loaded::not_modified()),
    ///         _ => Ok(Loaded::value(Page { etag: 9 })),
    ///     }
    /// };
    /// let first = pages.get_or_revalidate(&1, fetch).await.unwrap().unwrap();
    /// tokio::time::sleep(Duration::from_secs(61)).await;
    /// let second = pages.get_or_revalidate(&1, fetch).await.unwrap().unwrap();
    /// assert!(Arc::ptr_eq(&first, &second));
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Cache::get_or_load).
    pub async fn get_or_revalidate<R, E, F, Fut>(
        &self,
        key: &K,
        load: F,
    ) -> Result<Option<Arc<V>>, LoadError<E>>
    where
        R: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        F: FnOnce(Option<Arc<V>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        match self.inner.memory.read(key) {
            Ok(value) => {
                self.inner.metrics.hits.increment(1);
                Ok(value)
            }
            Err(look) => self.inner.fetch(key, look.old(), || Load::revalidation(load)).await,
        }
    }

    /// The value of `key` if memory or the remote has it fresh. Asks no source, and waits for no load.
    ///
    /// What is known to be absent is `None` too.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future changes nothing.
    pub fn get<'a>(&'a self, key: &'a K) -> impl Future<Output = Option<Arc<V>>> + Send + 'a {
        Get::new(&self.inner, key)
    }

    /// Puts a value into memory and the remote. It replaces what is there, and what a running load will bring.
    ///
    /// When the remote does not take the value, it is in memory only, for the remote's `untracked_ttl` at most, and the
    /// remote is told to forget what it had.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn insert(&self, key: K, value: impl Into<Arc<V>>) {
        self.insert_loaded(key, Loaded::value(value)).await;
    }

    /// As [`insert`](Cache::insert), with a TTL or tags of its own, or the knowledge that there is no such thing.
    ///
    /// What is not to be kept ([`Loaded::no_store`], an absence without a TTL) removes what there is.
    ///
    /// ```
    /// use greenwave_cache::{Cache, Loaded};
    /// use std::time::Duration;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let prices = Cache::<u64, u64>::builder("price").build();
    /// prices.insert_loaded(7, Loaded::value(990).ttl(Duration::from_secs(10)).tags(["list:winter"])).await;
    /// assert_eq!(prices.get(&7).await.as_deref(), Some(&990));
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn insert_loaded(&self, key: K, loaded: Loaded<V>) {
        let prior = match loaded.answer {
            Answer::NotModified => self.inner.memory.prior(&key),
            _ => None,
        };
        let answered = self.inner.answered(loaded, prior.as_ref(), self.inner.tags.now());
        match &self.inner.remote {
            None => self.inner.put(&key, &answered, None, answered.life.memory),
            Some(_) => self.finish(Arc::clone(&self.inner).insert_remotely(key, answered)).await,
        }
    }

    /// Forgets `key` in memory and the remote, and what a running load will bring.
    ///
    /// Call it *after* the change at the source is committed: a load that begins before would see the old state. When
    /// the future ends, no later call on this cache answers with a value from before, not even with a stale one, and
    /// the remote will not be given one, not even by a load that another process began before. An error that is kept
    /// for the key is forgotten too.
    ///
    /// The remote is told even if it has just failed, so this may take its `timeout`.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn invalidate(&self, key: &K) {
        self.invalidate_many(std::slice::from_ref(key)).await;
    }

    /// As [`invalidate`](Cache::invalidate), for many keys in one round trip.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn invalidate_many(&self, keys: &[K]) {
        self.inner.metrics.invalidations.increment(1);
        self.inner.forget(keys);
        if self.inner.remote.is_some() && !keys.is_empty() {
            self.finish(Arc::clone(&self.inner).remove_remotely(keys.iter().cloned().collect())).await;
        }
    }

    /// Forgets all that was [tagged](Loaded::tags) with `tag`, be it in memory, in the remote, or about to be loaded.
    ///
    /// It takes the same time however many entries there are: they are found to be over when somebody looks at them.
    /// Everything that is said of [`invalidate`](Cache::invalidate) holds for them.
    ///
    /// ```
    /// use greenwave_cache::{Cache, Loaded};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let prices = Cache::<u64, u64>::builder("price").build();
    /// prices.insert_loaded(7, Loaded::value(990).tags(["list:winter"])).await;
    /// prices.invalidate_tag("list:winter").await;
    /// assert_eq!(prices.get(&7).await, None);
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn invalidate_tag(&self, tag: impl Into<Arc<str>>) {
        let tag = tag.into();
        self.inner.metrics.invalidations.increment(1);
        self.inner.tags.invalidate(&tag);
        if self.inner.remote.is_some() {
            self.finish(Arc::clone(&self.inner).invalidate_tag_remotely(tag)).await;
        }
    }

    /// Forgets everything, in memory and in the remote, and what all running loads will bring.
    ///
    /// In the remote that takes the same time however much there is. Other caches that share it are not touched.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried to its end in a task of its own.
    pub async fn clear(&self) {
        self.inner.metrics.invalidations.increment(1);
        drop(self.inner.clear_memory());
        if self.inner.remote.is_some() {
            self.finish(Arc::clone(&self.inner).clear_remotely()).await;
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
