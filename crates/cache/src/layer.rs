//! A tower layer that caches whole responses.

mod body;
mod directives;
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
};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{
        AUTHORIZATION, CONTENT_TYPE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, RANGE,
        SET_COOKIE, VARY,
    },
    request, response as answer,
};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use metrics::{Counter, counter};
use tokio::{sync::oneshot, time::Instant};
use tower::{Layer, Service};

pub use self::response::CachedResponse;
use self::{body::Read, directives::Directives};
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
/// A request with `Authorization` always goes by. To cache what its user may see, have an outer layer check that
/// header, take it off, and leave the user in an extension of the request, for the key.
///
/// # What is cached
///
/// Answers with status 200 to `GET`, up to [`max_body_bytes`](CacheLayer::max_body_bytes). Never one with `Set-Cookie`,
/// `Vary`, trailers, an event stream, or a `Cache-Control` that says `no-store`, `no-cache` or `private`. Layers that
/// add `Vary`, as those for compression and CORS do, belong outside of this one.
///
/// Range requests pass, and so do those with `If-Match` or `If-Unmodified-Since`. `If-None-Match` and
/// `If-Modified-Since` are kept from the handler, whose whole response is wanted, and answered with that.
///
/// Other methods pass, `HEAD` too. They invalidate nothing, since only you know which keys a change concerns: call
/// [`Cache::invalidate`] after it.
///
/// The request's own `Cache-Control` is not heeded, or any client could have the handler run at will. Nor is what a
/// response says of stale ones, like `must-revalidate`: when those are shown is the cache's config alone.
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
/// A response from 500 on that can't be shared, as by its `no-store`, is a failed load too, and so is one whose body
/// breaks off within `max_body_bytes`. But these are their own client's alone: the others who have nothing stale call
/// the handler themselves.
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
    /// So much is read before the first byte is sent, within the cache's
    /// [`load_timeout`](crate::CacheConfig::load_timeout). What is longer is sent as it comes, and not cached.
    pub fn max_body_bytes(mut self, max_body_bytes: usize) -> CacheLayer<K, F> {
        self.max_body_bytes = max_body_bytes;
        self
    }

    /// Takes a response's TTL from its `Cache-Control`, from `s-maxage` or else `max-age`, where it has one.
    ///
    /// Its `Age` is taken off. Of several the shortest holds, and one that is no number of seconds is 0, which isn't
    /// kept. By default the cache's own TTL holds for all.
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
    let passes = [AUTHORIZATION, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE];
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
    async fn make(mut self) -> Answer<S::Error, Out::Error> {
        Ok(self.inner.call(self.request).await?.map(BodyExt::boxed_unsync))
    }
}

/// What the handler answers the one client whose request it was given.
type Answer<E, B> = Result<Response<CachedBody<B>>, E>;

/// What a load brings the cache.
type Outcome<E> = Result<Loaded<CachedResponse>, Refusal<E>>;

/// Why a load failed. It reaches all who wait, and isn't kept.
enum Refusal<E> {
    Service(E),
    Response(Box<CachedResponse>),
    /// A response, too, but one that can't be shared.
    Unshared,
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl<K, F> CacheLayer<K, F>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    F: Send + Sync + 'static,
{
    async fn answer<S, In, Out>(self: Arc<Self>, key: &K, call: Call<S, In>) -> Answer<S::Error, Out::Error>
    where
        S: Service<Request<In>, Response = Response<Out>> + Send + 'static,
        S::Error: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
        In: Send + 'static,
        Out: Body<Data = Bytes> + Send + 'static,
        Out::Error: Send + 'static,
    {
        let began = Instant::now();
        let (own, answer) = oneshot::channel();
        // The load takes the call when it runs, which it does not where the remote has the response.
        let call = Arc::new(Mutex::new(Some(call)));
        let load = || {
            let (layer, call) = (Arc::clone(&self), Arc::clone(&call));
            async move {
                // It is there: the client takes it only when this load is gone.
                let Some(call) = take(&call) else { return Ok(Loaded::absent()) };
                let (answer, outcome) = layer.ask(call).await;
                // Fails when the client has gone, or has something already.
                let _ = own.send(answer);
                outcome
            }
        };
        match self.cache.get_or_load(key, load).await {
            Ok(Some(response)) => return Ok(whole(&response)),
            Ok(None) => {}
            Err(LoadError::Source(refusal)) => match &*refusal {
                Refusal::Service(error) => return Err(error.clone()),
                Refusal::Response(response) => return Ok(whole(response)),
                Refusal::Unshared => {}
            },
            Err(LoadError::TimedOut(_)) => return Ok(empty(StatusCode::GATEWAY_TIMEOUT)),
            Err(_) => return Ok(empty(StatusCode::INTERNAL_SERVER_ERROR)),
        }
        // There is nothing to share. The client's own load may still run: what is known of the key may be stale.
        match (answer.await, take(&call)) {
            (Ok(answer), _) => answer,
            (Err(_), Some(call)) => call.make().await,
            (Err(_), None) if began.elapsed() < self.cache.inner.policy().load_timeout => {
                Ok(empty(StatusCode::INTERNAL_SERVER_ERROR))
            }
            (Err(_), None) => Ok(empty(StatusCode::GATEWAY_TIMEOUT)),
        }
    }

    /// Asks the handler, for the one client and for the cache.
    async fn ask<S, In, Out>(
        &self,
        mut call: Call<S, In>,
    ) -> (Answer<S::Error, Out::Error>, Outcome<S::Error>)
    where
        S: Service<Request<In>, Response = Response<Out>>,
        S::Error: Clone,
        Out: Body<Data = Bytes> + Send + 'static,
        Out::Error: Send,
    {
        // The whole response is wanted, not the word that this one client has it.
        for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
            call.request.headers_mut().remove(name);
        }
        let (parts, body) = match call.inner.call(call.request).await {
            Ok(response) => response.into_parts(),
            Err(error) => return (Err(error.clone()), Err(Refusal::Service(error))),
        };
        let directives = Directives::of(&parts.headers);
        let mut failed = parts.status.is_server_error();
        let (body, counter) = match self.why_not(&parts, &directives) {
            Some(counter) => (body.boxed_unsync(), counter),
            None => match body::read(body, self.max_body_bytes).await {
                Read::Whole(body) => {
                    let response = CachedResponse::new(&parts, body);
                    return (Ok(whole(&response)), self.loaded(response, &directives));
                }
                Read::TooLong(body) => (body.boxed_unsync(), &self.uncached.too_large),
                Read::Trailers(body) => (body.boxed_unsync(), &self.uncached.body),
                Read::Failed(body) => {
                    failed = true;
                    (body.boxed_unsync(), &self.uncached.body)
                }
            },
        };
        counter.increment(1);
        let outcome = match failed {
            true => Err(Refusal::Unshared),
            false => Ok(Loaded::absent()),
        };
        (Ok(Response::from_parts(parts, body)), outcome)
    }

    fn loaded<E>(&self, response: CachedResponse, directives: &Directives) -> Outcome<E> {
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
    fn why_not(&self, response: &answer::Parts, directives: &Directives) -> Option<&Counter> {
        let headers = &response.headers;
        let stream = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.as_bytes().get(..17))
            .is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"));
        if directives.refuse || stream || headers.contains_key(SET_COOKIE) || headers.contains_key(VARY) {
            return Some(&self.uncached.headers);
        }
        let shared = response.status == StatusCode::OK || response.status.is_server_error();
        (!shared).then_some(&self.uncached.status)
    }
}

fn whole<E: 'static>(response: &CachedResponse) -> Response<CachedBody<E>> {
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
    too_large: Counter,
    body: Counter,
}

impl Uncached {
    fn new(cache: &'static str) -> Uncached {
        let uncached = |reason: &'static str| counter!(UNCACHED, "cache" => cache, "reason" => reason);
        Uncached {
            status: uncached("status"),
            headers: uncached("headers"),
            too_large: uncached("too_large"),
            body: uncached("body"),
        }
    }
}
