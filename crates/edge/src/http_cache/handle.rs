//! The cache, as a program holds it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use http::Uri;

use super::key::{KeyRef, normal_host};
use super::store::{Purge, Store};
use super::{CacheConfig, CacheStats, snapshot};

/// Answers kept for all threads of a proxy. Clones share them.
///
/// What is purged is gone when the call returns, for all threads, also where its answer was on its way from an upstream:
/// a fetch that began before the purge still answers those who waited for it, but is not kept.
///
/// Where the configuration says no cache, nothing is kept and each purge finds nothing.
///
/// ```
/// use greenwave_edge::{CacheConfig, HttpCache};
///
/// let cache = HttpCache::new(CacheConfig::default());
/// assert_eq!(cache.purge_url("https://shop.example/products?page=2"), Some(0));
/// assert_eq!(cache.purge_tag("product-7"), 0);
/// assert_eq!(cache.stats().bytes, 0);
/// ```
#[derive(Clone)]
pub struct HttpCache {
    pub(super) store: Option<Arc<Store>>,
}

impl std::fmt::Debug for HttpCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl HttpCache {
    /// A cache, empty. With [`max_bytes`](CacheConfig::max_bytes) 0 it keeps nothing and costs nothing.
    #[must_use]
    pub fn new(config: CacheConfig) -> Self {
        Self { store: (config.max_bytes > 0).then(|| Arc::new(Store::new(config))) }
    }

    /// Drops the answers to an absolute URL, in all their variants, whether they came by http or https. The URL's query
    /// is read as the configuration says. Returns how many answers there were, or none where the text is no such URL.
    pub fn purge_url(&self, url: &str) -> Option<u64> {
        let uri: Uri = url.parse().ok()?;
        let secure = uri.scheme_str()? == "https";
        let Some(store) = &self.store else { return Some(0) };
        let mut key = KeyRef::of_uri(&uri, secure, &store.config)?;
        let dropped = store.remove(&key);
        key.secure = !secure;
        Some(dropped + store.remove(&key))
    }

    /// Drops the answers to all URLs of a host whose path and query begin like this one's, such as
    /// `https://shop.example/products/`, whether they came by http or https. Looks at every kept answer once. Returns how
    /// many it dropped, or none where the text is no absolute URL.
    pub fn purge_prefix(&self, url: &str) -> Option<u64> {
        let uri: Uri = url.parse().ok()?;
        let secure = uri.scheme_str()? == "https";
        let host = normal_host(uri.authority()?.as_str(), secure).into_owned();
        let path = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Some(self.purge(Purge::Prefix { host, path }))
    }

    /// Drops all answers with a tag, which their upstream named in `Surrogate-Key`, `Cache-Tag` or the configured
    /// [`tag_header`](CacheConfig::tag_header). Looks at every kept answer once. Returns how many it dropped.
    pub fn purge_tag(&self, tag: &str) -> u64 {
        self.purge(Purge::Tag(tag.to_owned()))
    }

    /// Drops everything. Returns how many answers that were.
    pub fn purge_all(&self) -> u64 {
        self.purge(Purge::All)
    }

    fn purge(&self, purge: Purge) -> u64 {
        self.store.as_ref().map_or(0, |store| store.purge(purge))
    }

    /// What it has done, and how much it holds.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.store.as_ref().map_or_else(CacheStats::default, |store| store.counters.read(store.weight()))
    }

    /// Writes what is kept, for [`import`](Self::import) by a successor, and returns how many answers that were. Answers
    /// are what clients were given: keep them from others' eyes. It blocks as long as the writer does.
    ///
    /// # Errors
    ///
    /// When the writer fails. What it has until then can be imported.
    pub fn export(&self, writer: impl Write) -> io::Result<u64> {
        self.store.as_ref().map_or(Ok(0), |store| snapshot::write(store, writer))
    }

    /// Keeps what a predecessor [exported](Self::export), and returns how many answers that were. What is damaged, of
    /// another version or too large is left out, with a warning in the log: a cache may always be empty. It blocks as long
    /// as the reader does.
    pub fn import(&self, reader: impl Read) -> u64 {
        self.store.as_ref().map_or(0, |store| snapshot::read(store, reader))
    }
}
