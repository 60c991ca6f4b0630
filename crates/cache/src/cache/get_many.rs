use std::{
    collections::{HashMap, HashSet},
    future::Future,
    hash::Hash,
    sync::Arc,
};

use super::{
    Cache,
    fetch::{Waiter, Way},
};
use crate::{
    LoadError, Loaded,
    memory::{Look, Old},
    singleflight::{Flight, load_many},
};

/// A key that memory did not answer at once.
struct Wanted<K, V> {
    key: K,
    old: Option<Old<V>>,
    /// A load that was of no use to this caller.
    refused: Option<Arc<Flight<V>>>,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// The values of `keys`: from memory, from the remote in one round trip, and by one `load` of all that is missing.
    ///
    /// `load` gets the keys that neither memory nor the remote has and that nobody else loads; what others load is
    /// waited for. It gives pairs of a key and an `Option<V>` or a [`Loaded`]. A key that it does not answer is absent,
    /// and what it was not asked for is ignored. What is absent is not in the map.
    ///
    /// `load` is called once, or once more for each of these: for entries that are served while they are loaded anew,
    /// and for keys whose load by another caller was of no use here (it failed with another type of error, or a tag was
    /// invalidated in the meantime).
    ///
    /// ```
    /// use greenwave_cache::Cache;
    /// use std::convert::Infallible;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let squares = Cache::<u64, u64>::builder("square").build();
    /// squares.insert(2, 4).await;
    ///
    /// // SELECT … WHERE id = ANY($1)
    /// let load = |missing: Vec<u64>| async move {
    ///     Ok::<_, Infallible>(missing.into_iter().map(|key| (key, Some(key * key))).collect::<Vec<_>>())
    /// };
    /// let found = squares.get_many(&[2, 3], load).await.unwrap();
    /// assert_eq!((*found[&2], *found[&3]), (4, 9));
    /// # }
    /// ```
    ///
    /// # When it fails
    ///
    /// An error of any load that is waited for is the error of the whole call, unless there is a stale value for its
    /// key. What the other keys brought is kept, and there for the next call.
    ///
    /// # Cancel safety
    ///
    /// As [`get_or_load`](Cache::get_or_load).
    pub async fn get_many<R, E, I, F, Fut>(
        &self,
        keys: &[K],
        load: F,
    ) -> Result<HashMap<K, Arc<V>>, LoadError<E>>
    where
        R: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        I: IntoIterator<Item = (K, R)>,
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<I, E>> + Send + 'static,
    {
        let inner = &self.inner;
        let load = Arc::new(load);
        let mut found = HashMap::with_capacity(keys.len());
        let (mut wanted, mut ripe) = (Vec::new(), Vec::new());
        for key in keys.iter().collect::<HashSet<_>>() {
            match inner.memory.read(key) {
                Ok(value) => {
                    inner.metrics.hits.increment(1);
                    found.extend(value.map(|value| (key.clone(), value)));
                }
                Err(Look::Old(old)) if old.is_served() => {
                    ripe.extend(inner.refresh(key, &old));
                    inner.count_old(&old);
                    found.extend(old.value.map(|value| (key.clone(), value)));
                }
                Err(look) => wanted.push(Wanted { key: key.clone(), old: look.old(), refused: None }),
            }
        }
        inner.launch_many(ripe, load_many(Arc::clone(&load)));

        let (arrival, patience) = (inner.tags.now(), inner.policy().patience());
        while !wanted.is_empty() {
            let (mut landings, mut waiters) = (Vec::new(), Vec::<(Wanted<K, V>, Waiter<V>)>::new());
            for wanted in wanted.drain(..) {
                match inner.way(&wanted.key, &wanted.old, wanted.refused.as_ref(), arrival) {
                    Way::Present(value) => {
                        inner.metrics.hits.increment(1);
                        found.extend(value.map(|value| (wanted.key, value)));
                    }
                    Way::Join(waiter) => waiters.push((wanted, waiter)),
                    Way::Lead(landing, waiter) => {
                        landings.push(landing);
                        waiters.push((wanted, waiter));
                    }
                }
            }
            // What this call leads flies by itself, so that callers who wait for each other's keys do so only here.
            inner.launch_many(landings, load_many(Arc::clone(&load)));
            let mut waiters = waiters.into_iter();
            while let Some((mut one, waiter)) = waiters.next() {
                match inner.heard(&waiter, one.old.as_ref(), patience).await {
                    Some(Ok(value)) => found.extend(value.map(|value| (one.key, value))),
                    Some(Err(error)) => {
                        inner.metrics.errors.increment((waiters.len() + wanted.len()) as u64);
                        return Err(error);
                    }
                    None => {
                        one.refused = Some(waiter.flight);
                        wanted.push(one);
                    }
                }
            }
        }
        Ok(found)
    }
}
