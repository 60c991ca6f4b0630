mod failures;
mod headers;
mod uncacheable;

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, response::IntoResponse, routing::get};
use bytes::Bytes;
#[cfg(feature = "redis")]
use greenwave_cache::Remote;
use greenwave_cache::{Cache, CacheConfig, CacheLayer, CachedResponse};
use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, StreamBody};
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

use crate::support::{Gate, Recording};

type Pages = Cache<String, CachedResponse>;

fn pages() -> Pages {
    // An error that answers for a while would answer the next request too.
    let config = CacheConfig { error_ttl: Duration::ZERO, ..Default::default() };
    Cache::builder("page").config(config).build()
}

fn layer(pages: &Pages) -> CacheLayer<String, impl Fn(&Parts) -> Option<String> + use<>> {
    CacheLayer::new(pages.clone(), |request| Some(request.uri.to_string()))
}

fn request(method: Method, headers: &[(&str, &str)]) -> Request<Body> {
    let request =
        headers.iter().fold(Request::builder(), |request, (name, value)| request.header(*name, *value));
    request.method(method).uri("/1").body(Body::empty()).unwrap()
}

fn get_it() -> Request<Body> {
    request(Method::GET, &[])
}

/// A handler that numbers its answers.
#[derive(Clone, Default)]
struct Handler {
    calls: Arc<AtomicUsize>,
}

impl Handler {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn number(&self) -> usize {
        self.calls.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A service that makes its answer of the call's number.
    fn answering<R, Fut>(
        &self,
        answer: impl Fn(usize) -> Fut + Clone + Send + Sync + 'static,
    ) -> BoxCloneService<Request<Body>, Response<Body>, Infallible>
    where
        Fut: Future<Output = R> + Send + 'static,
        R: IntoResponse,
    {
        let handler = self.clone();
        BoxCloneService::new(service_fn(move |_: Request<Body>| {
            let answer = answer(handler.number());
            async move { Ok(answer.await.into_response()) }
        }))
    }
}

async fn text<B: http_body::Body<Error: std::fmt::Debug>>(response: Response<B>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn a_routers_handler_runs_once_for_a_page_until_that_is_invalidated() {
    let (pages, handler) = (pages(), Handler::default());
    let counted = handler.clone();
    let page =
        |Path(id): Path<u64>| async move { ([("x-page", "7")], format!("page {id}, {}", counted.number())) };
    let app: Router = Router::new().route("/{id}", get(page)).layer(layer(&pages));
    let ask = |uri: &str| app.clone().oneshot(Request::get(uri).body(Body::empty()).unwrap());
    for _ in 0..3 {
        let response = ask("/7").await.unwrap();
        assert_eq!(response.headers()["x-page"], "7");
        assert_eq!(text(response).await, "page 7, 1");
    }
    assert_eq!(text(ask("/8").await.unwrap()).await, "page 8, 2");
    pages.invalidate(&"/7".to_owned()).await;
    assert_eq!(text(ask("/7").await.unwrap()).await, "page 7, 3");
}

#[tokio::test]
async fn requests_that_come_at_once_share_one_call() {
    let (pages, handler, gate) = (pages(), Handler::default(), Gate::new());
    let behind = gate.clone();
    let service = layer(&pages).layer(handler.answering(move |number| {
        let gate = behind.clone();
        async move {
            gate.pass().await;
            number.to_string()
        }
    }));
    let first = tokio::spawn(service.clone().oneshot(get_it()));
    gate.arrival().await;
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        let service = service.clone();
        clients.spawn(async move { text(service.oneshot(get_it()).await.unwrap()).await });
    }
    // The client that began it hangs up.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.open();
    assert!(clients.join_all().await.iter().all(|body| body == "1"));
    assert_eq!(handler.calls(), 1);
}

/// How often the handler runs for two equal requests.
async fn calls<R>(
    request: impl Fn() -> Request<Body>,
    answer: impl Fn() -> R + Clone + Send + Sync + 'static,
) -> usize
where
    R: IntoResponse + Send + 'static,
{
    let handler = Handler::default();
    let service = layer(&pages()).layer(handler.answering(move |_| {
        let answer = answer();
        async move { answer }
    }));
    let first = service.clone().oneshot(request()).await.unwrap();
    let second = service.oneshot(request()).await.unwrap();
    assert_eq!(first.status(), second.status());
    assert_eq!(text(first).await, text(second).await);
    handler.calls()
}

#[tokio::test]
async fn only_whole_answers_to_get_are_cached() {
    assert_eq!(calls(get_it, || "yes").await, 1);
    for method in [Method::HEAD, Method::POST, Method::OPTIONS] {
        assert_eq!(calls(|| request(method.clone(), &[]), || "no").await, 2, "{method}");
    }
    for header in [
        ("range", "bytes=0-9"),
        ("if-match", "\"a\""),
        ("if-unmodified-since", "now"),
        ("authorization", "Bearer 7"),
    ] {
        assert_eq!(calls(|| request(Method::GET, &[header]), || "no").await, 2, "{header:?}");
    }
}

#[tokio::test]
async fn what_the_response_forbids_is_not_cached() {
    for header in [
        ("set-cookie", "id=7"),
        ("vary", "accept"),
        ("cache-control", "max-age=60, No-Store"),
        ("cache-control", "private=\"x-user\""),
        ("cache-control", "no-cache"),
        ("content-type", "text/event-stream; charset=utf-8"),
    ] {
        assert_eq!(calls(get_it, move || ([header], "no")).await, 2, "{header:?}");
    }
    let allowed = [("cache-control", "public, max-age=60"), ("content-type", "text/html")];
    assert_eq!(calls(get_it, move || (allowed, "yes")).await, 1);
    for status in [StatusCode::CREATED, StatusCode::NOT_FOUND, StatusCode::FOUND] {
        assert_eq!(calls(get_it, move || (status, "no")).await, 2, "{status}");
    }
    assert_eq!(calls(get_it, || StatusCode::INTERNAL_SERVER_ERROR).await, 2);
}

#[tokio::test]
async fn a_client_can_neither_pass_the_cache_nor_change_what_is_in_it() {
    let handler = Handler::default();
    let service = layer(&pages()).layer(handler.answering(|number| async move { number.to_string() }));
    let ask = |method, headers: &[_]| service.clone().oneshot(request(method, headers));
    ask(Method::GET, &[]).await.unwrap();
    ask(Method::DELETE, &[]).await.unwrap();
    for header in [("cache-control", "no-cache"), ("cache-control", "no-store"), ("if-none-match", "\"a\"")] {
        assert_eq!(text(ask(Method::GET, &[header]).await.unwrap()).await, "1", "{header:?}");
    }
}

#[tokio::test]
async fn the_handler_is_asked_for_the_whole_response_when_a_client_has_it() {
    let plain = service_fn(|request: Request<Body>| async move {
        let not_modified = request.headers().contains_key("if-none-match");
        Ok::<_, Infallible>(if not_modified {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            "page".into_response()
        })
    });
    let service = layer(&pages()).layer(plain);
    let response = service.oneshot(request(Method::GET, &[("if-none-match", "\"a\"")])).await.unwrap();
    assert_eq!(text(response).await, "page");
}

#[tokio::test]
async fn a_request_without_a_key_goes_by_the_cache() {
    let handler = Handler::default();
    let service = CacheLayer::new(pages(), |_| None)
        .layer(handler.answering(|number| async move { number.to_string() }));
    for number in ["1", "2"] {
        assert_eq!(text(service.clone().oneshot(get_it()).await.unwrap()).await, number);
    }
}

/// A body of chunks that says no length.
fn chunks(chunks: &[&'static str]) -> Body {
    let chunks: Vec<_> =
        chunks.iter().map(|chunk| Ok::<_, io::Error>(Bytes::from_static(chunk.as_bytes()))).collect();
    Body::from_stream(futures_util::stream::iter(chunks))
}

#[tokio::test]
async fn a_body_over_the_limit_is_streamed_whole_and_not_cached() {
    let recording = Recording::default();
    let pages: Pages = recording.of(|| Cache::builder("page").build());
    let layer = recording.of(|| layer(&pages).max_body_bytes(10));
    for (body, expected_calls) in [
        (&["0123456789"][..], 1),
        (&["01234", "56789"], 1),
        (&["01234", "567890", "and so on"], 2),
        (&["01234567890"], 2),
        (&[], 1),
    ] {
        pages.invalidate(&"/1".to_owned()).await;
        let handler = Handler::default();
        let service = layer.layer(handler.answering(move |_| async move { chunks(body) }));
        for _ in 0..2 {
            assert_eq!(text(service.clone().oneshot(get_it()).await.unwrap()).await, body.concat());
        }
        assert_eq!(handler.calls(), expected_calls, "{body:?}");
    }
    assert_eq!(recording.count("greenwave.cache.response.uncached{cache=page,reason=too_large}"), 4);
}

#[tokio::test]
async fn a_body_over_the_limit_begins_before_it_ends() {
    let endless = || {
        let first = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"01234567890"))]);
        Body::from_stream(futures_util::StreamExt::chain(first, futures_util::stream::pending()))
    };
    let service = layer(&pages())
        .max_body_bytes(10)
        .layer(Handler::default().answering(move |_| async move { endless() }));
    let mut body = service.oneshot(get_it()).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "01234567890");
}

fn broken_off() -> Body {
    let parts = [Ok(Bytes::from_static(b"half")), Err(io::Error::other("broken"))];
    Body::from_stream(futures_util::stream::iter(parts))
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_off_for_its_client_and_is_not_cached() {
    let handler = Handler::default();
    let service = layer(&pages()).layer(handler.answering(|_| async { broken_off() }));
    for _ in 0..2 {
        let mut body = service.clone().oneshot(get_it()).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
        body.frame().await.unwrap().unwrap_err();
    }
    assert_eq!(handler.calls(), 2);
}

#[tokio::test]
async fn trailers_are_passed_on_and_not_cached() {
    let handler = Handler::default();
    let service = layer(&pages()).layer(handler.answering(|_| async {
        let trailers = http::HeaderMap::from_iter([(http::header::ETAG, "\"a\"".parse().unwrap())]);
        let frames =
            [http_body::Frame::data(Bytes::from_static(b"page")), http_body::Frame::trailers(trailers)];
        Body::new(StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>))))
    }));
    for _ in 0..2 {
        let collected = service.clone().oneshot(get_it()).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["etag"], "\"a\"");
        assert_eq!(collected.to_bytes(), "page");
    }
    assert_eq!(handler.calls(), 2);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_response_is_shared_by_processes_through_redis() {
    let server = greenwave_test_servers::Server::redis();
    let url = server.url();
    let handler = Handler::default();
    let bytes = |_| async { vec![0xff_u8; 300] };
    for _ in 0..2 {
        let pages: Pages = Cache::builder("page").remote(crate::remote::patient(&url)).build();
        let service = layer(&pages).layer(handler.answering(bytes));
        let body = service.oneshot(get_it()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, vec![0xff_u8; 300]);
        pages.settled().await;
    }
    assert_eq!(handler.calls(), 1);
}
