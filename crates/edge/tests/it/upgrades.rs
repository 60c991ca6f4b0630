//! Connections that change their protocol, as WebSockets do.

use std::time::Duration;

use expect_test::expect;
use greenwave_edge::{ProxyConfig, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{LIMIT, RunningProxy, read_all, read_head};
use crate::upstreams::{Scripted, shown};

// The example of RFC 6455, section 1.3, with a first message right behind the handshake.
const HANDSHAKE: &[u8] = b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
    Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
const FROM_CLIENT: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05Hello";
const FROM_UPSTREAM: &[u8] = b"\x81\x05Hello";

async fn expect_bytes(stream: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut bytes)).await.expect("nothing comes").unwrap();
    assert_eq!(bytes, expected);
}

/// Both ends of an open WebSocket.
async fn opened(config: ProxyConfig) -> (RunningProxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::fixed([listener.local_addr().unwrap()]).into_watch();
    let proxy = RunningProxy::start(config, upstreams).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(HANDSHAKE).await.unwrap();
    let (mut server, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    let head = read_head(&mut server).await;
    expect![[r#"
        GET /chat HTTP/1.1
        host: server.example.com
        traceparent: BEGUN
        sec-websocket-version: 13
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==
        x-real-ip: 127.0.0.1
        x-forwarded-for: 127.0.0.1
        forwarded: for=127.0.0.1;host="server.example.com";proto=http
        x-forwarded-host: server.example.com
        x-forwarded-proto: http
        connection: upgrade
        upgrade: websocket

    "#]]
    .assert_eq(&shown(&head));
    server.write_all(SWITCHED).await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for field in
        ["connection: upgrade", "upgrade: websocket", "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]
    {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
    }
    expect_bytes(&mut client, FROM_UPSTREAM).await;
    expect_bytes(&mut server, FROM_CLIENT).await;
    (proxy, client, server)
}

#[tokio::test]
async fn a_web_socket_is_opened_and_passes_on_what_both_say() {
    let (_proxy, mut client, mut server) = opened(ProxyConfig::default()).await;
    for round in 0..3_u8 {
        client.write_all(&[round; 100]).await.unwrap();
        expect_bytes(&mut server, &[round; 100]).await;
        server.write_all(&[round; 70_000]).await.unwrap();
        expect_bytes(&mut client, &[round; 70_000]).await;
    }
}

#[tokio::test]
async fn either_side_of_a_tunnel_may_end_first_and_still_hears_the_other() {
    let (_proxy, mut client, mut server) = opened(ProxyConfig::default()).await;
    client.shutdown().await.unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, server.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    server.write_all(b"last words").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, "last words");
    let (_proxy, mut client, mut server) = opened(ProxyConfig::default()).await;
    server.shutdown().await.unwrap();
    assert_eq!(tokio::time::timeout(LIMIT, client.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, "last words");
}

#[tokio::test]
async fn a_tunnel_takes_no_more_than_the_other_side_takes() {
    let (_proxy, mut client, mut server) = opened(ProxyConfig::default()).await;
    let mut sent = 0_usize;
    let block = vec![7; 1 << 20];
    // The server does not read: what is on the way is what fits the sockets, and a little more.
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), client.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "the tunnel takes all that comes");
    }
    let mut bytes = vec![0; 1 << 16];
    let mut received = 0;
    while received < sent {
        let read = tokio::time::timeout(LIMIT, server.read(&mut bytes)).await.unwrap().unwrap();
        assert!(read > 0 && bytes[..read].iter().all(|byte| *byte == 7));
        received += read;
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_tunnel_in_which_nobody_speaks_is_closed_at_its_deadline() {
    let config = ProxyConfig { answer_body_timeout: Duration::from_millis(300), ..Default::default() };
    let (_proxy, mut client, mut server) = opened(config).await;
    assert_eq!(read_all(&mut client).await, "");
    assert_eq!(read_all(&mut server).await, "");
}

#[tokio::test]
async fn an_upstream_may_decline_to_switch() {
    let upstream = Scripted::start("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(&HANDSHAKE[..HANDSHAKE.len() - FROM_CLIENT.len()]).await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 426 "));
    expect_bytes(&mut client, b"no").await;
    // The connection still speaks HTTP.
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 426 "));
}

#[tokio::test]
async fn a_switch_that_was_not_asked_for_is_no_answer() {
    let switched = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    let upstream = Scripted::start(switched).await;
    let proxy = RunningProxy::before(&[upstream.address]).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        // Without `Connection` this is no wish; another HTTP would pass the proxy unseen.
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: close, upgrade\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x, h2c\r\nConnection: close, upgrade\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: close, upgrade\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let answer = proxy.raw(request).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{request}: {answer}");
    }
    assert!(upstream.heads().await.iter().all(|head| !head.contains("upgrade")));
    // Another protocol than the one that was asked for.
    let other = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: y\r\nConnection: close, upgrade\r\n\r\n";
    let answer = proxy.raw(other).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}
