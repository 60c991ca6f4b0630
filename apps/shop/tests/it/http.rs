//! What the server does with requests that are not as they should be, and at its end.

use std::time::Duration;

use greenwave_shop::http::MAX_BODY_BYTES;
use hyper::{Method, header};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::fixture::{Fixture, Kind};

#[tokio::test]
async fn a_wrong_method_is_answered_with_those_there_are() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    for (method, path) in [
        (Method::DELETE, "/users/1"),
        (Method::PUT, "/orders"),
        (Method::POST, "/products/1"),
        (Method::POST, "/health"),
        (Method::POST, "/openapi.json"),
    ] {
        fixture.client().fails(method.clone(), path, "{}", 405, "method_not_allowed").await;
        let response = fixture.client().send(method, path, b"").await;
        assert!(response.headers()[header::ALLOW].to_str().unwrap().contains("GET"), "{path}");
    }
}

#[tokio::test]
async fn a_body_may_have_a_mebibyte_and_no_more() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let body = |padding: usize| {
        let mut body = json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1}]}).to_string();
        body.extend(std::iter::repeat_n(' ', padding - body.len()));
        body
    };
    let (status, _) = fixture.client().call(Method::POST, "/orders", body(MAX_BODY_BYTES).as_bytes()).await;
    assert_eq!(status, 201);
    fixture.client().fails(Method::POST, "/orders", &body(MAX_BODY_BYTES + 1), 413, "too_large").await;
}

#[tokio::test]
async fn a_deep_body_is_refused_without_harm() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let deep = format!("{{\"x\": {}{}}}", "[".repeat(400_000), "]".repeat(400_000));
    fixture.client().fails(Method::POST, "/orders", &deep, 422, "invalid").await;
    let deep = "[".repeat(1_000_000);
    fixture.client().fails(Method::POST, "/users", &deep, 400, "bad_request").await;
}

#[tokio::test]
async fn a_request_that_runs_is_finished_before_the_end() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let mut stream = TcpStream::connect(fixture.client().address()).await.unwrap();
    let body = json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1}]}).to_string();
    let (first, rest) = body.split_at(10);
    let head = format!(
        "POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body, so it has the request.
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&answer[..read]));
    stream.write_all(first.as_bytes()).await.unwrap();

    fixture.shop.begin_to_stop();
    // The listener closes first.
    while TcpStream::connect(fixture.client().address()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
    timeout(Duration::from_secs(10), fixture.shop.stop()).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let mut idle = TcpStream::connect(fixture.client().address()).await.unwrap();
    fixture.client().get("/health").await;
    timeout(Duration::from_secs(4), fixture.shop.stop()).await.unwrap();
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0, "closed");
}

#[tokio::test]
async fn a_body_that_never_comes_whole_is_not_waited_for() {
    let fixture = Fixture::start(Kind::Sqlite).await;
    let mut stream = TcpStream::connect(fixture.client().address()).await.unwrap();
    stream.write_all(b"POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    let mut answer = String::new();
    timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("unavailable"), "{answer}");
}
