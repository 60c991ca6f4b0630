//! Who is believed what they say of their clients.

use std::net::SocketAddr;

use expect_test::{Expect, expect};
use greenwave_edge::{ProxyConfig, TrustConfig, Upstreams};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::clients::{RunningProxy, read_all};
use crate::upstreams::{OK, Scripted};

/// A proxy that believes these networks, and the upstream behind it.
async fn start(proxies: &[&str], proxy_protocol: bool) -> (Scripted, RunningProxy) {
    let upstream = Scripted::start(OK).await;
    let proxies = proxies.iter().map(|network| network.parse().unwrap()).collect();
    let trust = TrustConfig { proxies, proxy_protocol };
    let config = ProxyConfig { trust, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    (upstream, proxy)
}

async fn ask(proxy: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    read_all(&mut stream).await
}

async fn check(proxies: &[&str], headers: &str, expected: Expect) {
    let (upstream, proxy) = start(proxies, false).await;
    let request = format!("GET / HTTP/1.1\nHost: a\n{headers}Connection: close\n\n").replace('\n', "\r\n");
    assert!(ask(proxy.address, request.as_bytes()).await.starts_with("HTTP/1.1 200"));
    expected.assert_eq(&upstream.shown().await);
}

#[tokio::test]
async fn a_believed_proxy_says_who_the_client_is() {
    check(
        &["127.0.0.0/8", "10.0.0.0/8"],
        "X-Forwarded-For: 6.6.6.6, 1.2.3.4\nX-Forwarded-For: 10.0.0.9\nX-Forwarded-Proto: https\n\
         X-Forwarded-Host: shop.example\nForwarded: for=1.2.3.4\n",
        expect![[r#"
            GET / HTTP/1.1
            host: a
            x-forwarded-for: 6.6.6.6, 1.2.3.4, 10.0.0.9, 127.0.0.1
            x-forwarded-proto: https
            x-forwarded-host: shop.example
            forwarded: for=1.2.3.4, for=127.0.0.1;host="a";proto=http
            traceparent: BEGUN
            x-real-ip: 1.2.3.4

        "#]],
    )
    .await;
}

#[tokio::test]
async fn nobody_else_does() {
    check(
        &["10.0.0.0/8"],
        "X-Forwarded-For: 1.2.3.4\nX-Forwarded-Proto: https\nX-Forwarded-Host: evil\nForwarded: for=1.2.3.4\n",
        expect![[r#"
            GET / HTTP/1.1
            host: a
            x-forwarded-for: 127.0.0.1
            traceparent: BEGUN
            x-real-ip: 127.0.0.1
            forwarded: for=127.0.0.1;host="a";proto=http
            x-forwarded-host: a
            x-forwarded-proto: http

        "#]],
    )
    .await;
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Version 2: a connection over TCP and IPv4 from 1.2.3.4, with an extension of three bytes.
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0f\x01\x02\x03\x04\x05\x06\x07\x08\x10\x00\x00\x50\x04\x00\x00";

#[tokio::test]
async fn the_proxy_protocol_says_who_the_client_is() {
    let (upstream, proxy) = start(&["127.0.0.1/32"], true).await;
    let local: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    for (header, client) in [
        (&b"PROXY TCP4 1.2.3.4 5.6.7.8 4096 80\r\n"[..], "1.2.3.4"),
        (b"PROXY TCP6 2001:db8::1 ::1 4096 80\r\n", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (BINARY, "1.2.3.4"),
        (local, "127.0.0.1"),
    ] {
        let answer = ask(proxy.address, &[header, GET].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{client}: {answer}");
        let head = upstream.heads().await.pop().unwrap();
        assert!(head.contains(&format!("x-real-ip: {client}\r\n")), "{client}: {head}");
    }
}

#[tokio::test]
async fn a_connection_without_the_proxy_protocol_is_closed_where_that_is_configured() {
    let (upstream, proxy) = start(&["127.0.0.1/32"], true).await;
    for bytes in [GET, b"PROXY NONSENSE\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n", &[b'P'; 200]] {
        assert_eq!(ask(proxy.address, bytes).await, "");
    }
    assert!(upstream.heads().await.is_empty());
}

#[tokio::test]
async fn the_proxy_protocol_of_a_stranger_is_no_request() {
    let (upstream, proxy) = start(&["10.0.0.0/8"], true).await;
    for header in [&b"PROXY TCP4 1.2.3.4 5.6.7.8 4096 80\r\n"[..], BINARY] {
        assert!(ask(proxy.address, &[header, GET].concat()).await.starts_with("HTTP/1.1 400"));
    }
    assert!(ask(proxy.address, GET).await.starts_with("HTTP/1.1 200"));
    assert_eq!(upstream.heads().await.len(), 1);
}
