//! What passes the proxy, and what it changes.

use std::time::Duration;

use expect_test::{Expect, expect};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{LIMIT, RunningProxy, read_head};
use crate::upstreams::{OK, Scripted};

async fn check(request: &str, seen_by_upstream: Expect) {
    let upstream = Scripted::start(OK).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let answer = proxy.raw(&request.replace('\n', "\r\n")).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") || answer.starts_with("HTTP/1.0 200 OK\r\n"),
        "{answer}"
    );
    seen_by_upstream.assert_eq(&upstream.shown().await.replace(&proxy.address.to_string(), "PROXY"));
}

#[tokio::test]
async fn an_upstream_sees_the_host_and_the_address_of_the_client() {
    check(
        "GET /a?b=c%20d HTTP/1.1\nHost: shop.example:8080\nConnection: close\nAccept: */*\n\n",
        expect![[r#"
            GET /a?b=c%20d HTTP/1.1
            host: shop.example:8080
            traceparent: BEGUN
            accept: */*
            x-real-ip: 127.0.0.1
            x-forwarded-for: 127.0.0.1
            forwarded: for=127.0.0.1;host="shop.example:8080";proto=http
            x-forwarded-host: shop.example:8080
            x-forwarded-proto: http

        "#]],
    )
    .await;
}

#[tokio::test]
async fn addresses_that_a_client_claims_are_replaced() {
    check(
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 1.1.1.1\nX-Forwarded-For: 2.2.2.2, 3.3.3.3\n\
         X-Real-IP: 1.1.1.1\nX-Forwarded-Proto: https\nConnection: close\n\n",
        expect![[r#"
            GET / HTTP/1.1
            host: a
            x-forwarded-for: 127.0.0.1
            x-real-ip: 127.0.0.1
            traceparent: BEGUN
            forwarded: for=127.0.0.1;host="a";proto=http
            x-forwarded-host: a
            x-forwarded-proto: http

        "#]],
    )
    .await;
}

#[tokio::test]
async fn what_a_client_says_in_the_words_of_a_proxy_does_not_reach_the_upstream() {
    check(
        "GET / HTTP/1.1\nHost: a\nX_Real_IP: 1.1.1.1\nX_Forwarded_For: 1.1.1.1\nX-Real_IP: 1.1.1.1\n\
         Content_Length: 7\nForwarded: for=1.1.1.1;host=evil\nX-Forwarded-Host: evil\nX-Forwarded-Host: evil\n\
         X-Forwarded-Port: 443\nX-Forwarded-Prefix: /evil\nX-Forwarded-Ssl: on\nX-Kept: 1\n\
         Connection: close\n\n",
        expect![[r#"
            GET / HTTP/1.1
            host: a
            traceparent: BEGUN
            x-kept: 1
            x-real-ip: 127.0.0.1
            x-forwarded-for: 127.0.0.1
            forwarded: for=127.0.0.1;host="a";proto=http
            x-forwarded-host: a
            x-forwarded-proto: http

        "#]],
    )
    .await;
}

#[tokio::test]
async fn headers_of_the_connection_do_not_reach_the_upstream() {
    check(
        "GET / HTTP/1.1\nHost: a\nConnection: close, X-Secret, Host, X-Real-IP\nX-Secret: 1\nKeep-Alive: timeout=5\n\
         Proxy-Connection: keep-alive\nProxy-Authorization: Basic eDp5\nTE: trailers\nTrailer: X-End\n\
         Upgrade: h2c\nCookie: kept\n\n",
        expect![[r#"
            GET / HTTP/1.1
            host: a
            cookie: kept
            traceparent: BEGUN
            trailer: X-End
            te: trailers
            x-real-ip: 127.0.0.1
            x-forwarded-for: 127.0.0.1
            forwarded: for=127.0.0.1;host="a";proto=http
            x-forwarded-host: a
            x-forwarded-proto: http

        "#]],
    )
    .await;
}

#[tokio::test]
async fn other_forms_of_target_and_version_reach_the_upstream_in_the_usual_one() {
    check(
        "GET http://shop.example/a HTTP/1.1\nHost: Shop.example\nConnection: close\n\n",
        expect![[r#"
            GET /a HTTP/1.1
            host: Shop.example
            traceparent: BEGUN
            x-real-ip: 127.0.0.1
            x-forwarded-for: 127.0.0.1
            forwarded: for=127.0.0.1;host="Shop.example";proto=http
            x-forwarded-host: Shop.example
            x-forwarded-proto: http

        "#]],
    )
    .await;
    check(
        "GET /old HTTP/1.0\n\n",
        expect![[r#"
            GET /old HTTP/1.1
            traceparent: BEGUN
            host: PROXY
            x-real-ip: 127.0.0.1
            x-forwarded-for: 127.0.0.1
            forwarded: for=127.0.0.1;host="PROXY";proto=http
            x-forwarded-host: PROXY
            x-forwarded-proto: http

        "#]],
    )
    .await;
    check(
        "OPTIONS * HTTP/1.1\nHost: a\nConnection: close\n\n",
        expect![[r#"
            OPTIONS * HTTP/1.1
            host: a
            traceparent: BEGUN
            x-real-ip: 127.0.0.1
            x-forwarded-for: 127.0.0.1
            forwarded: for=127.0.0.1;host="a";proto=http
            x-forwarded-host: a
            x-forwarded-proto: http

        "#]],
    )
    .await;
}

#[tokio::test]
async fn headers_of_the_upstreams_connection_do_not_reach_the_client() {
    let upstream = Scripted::start(
        "HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n\
         Date: then\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let answer = proxy.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    expect![[r#"
        HTTP/1.1 200 Fine
        content-length: 2
        date: then
        set-cookie: a=1
        set-cookie: b=2
        cache-status: greenwave; fwd=uri-miss
        connection: close

        ok"#]]
    .assert_eq(&answer.replace('\r', ""));
}

#[tokio::test]
async fn an_answer_to_head_keeps_its_length_and_the_connection() {
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n").await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    for _ in 0..2 {
        let answer = proxy.request(Method::HEAD, "/", "").await;
        assert_eq!(answer.headers()["content-length"], "1234");
        assert!(answer.body().is_empty());
    }
    assert_eq!(upstream.heads().await.len(), 2);
}

#[tokio::test]
async fn a_chunked_body_stays_chunked_even_with_get() {
    for method in ["GET", "POST"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = RunningProxy::before(&[listener.local_addr().unwrap()]).await;
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(b"2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        assert!(read_head(&mut server).await.contains("transfer-encoding: chunked\r\n"));
        let mut body = Vec::new();
        while !body.ends_with(b"0\r\n\r\n") {
            body.push(tokio::time::timeout(LIMIT, server.read_u8()).await.unwrap().unwrap());
        }
        let body = String::from_utf8(body).unwrap();
        let text: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!(text, "hello", "{body}");
    }
}

#[tokio::test]
async fn the_first_part_of_an_answer_arrives_before_the_last_is_made() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = RunningProxy::before(&[listener.local_addr().unwrap()]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    read_head(&mut server).await;
    server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n").await.unwrap();
    read_head(&mut client).await;
    let mut part = [0; 11];
    tokio::time::timeout(LIMIT, client.read_exact(&mut part)).await.unwrap().unwrap();
    assert_eq!(&part, b"6\r\nfirst\n\r\n");
    server.write_all(b"5\r\nlast\n\r\n0\r\n\r\n").await.unwrap();
    let mut rest = [0; 15];
    tokio::time::timeout(LIMIT, client.read_exact(&mut rest)).await.unwrap().unwrap();
    assert_eq!(&rest, b"5\r\nlast\n\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_continue() {
    let upstream = Scripted::start(OK).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 OK"));
    assert!(!upstream.heads().await[0].contains("expect"));
}

#[tokio::test]
async fn an_upstream_that_falls_silent_in_its_answer_is_given_up() {
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this").await;
    let config =
        greenwave_edge::ProxyConfig { answer_body_timeout: Duration::from_millis(200), ..Default::default() };
    let upstreams = greenwave_edge::Upstreams::fixed([upstream.address]).into_watch();
    let proxy = RunningProxy::start(config, upstreams).await;
    // The connection ends before the length is reached, so the client knows that something is missing.
    assert!(proxy.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.ends_with("only this"));
}
