use std::{
    fmt,
    future::Future,
    hash::Hash,
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    CacheConfig,
    would_be::{Sampler, SizeUnit, WouldBe},
};

const SIZES: [u64; 5] = [100, 1_000, 10_000, 100_000, 1_000_000];

/// Watches a function that has no cache yet, to learn whether one would help, how large, and for how long.
///
/// Calls go through as they are. For some of the keys it is noted what caches of 100 to 1,000,000 entries, and TTLs of a
/// second to a day, would have answered; see [`WouldBe`]. That takes less than 1 MB, whatever the number of keys, and a
/// mutex for the calls of those keys. `name` is what the report says of it.
///
/// A failed call is one that a cache could not have kept. Calls that ran at once count as one load and hits, as
/// [`Cache::get_or_load`](crate::Cache::get_or_load) makes of them.
///
/// ```
/// use greenwave_cache::observe;
/// # use std::io;
/// # async fn query(id: u64) -> io::Result<String> { Ok(format!("user {id}")) }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> io::Result<()> {
/// let users = observe("user", query);
/// for request in 0..100 {
///     users.call(request % 7).await?;
/// }
/// let advice = users.would_be();
/// println!("{advice}");
/// # Ok(())
/// # }
/// ```
pub fn observe<K, F>(name: &'static str, f: F) -> Observed<K, F> {
    Observed {
        name,
        f,
        sampler: Sampler::at(&SIZES, CacheConfig::default().ttl),
        calls: AtomicU64::new(0),
        nanos: AtomicU64::new(0),
        key: PhantomData,
    }
}

/// A function under observation: [`observe`].
pub struct Observed<K, F> {
    name: &'static str,
    f: F,
    sampler: Sampler,
    calls: AtomicU64,
    nanos: AtomicU64,
    key: PhantomData<fn(K)>,
}

impl<K, F> Observed<K, F> {
    /// Calls the function, and notes what a cache would have made of it.
    ///
    /// # Cancel safety
    ///
    /// As the function's own: its future is part of this one. A call that is dropped is not noted.
    pub async fn call<T, E, Fut>(&self, key: K) -> Result<T, E>
    where
        K: Hash,
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let sampled = self.sampler.sample(&key);
        let started = Instant::now();
        let answer = (self.f)(key).await;
        let took = started.elapsed();
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(sampled) = sampled {
            self.sampler.read(sampled, took, answer.is_ok().then_some(1));
        }
        answer
    }

    /// What caches of several sizes and TTLs would have saved.
    pub fn would_be(&self) -> WouldBe {
        let load_seconds = Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64();
        self.sampler.report(self.name, SizeUnit::Entries, self.calls.load(Ordering::Relaxed), load_seconds)
    }
}

impl<K, F> fmt::Debug for Observed<K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("name", &self.name).finish_non_exhaustive()
    }
}
