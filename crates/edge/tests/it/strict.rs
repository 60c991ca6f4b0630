//! Requests and answers that can be read in two ways, or not at all.

use std::time::Duration;

use expect_test::expect;
use greenwave_edge::{ProxyConfig, Upstreams};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::clients::{LIMIT, RunningProxy, read_all, read_head};
use crate::upstreams::{OK, Scripted};

/// Sends each request, and a second one behind it, and returns the status of the answer. Nothing may reach
/// the upstream, and the connection must end.
async fn refusals(requests: &[&str]) -> String {
    let upstream = Scripted::start(OK).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let mut statuses = String::new();
    for request in requests {
        let answer = proxy.raw(&format!("{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{request:?} was answered {answer:?}");
        statuses += &format!("{} {}\n", answer.get(9..12).unwrap_or("?"), request.escape_default());
    }
    assert_eq!(upstream.heads().await, Vec::<String>::new());
    statuses
}

#[tokio::test]
async fn a_request_with_two_lengths_is_refused() {
    let refused = refusals(&[
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ])
    .await;
    expect![[r#"
        400 POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n
        400 POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n
        400 POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde
        400 POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd
        400 POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd
        400 POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n
        400 POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n
        400 POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n
        400 POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n
    "#]].assert_eq(&refused);
}

#[tokio::test]
async fn a_request_without_exactly_one_host_is_refused() {
    let refused = refusals(&[
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET http://a@b/ HTTP/1.1\r\nHost: a@b\r\n\r\n",
    ])
    .await;
    expect![[r#"
        400 GET / HTTP/1.1\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a, b\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a@b\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a/b\r\n\r\n
        400 GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n
        400 GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n
        400 GET / HTTP/1.1\r\nHost:\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a:b\r\n\r\n
        400 GET http://a@b/ HTTP/1.1\r\nHost: a@b\r\n\r\n
    "#]]
    .assert_eq(&refused);
}

#[tokio::test]
async fn what_is_malformed_or_unsupported_is_refused() {
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let far = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: x\r\n".repeat(100));
    let mut refused = refusals(&[
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n",
        "GET http:a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    ])
    .await;
    for large in [&long, &far, &many] {
        refused += &refusals(&[large]).await[..4];
    }
    expect![[r#"
        400 GET / HTTP/1.1\r\nHost : a\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a\r\nX: \u{0}\r\n\r\n
        400 GET  / HTTP/1.1\r\nHost: a\r\n\r\n
        405 CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n
        417 GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n
        400 GET http:a HTTP/1.1\r\nHost: a\r\n\r\n
        400 GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n
        400 GET /#x HTTP/1.1\r\nHost: a\r\n\r\n
        400 GET * HTTP/1.1\r\nHost: a\r\n\r\n
        400 GET / HTTP/1.1\nHost: a\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n
        400 GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n
        431 414 431 "#]]
    .assert_eq(&refused);
}

#[tokio::test]
async fn the_second_request_of_a_connection_is_held_to_the_same() {
    let upstream = Scripted::start(OK).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let answer = proxy
        .raw(
            "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
             POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        )
        .await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "400"], "{answer}");
    assert!(answer.ends_with(r#"{"error":"bad_request","message":"the request can be read in two ways"}"#));
    assert!(upstream.heads().await.iter().all(|head| !head.contains("/2")));
}

#[tokio::test]
async fn a_chunk_that_can_be_read_in_two_ways_is_refused() {
    for chunk in
        ["2 \r\nok\r\n", "2\nok\r\n", "+2\r\nok\r\n", "2;a\rb\r\nok\r\n", "2\r\nok\n", "2\r\nokX\r\n"]
    {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let at_once = refusals(&[&format!("{head}{chunk}0\r\n\r\n")]).await;
        assert!(at_once.starts_with("400 "), "{chunk:?}: {at_once}");
        // And when the request is on its way already.
        let upstream = Scripted::start("HTTP/1.1 200 OK\r\n").await;
        let proxy = RunningProxy::before(&[upstream.address]).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::time::timeout(LIMIT, async {
            while upstream.heads().await.is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        stream.write_all(format!("{chunk}0\r\n\r\n").as_bytes()).await.unwrap();
        assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 400 "), "{chunk:?}");
    }
}

#[tokio::test]
async fn a_malformed_chunk_is_the_clients_fault() {
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\n").await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let answer = proxy.raw("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_can_be_read_in_two_ways_is_not_passed_on() {
    for fields in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2, 2",
        "Content-Length: -2",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: gzip",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok");
        let upstream = Scripted::start(answer.leak()).await;
        let proxy = RunningProxy::before(&[upstream.address]).await;
        assert_eq!(proxy.get("/").await.status(), 502, "{fields}");
    }
    for answer in ["no HTTP at all\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"] {
        let upstream = Scripted::start(answer).await;
        let proxy = RunningProxy::before(&[upstream.address]).await;
        assert_eq!(proxy.get("/").await.status(), 502, "{answer}");
    }
}

#[tokio::test]
async fn slow_clients_are_cut_at_their_deadlines() {
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\n").await;
    let soon = Duration::from_millis(200);
    let config = ProxyConfig { header_timeout: soon, body_timeout: soon, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    assert_eq!(proxy.raw("GET / HTTP/1.1\r\nHost:").await, "");
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    assert!(read_all(&mut stream).await.contains("request_timeout"));
}
