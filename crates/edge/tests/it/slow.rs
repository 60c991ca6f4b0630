//! Clients that take their time, and how much of it they get.

use std::time::{Duration, Instant};

use greenwave_edge::{ProxyConfig, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::clients::{LIMIT, RunningProxy, read_all, read_head};
use crate::upstreams::{OK, Scripted};

const SOON: Duration = Duration::from_millis(300);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

async fn start(config: ProxyConfig, answer: &'static str) -> RunningProxy {
    let upstream = Scripted::start(answer).await;
    RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await
}

/// Waits for the end of the connection, which must come at about that time and not before.
async fn ends_after(stream: &mut TcpStream, limit: Duration) {
    let begun = Instant::now();
    assert_eq!(read_all(stream).await, "");
    let took = begun.elapsed();
    assert!(took >= limit - Duration::from_millis(20) && took < limit + Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_head_that_comes_in_drops_is_cut_at_its_deadline() {
    let config = ProxyConfig { header_timeout: SOON, ..Default::default() };
    let proxy = start(config, OK).await;
    let begun = Instant::now();
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let mut sent = 0;
    while stream.write_all(b"G").await.is_ok() {
        sent += 1;
        tokio::time::sleep(SOON / 20).await;
        assert!(begun.elapsed() < LIMIT, "the connection stays open");
    }
    assert!(begun.elapsed() >= SOON && sent > 5, "cut after {sent} drops");
}

#[tokio::test]
async fn a_connection_without_a_request_is_cut_at_the_deadline_of_heads() {
    let config = ProxyConfig { header_timeout: SOON, ..Default::default() };
    let proxy = start(config, OK).await;
    ends_after(&mut TcpStream::connect(proxy.address).await.unwrap(), SOON).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_which_each_request_begins_anew() {
    let config = ProxyConfig { idle_timeout: 2 * SOON, ..Default::default() };
    let proxy = start(config, OK).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    for _ in 0..4 {
        stream.write_all(GET).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 OK"));
        assert_eq!(stream.read_u16().await.unwrap().to_be_bytes(), *b"ok");
        tokio::time::sleep(SOON).await;
    }
    ends_after(&mut stream, SOON).await;
}

#[tokio::test]
async fn a_second_head_that_comes_in_drops_is_cut_before_the_idle_connection_would_be() {
    let config = ProxyConfig { header_timeout: SOON, ..Default::default() };
    let proxy = start(config, OK).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(&[GET, b"GET / HT"].concat()).await.unwrap();
    assert!(read_all(&mut stream).await.ends_with("ok"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = ProxyConfig { write_timeout: SOON, ..Default::default() };
    let upstreams = Upstreams::fixed([listener.local_addr().unwrap()]).into_watch();
    let proxy = RunningProxy::start(config, upstreams).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(proxy.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    read_head(&mut server).await;
    server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    // The upstream is cut as well, and learns that nobody listens.
    let chunk = [&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat();
    let sent = async { while server.write_all(&chunk).await.is_ok() {} };
    tokio::time::timeout(LIMIT, sent).await.expect("the client is never cut");
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_all_of_its_answer() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", 1 << 20, "x".repeat(1 << 20));
    let proxy = start(ProxyConfig { write_timeout: SOON, ..Default::default() }, large.leak()).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(proxy.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut all, mut part) = (0, vec![0; 64 * 1024]);
    loop {
        match client.read(&mut part).await.unwrap() {
            0 => break,
            read => all += read,
        }
        tokio::time::sleep(SOON / 20).await;
    }
    assert!(all > 1 << 20, "{all} bytes came");
}

#[tokio::test]
async fn a_request_that_takes_too_long_as_a_whole_is_ended() {
    let config = ProxyConfig { total_timeout: SOON, ..Default::default() };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::fixed([silent.local_addr().unwrap()]).into_watch();
    let proxy = RunningProxy::start(config.clone(), upstreams).await;
    assert_eq!(proxy.get("/").await.status(), 504);
    // And in the middle of the answer.
    let proxy = start(config, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this").await;
    assert!(proxy.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.ends_with("only this"));
}

#[tokio::test]
async fn a_refusal_is_read_also_by_a_client_that_still_sends() {
    let proxy = start(ProxyConfig::default(), OK).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 100000\r\n\r\n")
        .await
        .unwrap();
    // The refusal is there, and the client does not look.
    tokio::time::timeout(LIMIT, stream.readable()).await.unwrap().unwrap();
    stream.write_all(&[b'x'; 100_000]).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with('}'), "{answer}");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_others_to_end() {
    let proxy = start(ProxyConfig { max_connections: 1, ..Default::default() }, OK).await;
    let mut first = TcpStream::connect(proxy.address).await.unwrap();
    first.write_all(GET).await.unwrap();
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 200 OK"));
    let mut second = TcpStream::connect(proxy.address).await.unwrap();
    second.write_all(GET).await.unwrap();
    assert!(tokio::time::timeout(SOON, second.read_u8()).await.is_err());
    drop(first);
    assert!(read_head(&mut second).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let proxy = start(ProxyConfig::default(), OK).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let last = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(&[GET, GET, post, GET, last].concat()).await.unwrap();
    let answers = read_all(&mut stream).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 5, "{answers}");
}
