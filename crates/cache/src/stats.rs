use std::{borrow::Cow, hash::Hash, sync::atomic::Ordering};

use serde::{Deserialize, Serialize};

use crate::{Cache, cache::Inner, remote::Tier, would_be::WouldBe};

/// What a cache has done since it was made: [`Cache::stats`](crate::Cache::stats).
///
/// It can be sent to another process and read there. Every read is counted once, in one of `hits`, `stale`, `remote_hits`, `misses`, `coalesced` and `errors`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// Of the cache.
    pub name: Cow<'static, str>,
    /// Reads that were answered from memory with what was fresh.
    pub hits: u64,
    /// Reads that were answered with what was past its TTL.
    pub stale: u64,
    /// Reads that were answered from the remote.
    pub remote_hits: u64,
    /// Reads for which the source was asked, or a `get` that found nothing.
    pub misses: u64,
    /// Reads that waited for a load that another had begun.
    pub coalesced: u64,
    /// Reads that ended in an error.
    pub errors: u64,
    /// How often the source was asked, failed loads included.
    pub loads: u64,
    /// Loads that failed, be their callers told or served something stale.
    pub failed_loads: u64,
    /// How many seconds all loads took together.
    pub load_seconds: f64,
    /// Loads that found nothing.
    pub absent: u64,
    /// Loaded values that were not kept because an invalidation came during the load.
    pub discarded: u64,
    /// Loaded values that were too large to be kept.
    pub too_large: u64,
    /// Calls that invalidated something.
    pub invalidations: u64,
    /// Entries that had to go from memory to make room for others.
    pub evictions: u64,
    /// Operations on the remote that failed.
    pub remote_failures: u64,
    /// Operations that were not tried because the remote does not answer at present.
    pub remote_skipped: u64,
    /// Invalidations and insertions that the remote has not confirmed now, of all caches that share it: those under
    /// way, and while it is away those that it will be told before it is read again.
    pub remote_unconfirmed: u64,
    /// Values in the remote that did not decode.
    pub undecodable: u64,
    /// Entries in memory now, expired ones included.
    pub entries: u64,
    /// What they weigh: bytes where the cache has a weigher, else their number.
    pub bytes: u64,
}

impl CacheStats {
    /// How many reads there were.
    pub fn requests(&self) -> u64 {
        self.hits + self.stale + self.remote_hits + self.misses + self.coalesced + self.errors
    }

    /// What part of the reads memory answered at once, from 0.0 to 1.0.
    pub fn hit_ratio(&self) -> f64 {
        (self.hits + self.stale) as f64 / self.requests().max(1) as f64
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + 'static,
    V: 'static,
{
    /// What this cache has done since it was made. Brings its metrics up to date too.
    ///
    /// It looks into each shard of the memory, so it is for once a second and not for every request.
    pub fn stats(&self) -> CacheStats {
        let Inner { name, memory, metrics, remote, .. } = &*self.inner;
        let (entries, bytes) = (memory.entries(), memory.weight());
        metrics.publish(entries, bytes);
        let remote = remote.as_ref().map(Tier::stats).unwrap_or_default();
        CacheStats {
            name: Cow::Borrowed(name),
            hits: metrics.hits.get(),
            stale: metrics.stale.get(),
            remote_hits: metrics.remote_hits.get(),
            misses: metrics.misses.get(),
            coalesced: metrics.coalesced.get(),
            errors: metrics.errors.get(),
            loads: metrics.load_duration.count(),
            failed_loads: metrics.failed_loads.get(),
            load_seconds: metrics.load_duration.sum().as_secs_f64(),
            absent: metrics.absent.get(),
            discarded: metrics.discarded.get(),
            too_large: metrics.too_large.get(),
            invalidations: metrics.invalidations.get(),
            evictions: metrics.evictions.get(),
            remote_failures: remote.failures,
            remote_skipped: remote.skipped,
            remote_unconfirmed: remote.unconfirmed,
            undecodable: remote.undecodable,
            entries,
            bytes,
        }
    }

    /// What the hit ratio would be if this cache were smaller or larger, from an eighth of its size to its eightfold,
    /// and if its TTL were another, from a second to a day.
    ///
    /// Some of the keys are watched: of a large cache one in 64 or fewer, of one below 2,048 entries all. For each size,
    /// a small cache with the same eviction policy is asked for these, which takes about 1 MB, and up to 4 MB for a
    /// cache of some thousand entries. A hit of a key that is not watched costs nothing more, one that is watched about what two more
    /// hits would.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # use greenwave_cache::Cache;
    /// let squares = Cache::<u64, u64>::builder("square").build();
    /// for n in 0..1_000 {
    ///     squares.get_or_load(&(n % 10), || async move { Ok::<_, std::io::Error>(Some(n)) }).await.unwrap();
    /// }
    /// println!("{}", squares.would_be());
    /// # }
    /// ```
    pub fn would_be(&self) -> WouldBe {
        let stats = self.stats();
        let Inner { name, memory, metrics, .. } = &*self.inner;
        // One load may be of many keys, and a request is of one.
        let keys_loaded = metrics.keys_loaded.load(Ordering::Relaxed).max(1);
        let load_seconds = stats.load_seconds / keys_loaded as f64 * stats.requests() as f64;
        memory.sampler.report(name, memory.unit(), stats.requests(), load_seconds)
    }
}
