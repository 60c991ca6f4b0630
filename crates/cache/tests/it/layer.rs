use std::{
    convert::Infallible,
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Path, response::IntoResponse, routing::get};
use bytes::Bytes;
use expect_test::expect;
use greenwave_cache::{Cache, CacheConfig, CacheLayer, CachedResponse};
use http::{Method, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::task::JoinSet;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneService};

use crate::support::{Failed, Gate, Recording};

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
    for header in [("range", "bytes=0-9"), ("if-match", "\"a\""), ("if-unmodified-since", "now")] {
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

#[tokio::test]
async fn a_body_that_breaks_off_breaks_off_for_its_client_and_is_not_cached() {
    let handler = Handler::default();
    let service = layer(&pages()).layer(handler.answering(|_| async {
        let parts = [Ok(Bytes::from_static(b"half")), Err(io::Error::other("broken"))];
        Body::from_stream(futures_util::stream::iter(parts))
    }));
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

// On one thread, all clients are there before the first call begins.
#[tokio::test]
async fn a_server_error_reaches_all_who_wait_by_one_call() {
    let (pages, handler) = (pages(), Handler::default());
    let service = layer(&pages).layer(handler.answering(|number| async move {
        (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "3")], number.to_string())
    }));
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        clients.spawn(service.clone().oneshot(get_it()));
    }
    for response in clients.join_all().await {
        let response = response.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &"3".parse().unwrap())
        );
        assert_eq!(text(response).await, "1");
    }
    assert_eq!(handler.calls(), 1);
    assert!(pages.get(&"/1".to_owned()).await.is_none());
}

#[tokio::test]
async fn a_response_that_is_one_clients_alone_reaches_no_other() {
    let (pages, handler, gate) = (pages(), Handler::default(), Gate::new());
    let behind = gate.clone();
    let service = layer(&pages).layer(handler.answering(move |number| {
        let gate = behind.clone();
        async move {
            gate.pass().await;
            ([("set-cookie", format!("id={number}"))], number.to_string())
        }
    }));
    let mut clients = JoinSet::new();
    for _ in 0..10 {
        clients.spawn(service.clone().oneshot(get_it()));
    }
    for _ in 0..10 {
        gate.open();
    }
    let responses = clients.join_all().await;
    let mut cookies: Vec<_> =
        responses.into_iter().map(|response| response.unwrap().headers()["set-cookie"].clone()).collect();
    cookies.sort();
    cookies.dedup();
    assert_eq!((cookies.len(), handler.calls()), (10, 10));
}

#[tokio::test]
async fn an_error_of_the_service_reaches_all_who_wait_by_one_call() {
    let handler = Handler::default();
    let counted = handler.clone();
    let failing = service_fn(move |_: Request<Body>| {
        counted.number();
        async { Err::<Response<Full<Bytes>>, _>(Arc::new(Failed)) }
    });
    let service = layer(&pages()).layer(failing);
    let mut clients = JoinSet::new();
    for _ in 0..100 {
        clients.spawn(service.clone().oneshot(get_it()));
    }
    assert!(clients.join_all().await.into_iter().all(|response| *response.unwrap_err() == Failed));
    assert_eq!(handler.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_is_a_500_and_one_that_never_answers_a_504() {
    async fn panics() -> &'static str {
        panic!("out of tea")
    }
    let service = layer(&pages()).layer(Handler::default().answering(|_| panics()));
    assert_eq!(service.oneshot(get_it()).await.unwrap().status(), 500);
    let service = layer(&pages()).layer(Handler::default().answering(|_| pending::<&'static str>()));
    assert_eq!(service.oneshot(get_it()).await.unwrap().status(), 504);
}

#[tokio::test]
async fn a_response_survives_its_serialisation() {
    let pages = pages();
    let headers = [("content-type", "text/plain"), ("x-odd", "caf\u{e9}"), ("connection", "close")];
    let service =
        layer(&pages).layer(Handler::default().answering(move |_| async move { (headers, "a page") }));
    service.oneshot(get_it()).await.unwrap();
    let page = pages.get(&"/1".to_owned()).await.unwrap();
    assert_eq!((page.status(), page.body().as_ref()), (StatusCode::OK, &b"a page"[..]));
    assert!(!page.headers().contains_key("connection"), "that is the connection's");
    let json = serde_json::to_string(&*page).unwrap();
    assert_eq!(serde_json::from_str::<CachedResponse>(&json).unwrap(), *page);
    let error = serde_json::from_str::<CachedResponse>(&json.replace("200", "7")).unwrap_err();
    expect!["invalid status code"].assert_eq(&error.to_string());
}

#[tokio::test]
async fn a_response_says_its_age() {
    let pages = pages();
    let service = layer(&pages).layer(Handler::default().answering(|_| async { "page" }));
    let fresh = service.clone().oneshot(get_it()).await.unwrap();
    assert!(!fresh.headers().contains_key("age"));
    let mut page = serde_json::to_value(&*pages.get(&"/1".to_owned()).await.unwrap()).unwrap();
    page["at"] = (page["at"].as_u64().unwrap() - 100).into();
    pages.insert("/1".to_owned(), serde_json::from_value::<CachedResponse>(page).unwrap()).await;
    let aged = service.oneshot(get_it()).await.unwrap();
    assert!(
        (100..110).contains(&aged.headers()["age"].to_str().unwrap().parse::<u64>().unwrap()),
        "{aged:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_response_may_set_its_own_ttl() {
    let seconds = Duration::from_secs;
    for (cache_control, fresh_for) in [
        ("max-age=60", 60),
        ("max-age=60, s-maxage=5", 5),
        ("max-age=0", 0),
        ("max-age=soon", 300),
        ("public", 300),
    ] {
        let config = CacheConfig { ttl: seconds(300), ttl_jitter: 0.0, ..Default::default() };
        let pages: Pages = Cache::builder("page").config(config).build();
        let handler = Handler::default();
        let answer = handler.answering(move |_| async move { ([("cache-control", cache_control)], "page") });
        let service = layer(&pages).ttl_from_headers().layer(answer);
        service.clone().oneshot(get_it()).await.unwrap();
        if fresh_for > 0 {
            tokio::time::sleep(seconds(fresh_for) - Duration::from_millis(200)).await;
            service.clone().oneshot(get_it()).await.unwrap();
            assert_eq!(handler.calls(), 1, "{cache_control}");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        service.oneshot(get_it()).await.unwrap();
        assert_eq!(handler.calls(), 2, "{cache_control}");
    }
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

#[cfg(feature = "redis")]
#[tokio::test]
async fn what_another_process_found_uncacheable_is_answered_here_all_the_same() {
    let server = greenwave_test_servers::Server::redis();
    let url = server.url();
    let handler = Handler::default();
    for calls in ["1", "2"] {
        let config = CacheConfig { absent_ttl: Duration::from_secs(60), ..Default::default() };
        let pages: Pages = Cache::builder("page").config(config).remote(crate::remote::patient(&url)).build();
        let answer =
            handler.answering(|number| async move { ([("set-cookie", "id=7")], number.to_string()) });
        let response = layer(&pages).layer(answer).oneshot(get_it()).await.unwrap();
        assert_eq!(text(response).await, calls);
        pages.settled().await;
    }
}
