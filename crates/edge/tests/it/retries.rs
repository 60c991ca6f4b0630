//! Which failures of upstreams a client notices, and how.

use std::time::{Duration, Instant};

use expect_test::expect;
use greenwave_edge::{CheckConfig, Health, HealthChecker, ProxyConfig, Upstreams};
use http::Method;
use tokio::net::TcpListener;

use crate::clients::{LIMIT, RunningProxy};
use crate::upstreams::{OK, Scripted, nobody};

#[tokio::test]
async fn a_post_that_reached_nobody_goes_to_the_next_upstream() {
    let upstream =
        Scripted::start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
    let proxy = RunningProxy::before(&[nobody().await, upstream.address, nobody().await]).await;
    for _ in 0..4 {
        let answer = proxy.request(Method::POST, "/orders", "{}").await;
        assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (200, &b"ok"[..]));
    }
}

#[tokio::test]
async fn a_post_whose_upstream_dies_over_it_is_not_sent_twice() {
    let (first, second) = (Scripted::start("").await, Scripted::start("").await);
    let proxy = RunningProxy::before(&[first.address, second.address]).await;
    let answer = proxy.request(Method::POST, "/orders", "{}").await;
    assert_eq!(answer.status(), 502);
    expect![[r#"{"error":"bad_gateway","message":"the service ended the connection"}"#]]
        .assert_eq(&String::from_utf8_lossy(answer.body()));
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(first.heads().await.len() + second.heads().await.len(), 1);
}

#[tokio::test]
async fn a_get_whose_upstream_dies_over_it_is_sent_once_more_elsewhere() {
    let (dying, living) = (Scripted::start("").await, Scripted::start(OK).await);
    let proxy = RunningProxy::before(&[dying.address, living.address]).await;
    for _ in 0..4 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert_eq!(living.heads().await.len(), 4);
    assert!(!dying.heads().await.is_empty());
    // And once only.
    let proxy = RunningProxy::before(&[dying.address]).await;
    let before = dying.heads().await.len();
    assert_eq!(proxy.get("/").await.status(), 502);
    assert_eq!(dying.heads().await.len(), before + 2);
}

#[tokio::test]
async fn without_a_healthy_upstream_a_request_waits_and_is_told_to_come_back() {
    let wait = Duration::from_millis(300);
    let config = ProxyConfig { upstream_wait: wait, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::default().into_watch()).await;
    let begun = Instant::now();
    let answer = proxy.get("/").await;
    assert!(begun.elapsed() >= wait);
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (503, &b"1"[..]));
    expect![[r#"{"error":"unavailable","message":"no instance of the service is healthy"}"#]]
        .assert_eq(&String::from_utf8_lossy(answer.body()));
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_given_up_and_not_asked_again() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ProxyConfig { answer_timeout: Duration::from_millis(200), ..Default::default() };
    let proxy =
        RunningProxy::start(config, Upstreams::fixed([silent.local_addr().unwrap()]).into_watch()).await;
    let answer = proxy.get("/").await;
    assert_eq!(answer.status(), 504);
    expect![[r#"{"error":"gateway_timeout","message":"the service did not answer in time"}"#]]
        .assert_eq(&String::from_utf8_lossy(answer.body()));
}

#[tokio::test]
async fn addresses_without_a_supervisor_are_checked_too() {
    let sick = Scripted::start("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let well = Scripted::start(OK).await;
    let config = CheckConfig { interval: Duration::from_millis(20), ..Default::default() };
    let health = Health::Http { path: "/health".into() };
    let checker = HealthChecker::start([sick.address, well.address, nobody().await], health, config);
    let mut upstreams = checker.upstreams();
    let checked = |list: &Upstreams| list.iter().any(|upstream| upstream.checks > 2);
    let list = tokio::time::timeout(LIMIT, upstreams.wait_for(checked)).await.unwrap().unwrap().clone();
    let healthy: Vec<_> =
        list.iter().filter(|upstream| upstream.healthy).map(|upstream| upstream.address).collect();
    assert_eq!(healthy, [well.address]);
    assert!(well.heads().await[0].starts_with("GET /health HTTP/1.1\r\nhost: 127.0.0.1:"));
    let proxy = RunningProxy::start(ProxyConfig::default(), checker.upstreams()).await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
}
