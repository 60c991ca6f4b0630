//! What clients get when the handler fails.

use std::{collections::HashSet, future::pending};

use http_body_util::Full;

use super::*;
use crate::support::Failed;

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

/// Sees that a stale page is shown, and kept, when the handler fails like this.
async fn check_covered(failure: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static) {
    let config = CacheConfig { stale_if_error: Duration::from_secs(3600), ..Default::default() };
    let pages: Pages = Cache::builder("page").config(config).build();
    let handler = Handler::default();
    let service = layer(&pages).max_body_bytes(10).layer(handler.answering(move |number| {
        let response = if number == 1 { "page".into_response() } else { failure() };
        async move { response }
    }));
    for calls in 1..4 {
        let response = service.clone().oneshot(get_it()).await.unwrap();
        assert_eq!((text(response).await.as_str(), handler.calls()), ("page", calls));
        tokio::time::sleep(Duration::from_secs(301)).await;
    }
}

// Frameworks put `no-store` on the pages that say what went wrong.
#[tokio::test(start_paused = true)]
async fn a_stale_page_covers_a_server_error_whatever_its_headers_and_its_size() {
    for header in [("cache-control", "no-store"), ("set-cookie", "id=7"), ("vary", "accept")] {
        check_covered(move || (StatusCode::BAD_GATEWAY, [header], "failed").into_response()).await;
    }
    check_covered(|| (StatusCode::BAD_GATEWAY, "longer than ten bytes").into_response()).await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_page_covers_a_body_that_breaks_off() {
    check_covered(|| broken_off().into_response()).await;
}

#[tokio::test]
async fn a_server_error_that_is_one_clients_alone_reaches_no_other() {
    let handler = Handler::default();
    let service = layer(&pages()).layer(handler.answering(|number| async move {
        (StatusCode::BAD_GATEWAY, [("set-cookie", format!("id={number}"))])
    }));
    let mut clients = JoinSet::new();
    for _ in 0..10 {
        clients.spawn(service.clone().oneshot(get_it()));
    }
    let responses = clients.join_all().await;
    let cookies: HashSet<_> =
        responses.into_iter().map(|response| response.unwrap().headers()["set-cookie"].clone()).collect();
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
