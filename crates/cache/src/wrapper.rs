use std::{fmt, future::Future, hash::Hash, pin::Pin, sync::Arc};

use crate::{Cache, LoadError, Loaded};

/// A function with a cache before it, made by [`Cache::wrap`].
///
/// A clone is another handle to the same cache and function. Its type names neither the function nor its future, so
/// it can stand in a struct, as in the state of an axum router.
pub struct Cached<K, V, E> {
    cache: Cache<K, V>,
    load: Arc<Load<K, V, E>>,
}

type Load<K, V, E> = dyn Fn(K) -> Pin<Box<dyn Future<Output = Result<Loaded<V>, E>> + Send>> + Send + Sync;

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// Puts this cache before a function, which it calls for what it has not.
    ///
    /// The function returns what a load of [`get_or_load`](Cache::get_or_load) returns: an `Option` of the value, or a
    /// [`Loaded`] that says more. Where something is to be read, every place that reads it then does so by one name,
    /// and none can forget the cache.
    ///
    /// ```
    /// use greenwave_cache::{Cache, Cached, LoadError};
    /// use std::{io, sync::Arc};
    ///
    /// struct User { name: String }
    ///
    /// async fn find_user(id: u64) -> io::Result<Option<User>> {
    ///     Ok(Some(User { name: format!("user {id}") })) // a query
    /// }
    ///
    /// #[derive(Clone)] // as the state of a router
    /// struct App {
    ///     users: Cached<u64, User, io::Error>,
    /// }
    ///
    /// async fn greet(app: App, id: u64) -> Result<String, LoadError<io::Error>> {
    ///     let user = app.users.call(&id).await?;
    ///     Ok(user.map_or("Who are you?".into(), |user| format!("Hello, {}!", user.name)))
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let app = App { users: Cache::builder("user").build().wrap(find_user) };
    /// assert_eq!(greet(app.clone(), 7).await.unwrap(), "Hello, user 7!");
    ///
    /// app.users.cache().invalidate(&7).await; // after a change
    /// # }
    /// ```
    pub fn wrap<E, F, Fut, R>(self, function: F) -> Cached<K, V, E>
    where
        E: Send + Sync + 'static,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Into<Loaded<V>>,
    {
        let function = Arc::new(function);
        let load = move |key| {
            let function = Arc::clone(&function);
            // Called when the future runs, which it does not where the remote has the value.
            Box::pin(async move { function(key).await.map(Into::into) })
                as Pin<Box<dyn Future<Output = _> + Send>>
        };
        Cached { cache: self, load: Arc::new(load) }
    }
}

impl<K, V, E> Cached<K, V, E> {
    /// The cache: to invalidate, to insert, for its figures.
    pub fn cache(&self) -> &Cache<K, V> {
        &self.cache
    }
}

impl<K, V, E> Cached<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// The value of `key`: from the cache, or else from the function.
    ///
    /// This is [`Cache::get_or_load`] with the function as the load. What that says of errors, invalidation and cancel
    /// safety holds here.
    pub async fn call(&self, key: &K) -> Result<Option<Arc<V>>, LoadError<E>> {
        self.cache.get_or_load(key, || (self.load)(key.clone())).await
    }
}

impl<K, V, E> Clone for Cached<K, V, E> {
    fn clone(&self) -> Cached<K, V, E> {
        Cached { cache: self.cache.clone(), load: Arc::clone(&self.load) }
    }
}

impl<K, V, E> fmt::Debug for Cached<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("cache", &self.cache).finish_non_exhaustive()
    }
}
