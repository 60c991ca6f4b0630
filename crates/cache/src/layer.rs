//! A tower layer that caches whole responses.

mod body;
mod response;

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    hash::Hash,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
        IF_UNMODIFIED_SINCE, RANGE, SET_COOKIE, VARY,
    },
    request, response as answer,
};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use metrics::{Counter, counter};
use tower::{Layer, Service};

use self::body::Read;
pub use self::response::CachedResponse;
use crate::{Cache, LoadError, Loaded, telemetry::UNCACHED};

/// Caches whole responses of a handler, by a key that you make of the request.
///
/// The handler runs once for a key, however many requests wait, in a task of its own: a client that hangs up doesn't
/// stop it. How long a response is kept, and whether a stale one is shown while the handler is slow or fails, is the
/// [`Cache`]'s; so is its invalidation, and whether responses are in Redis too.
///
/// ```
/// use axum::{Router, extract::Path, routing::get};
/// use greenwave_cache::{Cache, CacheConfig, CacheLayer, CachedResponse};
///
/// let config = CacheConfig { max_bytes: 64 << 20, ..Default::default() };
/// let weigh = |uri: &String, page: &CachedResponse| uri.len() as u64 + page.bytes();
/// let pages = Cache::<String, CachedResponse>::builder("page").config(config).weigher(weigh).build();
///
/// let app: Router = Router::new()
///     .route("/products/{id}", get(|Path(id): Path<u64>| async move { format!("product {id}") }))
///     .layer(CacheLayer::new(pages.clone(), |request| Some(request.uri.to_string())));
///
/// // When a product has changed: pages.invalidate(&"/products/7".to_owned()).await
/// ```
///
/// **The key must hold all that the response depends on**: the path, the query, the language, whose request it is. A
/// request for which the function returns `None` goes by the cache, as should all that is meant for one user. Who may
/// write any URL may fill the cache, so bound it by bytes, as above.
///
/// Layers that compress or add CORS headers make the response depend on more, and say so by `Vary`: put them outside of
/// this one.
///
/// # What is cached
///
/// Answers with status 200 to `GET`, up to [`max_body_bytes`](CacheLayer::max_body_bytes). Never one with `Set-Cookie`,
/// `Vary`, trailers, an event stream, or a `Cache-Control` that says `no-store`, `no-cache` or `private`. An answer to a
/// request with `Authorization` is cached only if its `Cache-Control` says `public` or `s-maxage` (RFC 9111, section
/// 3.5), even if the key tells users apart; one by a cookie is like any other, and up to the key. The request's own
/// `Cache-Control` is not heeded. Other methods and range requests pass, and so do those with `If-Match` or
/// `If-Unmodified-Since`. `If-None-Match` and `If-Modified-Since` are kept from the handler, whose whole response is
/// wanted, and answered with that.
///
/// What can't be cached can't be shared either: who waited for it calls the handler too. For
/// [`absent_ttl`](crate::CacheConfig::absent_ttl) the key is then known for that, and nobody waits for another.
/// Such answers are counted in `greenwave.cache.response.uncached`, by `reason`.
///
/// # When the handler fails
///
/// A response with a status from 500 on is a failed load: all who wait get it, those who come within
/// [`error_ttl`](crate::CacheConfig::error_ttl) too, and a stale response is shown instead where the cache's config
/// says so. An error of the service itself reaches all who wait likewise, so it must be `Clone` (axum's is; put others
/// into an `Arc`). A panic becomes a 500, a handler that exceeds [`load_timeout`](crate::CacheConfig::load_timeout) a
/// 504.
///
/// # Cancel safety
///
/// When the response's future is dropped, the handler goes on for those who wait, and for the cache.
pub struct CacheLayer<K, F> {
    cache: Cache<K, CachedResponse>,
    key: Arc<F>,
    max_body_bytes: usize,
    ttl_from_headers: bool,
    uncached: Arc<Uncached>,
}

impl<K, F> CacheLayer<K, F> {
    /// A layer over this cache. `key` makes a request's key; where it makes none, the request goes by the cache.
    pub fn new(cache: Cache<K, CachedResponse>, key: F) -> CacheLayer<K, F>
    where
        F: Fn(&request::Parts) -> Option<K>,
    {
        let uncached = Arc::new(Uncached::new(cache.name()));
        CacheLayer { cache, key: Arc::new(key), max_body_bytes: 1 << 20, ttl_from_headers: false, uncached }
    }

    /// How long a body may be to be cached, in bytes; default 1 MiB.
    ///
    /// So much is read before the first byte is sent. What is longer is sent as it comes, and not cached.
    pub fn max_body_bytes(mut self, max_body_bytes: usize) -> CacheLayer<K, F> {
        self.max_body_bytes = max_body_bytes;
        self
    }

    /// Takes a response's TTL from its `Cache-Control`, from `s-maxage` or else `max-age`, where it has one.
    ///
    /// By default the cache's own TTL holds for all.
    pub fn ttl_from_headers(mut self) -> CacheLayer<K, F> {
        self.ttl_from_headers = true;
        self
    }
}

impl<K, F> Clone for CacheLayer<K, F> {
    fn clone(&self) -> CacheLayer<K, F> {
        CacheLayer {
            cache: self.cache.clone(),
            key: Arc::clone(&self.key),
            max_body_bytes: self.max_body_bytes,
            ttl_from_headers: self.ttl_from_headers,
            uncached: Arc::clone(&self.uncached),
        }
    }
}

impl<K, F> fmt::Debug for CacheLayer<K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer")
            .field("cache", &self.cache)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("ttl_from_headers", &self.ttl_from_headers)
            .finish_non_exhaustive()
    }
}

impl<S, K, F> Layer<S> for CacheLayer<K, F> {
    type Service = CacheService<S, K, F>;

    fn layer(&self, inner: S) -> CacheService<S, K, F> {
        CacheService { inner, layer: Arc::new(self.clone()) }
    }
}

/// The service that [`CacheLayer`] makes.
#[derive(Debug)]
pub struct CacheService<S, K, F> {
    inner: S,
    layer: Arc<CacheLayer<K, F>>,
}

impl<S: Clone, K, F> Clone for CacheService<S, K, F> {
    fn clone(&self) -> CacheService<S, K, F> {
        CacheService { inner: self.inner.clone(), layer: Arc::clone(&self.layer) }
    }
}

/// The body of a response from the cache, or past it. `E` is the error of the inner service's body.
pub type CachedBody<E> = UnsyncBoxBody<Bytes, E>;

impl<S, K, F, In, Out> Service<Request<In>> for CacheService<S, K, F>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Fn(&request::Parts) -> Option<K> + Send + Sync + 'static,
    S: Service<Request<In>, Response = Response<Out>> + Clone + Send + 'static,
    S::Error: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    In: Send + 'static,
    Out: Body<Data = Bytes> + Send + 'static,
    Out::Error: Send + 'static,
{
    type Response = Response<CachedBody<Out::Error>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        // The one that is ready is taken, and its clone stays to become ready.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        let layer = Arc::clone(&self.layer);
        let (parts, body) = request.into_parts();
        let key = may_be_cached(&parts).then(|| (layer.key)(&parts)).flatten();
        let call = Call { inner, request: Request::from_parts(parts, body) };
        Box::pin(async move {
            match key {
                Some(key) => layer.answer(&key, call).await,
                None => call.make().await,
            }
        })
    }
}

fn may_be_cached(request: &request::Parts) -> bool {
    let passes = [IF_MATCH, IF_UNMODIFIED_SINCE, RANGE];
    request.method == Method::GET && !passes.iter().any(|name| request.headers.contains_key(name))
}

/// A service that is ready, and what it is to be asked.
struct Call<S, In> {
    inner: S,
    request: Request<In>,
}

impl<S, In, Out> Call<S, In>
where
    S: Service<Request<In>, Response = Response<Out>>,
    Out: Body<Data = Bytes> + Send + 'static,
{
    async fn make(mut self) -> Result<Response<CachedBody<Out::Error>>, S::Error> {
        Ok(self.inner.call(self.request).await?.map(BodyExt::boxed_unsync))
    }
}

/// Where a load leaves a response that is its own caller's alone.
type Own<E> = Arc<Mutex<Option<Response<CachedBody<E>>>>>;

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What reaches all who wait, and isn't kept.
enum Refusal<E> {
    Service(E),
    Response(Box<CachedResponse>),
}

impl<K, F> CacheLayer<K, F>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Send + Sync + 'static,
{
    async fn answer<S, In, Out>(
        self: Arc<Self>,
        key: &K,
        call: Call<S, In>,
    ) -> Result<Response<CachedBody<Out::Error>>, S::Error>
    where
        S: Service<Request<In>, Response = Response<Out>> + Send + 'static,
        S::Error: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        In: Send + 'static,
        Out: Body<Data = Bytes> + Send + 'static,
        Out::Error: Send + 'static,
    {
        // The load takes the call when it runs, which it does not where the remote has the response.
        let (call, own) = (Arc::new(Mutex::new(Some(call))), Own::default());
        let load = || {
            let (layer, call, own) = (Arc::clone(&self), Arc::clone(&call), Arc::clone(&own));
            async move {
                let call = take(&call);
                match call {
                    Some(call) => layer.load(call, &own).await,
                    None => Ok(Loaded::absent()),
                }
            }
        };
        match self.cache.get_or_load(key, load).await {
            Ok(Some(response)) => Ok(whole(&response)),
            Ok(None) => match (take(&own), take(&call)) {
                (Some(own), _) => Ok(own),
                (None, Some(call)) => call.make().await,
                (None, None) => Ok(empty(StatusCode::INTERNAL_SERVER_ERROR)),
            },
            Err(LoadError::Source(refusal)) => match &*refusal {
                Refusal::Service(error) => Err(error.clone()),
                Refusal::Response(response) => Ok(whole(response)),
            },
            Err(LoadError::TimedOut(_)) => Ok(empty(StatusCode::GATEWAY_TIMEOUT)),
            Err(_) => Ok(empty(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }

    async fn load<S, In, Out>(
        &self,
        mut call: Call<S, In>,
        own: &Own<Out::Error>,
    ) -> Result<Loaded<CachedResponse>, Refusal<S::Error>>
    where
        S: Service<Request<In>, Response = Response<Out>>,
        Out: Body<Data = Bytes> + Send + 'static,
        Out::Error: Send,
    {
        // The whole response is wanted, not the word that this one client has it.
        for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
            call.request.headers_mut().remove(name);
        }
        let authorized = call.request.headers().contains_key(AUTHORIZATION);
        let response = call.inner.call(call.request).await.map_err(Refusal::Service)?;
        let (parts, body) = response.into_parts();
        let directives = Directives::of(&parts.headers);
        let (body, counter) = match self.why_not(&parts, &directives, authorized) {
            Some(counter) => (body.boxed_unsync(), counter),
            None => match body::read(body, self.max_body_bytes).await {
                Read::Whole(body) => return self.loaded(CachedResponse::new(&parts, body), &directives),
                Read::TooLong(body) => (body.boxed_unsync(), &self.uncached.too_large),
                Read::Odd(body) => (body.boxed_unsync(), &self.uncached.body),
            },
        };
        counter.increment(1);
        *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(Response::from_parts(parts, body));
        Ok(Loaded::absent())
    }

    fn loaded<E>(
        &self,
        response: CachedResponse,
        directives: &Directives,
    ) -> Result<Loaded<CachedResponse>, Refusal<E>> {
        if response.status().is_server_error() {
            return Err(Refusal::Response(Box::new(response)));
        }
        let loaded = Loaded::value(response);
        Ok(match directives.ttl.filter(|_| self.ttl_from_headers) {
            Some(ttl) => loaded.ttl(ttl),
            None => loaded,
        })
    }

    /// The counter of why a response can't be shared; `None` if it can.
    fn why_not(
        &self,
        response: &answer::Parts,
        directives: &Directives,
        authorized: bool,
    ) -> Option<&Counter> {
        let headers = &response.headers;
        let stream = headers
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"));
        if directives.refuse || stream || headers.contains_key(SET_COOKIE) || headers.contains_key(VARY) {
            return Some(&self.uncached.headers);
        }
        if authorized && !directives.share {
            return Some(&self.uncached.authorization);
        }
        let shared = response.status == StatusCode::OK || response.status.is_server_error();
        (!shared).then_some(&self.uncached.status)
    }
}

/// What a response's `Cache-Control` says to this cache.
struct Directives {
    refuse: bool,
    /// Whoever asked for it (RFC 9111, section 3.5).
    share: bool,
    ttl: Option<Duration>,
}

impl Directives {
    fn of(headers: &HeaderMap) -> Directives {
        let (mut refuse, mut public, mut shared, mut any) = (false, false, None, None);
        for value in headers.get_all(CACHE_CONTROL) {
            // What can't be read may be a refusal.
            let Ok(value) = HeaderValue::to_str(value) else {
                refuse = true;
                continue;
            };
            for directive in value.split(',') {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                let seconds = || argument.trim().trim_matches('"').parse().map(Duration::from_secs).ok();
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-store" | "no-cache" | "private" => refuse = true,
                    "public" => public = true,
                    "s-maxage" => shared = seconds(),
                    "max-age" => any = seconds(),
                    _ => {}
                }
            }
        }
        Directives { refuse, share: public || shared.is_some(), ttl: shared.or(any) }
    }
}

fn whole<E>(response: &CachedResponse) -> Response<CachedBody<E>>
where
    E: 'static,
{
    response
        .to_response()
        .map(|body| Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync())
}

fn empty<E: 'static>(status: StatusCode) -> Response<CachedBody<E>> {
    let mut response = Response::new(CachedBody::default());
    *response.status_mut() = status;
    response
}

/// Responses that could not be cached, by reason.
struct Uncached {
    status: Counter,
    headers: Counter,
    authorization: Counter,
    too_large: Counter,
    body: Counter,
}

impl Uncached {
    fn new(cache: &'static str) -> Uncached {
        let uncached = |reason: &'static str| counter!(UNCACHED, "cache" => cache, "reason" => reason);
        Uncached {
            status: uncached("status"),
            headers: uncached("headers"),
            authorization: uncached("authorization"),
            too_large: uncached("too_large"),
            body: uncached("body"),
        }
    }
}
