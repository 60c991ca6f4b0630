use std::{sync::Arc, time::Duration};

/// What a source answers: a value or none, and what the cache is to do with it.
///
/// A load that returns an `Option<V>` says the simple thing. This says more:
///
/// ```
/// use greenwave_cache::{Cache, Loaded};
/// use std::{convert::Infallible, time::Duration};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let prices = Cache::<u64, u64>::builder("price").build();
/// let load = || async {
///     Ok::<_, Infallible>(Loaded::value(990).ttl(Duration::from_secs(10)).tags(["list:winter"]))
/// };
/// assert_eq!(prices.get_or_load(&7, load).await.unwrap().as_deref(), Some(&990));
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Loaded<V> {
    pub(crate) answer: Answer<V>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) tags: Vec<Arc<str>>,
    pub(crate) store: bool,
}

#[derive(Debug)]
pub(crate) enum Answer<V> {
    Value(Arc<V>),
    Absent,
    NotModified,
}

impl<V> Loaded<V> {
    fn answer(answer: Answer<V>) -> Loaded<V> {
        Loaded { answer, ttl: None, tags: Vec::new(), store: true }
    }

    /// The source has this value.
    pub fn value(value: impl Into<Arc<V>>) -> Loaded<V> {
        Loaded::answer(Answer::Value(value.into()))
    }

    /// The source has no such thing.
    pub fn absent() -> Loaded<V> {
        Loaded::answer(Answer::Absent)
    }

    /// The value that the load was given as the prior one is still right: it begins a new life.
    ///
    /// An answer for [`Cache::get_or_revalidate`](crate::Cache::get_or_revalidate). Where there was no prior value it
    /// is taken for an absent one.
    pub fn not_modified() -> Loaded<V> {
        Loaded::answer(Answer::NotModified)
    }

    /// How long this answer is fresh, in memory and in the remote, instead of what is configured.
    pub fn ttl(mut self, ttl: Duration) -> Loaded<V> {
        self.ttl = Some(ttl);
        self
    }

    /// Names by which many entries are invalidated at once:
    /// [`Cache::invalidate_tag`](crate::Cache::invalidate_tag).
    pub fn tags<T: Into<Arc<str>>>(mut self, tags: impl IntoIterator<Item = T>) -> Loaded<V> {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// Gives the answer to those who wait for it, and keeps it nowhere.
    pub fn no_store(mut self) -> Loaded<V> {
        self.store = false;
        self
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Loaded<V> {
        value.map_or_else(Loaded::absent, Loaded::value)
    }
}
