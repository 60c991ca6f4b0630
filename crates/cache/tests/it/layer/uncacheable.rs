//! Responses that are one client's alone.

use std::future::pending;

use super::*;
use crate::support::Failed;

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

/// A cache that has found `/1` to be uncacheable a minute ago, and would soon like to know whether it still is.
async fn pages_that_were_uncacheable(config: CacheConfig) -> Pages {
    let minute = Duration::from_secs(60);
    let config = CacheConfig { absent_ttl: minute, ttl_jitter: 0.0, error_ttl: Duration::ZERO, ..config };
    let pages: Pages = Cache::builder("page").config(config).build();
    let service = layer(&pages).layer(Handler::default().answering(|_| async { StatusCode::NOT_FOUND }));
    service.oneshot(get_it()).await.unwrap();
    tokio::time::sleep(minute + Duration::from_secs(1)).await;
    pages
}

fn ways_to_be_stale() -> [CacheConfig; 3] {
    let hour = Duration::from_secs(3600);
    let soft_timeout = Duration::from_millis(10);
    [
        CacheConfig { stale_while_revalidate: hour, ..Default::default() },
        CacheConfig { stale_if_error: hour, ..Default::default() },
        CacheConfig { stale_if_error: hour, soft_timeout, ..Default::default() },
    ]
}

/// What the only client gets who comes when it is to be seen whether the page is uncacheable still.
async fn when_uncacheable_before<R>(
    config: CacheConfig,
    answer: impl Fn() -> R + Clone + Send + Sync + 'static,
) -> Response<impl http_body::Body<Error: std::fmt::Debug>>
where
    R: Future<Output: IntoResponse> + Send + 'static,
{
    let (pages, handler) = (pages_that_were_uncacheable(config).await, Handler::default());
    let response = layer(&pages).layer(handler.answering(move |_| answer())).oneshot(get_it()).await.unwrap();
    assert_eq!(handler.calls(), 1);
    response
}

#[tokio::test(start_paused = true)]
async fn who_comes_when_it_was_uncacheable_gets_the_handlers_answer_however_that_turns_out() {
    async fn slow<R>(answer: R) -> R {
        tokio::time::sleep(Duration::from_secs(1)).await;
        answer
    }
    async fn panics() -> &'static str {
        slow(()).await;
        panic!("out of tea")
    }
    for config in ways_to_be_stale() {
        let own = ([("set-cookie", "id=7")], "mine");
        let response = when_uncacheable_before(config.clone(), move || slow(own)).await;
        assert_eq!(
            (&response.headers()["set-cookie"], response.status().as_u16()),
            (&"id=7".parse().unwrap(), 200)
        );
        assert_eq!(text(response).await, "mine");
        let failed = (StatusCode::SERVICE_UNAVAILABLE, "later");
        let response = when_uncacheable_before(config.clone(), move || slow(failed)).await;
        assert_eq!(response.status(), 503);
        assert_eq!(text(response).await, "later");
        assert_eq!(when_uncacheable_before(config.clone(), panics).await.status(), 500);
        assert_eq!(when_uncacheable_before(config, pending::<&str>).await.status(), 504);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_uncacheable_is_cached_once_it_can_be() {
    for config in ways_to_be_stale() {
        let (pages, handler) = (pages_that_were_uncacheable(config).await, Handler::default());
        let service = layer(&pages).layer(handler.answering(|number| async move { number.to_string() }));
        for _ in 0..3 {
            assert_eq!(text(service.clone().oneshot(get_it()).await.unwrap()).await, "1");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_is_told_who_comes_when_it_was_uncacheable() {
    for config in ways_to_be_stale() {
        let pages = pages_that_were_uncacheable(config).await;
        let failing = service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>(Arc::new(Failed)) });
        assert_eq!(*layer(&pages).layer(failing).oneshot(get_it()).await.unwrap_err(), Failed);
    }
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn what_another_process_found_uncacheable_is_answered_here_all_the_same() {
    let url = greenwave_test_servers::redis_url();
    let handler = Handler::default();
    for calls in ["1", "2"] {
        let config = CacheConfig { absent_ttl: Duration::from_secs(60), ..Default::default() };
        let pages: Pages =
            Cache::builder("page").config(config).remote(Remote::connect(&url).unwrap()).build();
        let answer =
            handler.answering(|number| async move { ([("set-cookie", "id=7")], number.to_string()) });
        let response = layer(&pages).layer(answer).oneshot(get_it()).await.unwrap();
        assert_eq!(text(response).await, calls);
        pages.settled().await;
    }
}
