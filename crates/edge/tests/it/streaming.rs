//! Bodies that are long, slow, or on their way in both directions at once.

use std::time::Duration;

use greenwave_edge::{ProxyConfig, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{LIMIT, RunningProxy, read_all, read_head};
use crate::upstreams::OK;

const LARGE: usize = 8 << 20;

/// A client that has sent this head, and an upstream that has received it.
async fn begun(config: ProxyConfig, head: &str) -> (RunningProxy, TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstreams = Upstreams::fixed([listener.local_addr().unwrap()]).into_watch();
    let proxy = RunningProxy::start(config, upstreams).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    client.write_all(head.replace('\n', "\r\n").as_bytes()).await.unwrap();
    let (mut server, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    read_head(&mut server).await;
    (proxy, listener, client, server)
}

async fn expect_text(stream: &mut TcpStream, expected: &str) {
    let mut bytes = vec![0; expected.len()];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut bytes)).await.expect("nothing comes").unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
}

/// Everything up to the end, however that comes.
async fn read_rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("it stays open");
    bytes
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_is_sent_is_passed_on_at_once() {
    let (_proxy, listener, mut client, mut server) =
        begun(ProxyConfig::default(), "POST /1 HTTP/1.1\nHost: a\nContent-Length: 1000000\n\n").await;
    client.write_all(&[b'x'; 1000]).await.unwrap();
    expect_text(&mut server, &"x".repeat(1000)).await;
    server.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 413 "));
    expect_text(&mut client, "no").await;
    // The rest of the body is nobody's, and no request follows on that connection.
    assert_eq!(read_rest(&mut server).await, b"");
    drop(client);
    let mut client = TcpStream::connect(_proxy.address).await.unwrap();
    client.write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut second, _) = listener.accept().await.unwrap();
    assert!(read_head(&mut second).await.starts_with("GET /2 "));
}

#[tokio::test]
async fn an_upstream_may_answer_piece_by_piece_while_it_reads() {
    let (_proxy, _listener, mut client, mut server) =
        begun(ProxyConfig::default(), "POST /1 HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    for piece in ["one", "two", "three"] {
        let chunk = format!("{:x}\r\n{piece}\r\n", piece.len());
        client.write_all(chunk.as_bytes()).await.unwrap();
        expect_text(&mut server, &chunk).await;
        server.write_all(chunk.as_bytes()).await.unwrap();
        expect_text(&mut client, &chunk).await;
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    expect_text(&mut server, "0\r\n\r\n").await;
    server.write_all(b"0\r\n\r\n").await.unwrap();
    expect_text(&mut client, "0\r\n\r\n").await;
    // All was sent and all was read: the next request uses both connections again.
    client.write_all(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_head(&mut server).await.starts_with("GET /2 "));
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_an_answer_that_began_meanwhile() {
    let head = format!("POST / HTTP/1.1\nHost: a\nContent-Length: {LARGE}\n\n");
    let (_proxy, _listener, mut client, server) = begun(ProxyConfig::default(), &head).await;
    let (mut reads, mut writes) = server.into_split();
    let serving = tokio::spawn(async move {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
        writes.write_all(head.as_bytes()).await.unwrap();
        let (answer, mut body) = (vec![b'a'; LARGE], vec![0; LARGE]);
        // All but the last byte, which comes when all was read: a request is not sent on once it is answered.
        let (wrote, read) = tokio::join!(writes.write_all(&answer[1..]), reads.read_exact(&mut body));
        wrote.and(read).unwrap();
        writes.write_all(&answer[..1]).await.unwrap();
        (body.iter().all(|byte| *byte == b'q'), reads, writes)
    });
    tokio::time::timeout(LIMIT, client.write_all(&vec![b'q'; LARGE])).await.expect("both wait").unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    let mut body = vec![0; LARGE];
    tokio::time::timeout(LIMIT, client.read_exact(&mut body)).await.unwrap().unwrap();
    assert!(body.iter().all(|byte| *byte == b'a') && serving.await.unwrap().0);
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_an_answer_that_wants_nothing_of_it() {
    let head = format!("POST / HTTP/1.1\nHost: a\nContent-Length: {LARGE}\n\n");
    let (_proxy, _listener, mut client, mut server) = begun(ProxyConfig::default(), &head).await;
    server.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    assert_eq!(read_rest(&mut server).await, b"");
    tokio::time::timeout(LIMIT, client.write_all(&vec![b'q'; LARGE])).await.expect("nobody reads").unwrap();
    assert!(read_all(&mut client).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn trailers_pass_in_both_directions_without_those_that_change_the_message() {
    let (_proxy, _listener, mut client, mut server) = begun(
        ProxyConfig::default(),
        "POST / HTTP/1.1\nHost: a\nTE: trailers\nConnection: TE, close\nTransfer-Encoding: chunked\n\n\
         3\nabc\n0\nX-Sum: 1\nContent-Length: 9\n\n",
    )
    .await;
    expect_text(&mut server, "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n").await;
    server
        .write_all(
            b"HTTP/1.1 200 OK\r\nTrailer: X-Sum, Host\r\nTransfer-Encoding: chunked\r\n\r\n\
              3\r\nabc\r\n0\r\nX-Sum: 2\r\nHost: evil\r\n\r\n",
        )
        .await
        .unwrap();
    let answer = read_all(&mut client).await;
    assert!(answer.ends_with("\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 2\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_is_read_no_faster_than_the_client_takes_it() {
    let (_proxy, _listener, mut client, mut server) =
        begun(ProxyConfig::default(), "GET / HTTP/1.1\nHost: a\n\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let mut sent = 0_usize;
    let block = vec![b'x'; 1 << 20];
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(300), server.write(&block)).await {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "the proxy takes all that comes");
    }
    // And the upstream is told when the client has had enough.
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    drop(client);
    let told = async { while server.write(&block).await.is_ok() {} };
    tokio::time::timeout(LIMIT, told).await.expect("the upstream is not told");
}

#[tokio::test]
async fn a_request_that_breaks_off_is_never_a_whole_one() {
    for (head, sent) in [
        ("POST / HTTP/1.1\nHost: a\nContent-Length: 9\n\n", "abc"),
        ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n", "3\r\nabc\r\n"),
    ] {
        let (_proxy, _listener, mut client, mut server) = begun(ProxyConfig::default(), head).await;
        client.write_all(sent.as_bytes()).await.unwrap();
        expect_text(&mut server, sent).await;
        drop(client);
        assert_eq!(read_rest(&mut server).await, b"", "{head}");
    }
}

#[tokio::test]
async fn a_client_that_falls_silent_in_a_request_whose_answer_has_begun_is_cut() {
    let config = ProxyConfig { body_timeout: Duration::from_millis(200), ..Default::default() };
    let (_proxy, _listener, mut client, mut server) =
        begun(config, "POST / HTTP/1.1\nHost: a\nContent-Length: 9\n\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(read_rest(&mut server).await, b"");
    drop(server);
    assert!(!read_all(&mut client).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn an_answer_without_end_goes_on_for_longer_than_its_head_may_take() {
    let soon = Duration::from_millis(200);
    let config = ProxyConfig { answer_timeout: soon, ..Default::default() };
    let (_proxy, _listener, mut client, mut server) =
        begun(config, "GET /events HTTP/1.1\nHost: a\n\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    for _ in 0..4 {
        tokio::time::sleep(soon).await;
        server.write_all(b"data: 1\n\n").await.unwrap();
        expect_text(&mut client, "9\r\ndata: 1\n\n\r\n").await;
    }
    server.shutdown().await.unwrap();
    expect_text(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_request_on_a_connection_that_was_just_ended_is_sent_again_if_that_does_no_harm() {
    for (request, again) in [
        ("GET /2 HTTP/1.1\nHost: a\n\n", true),
        ("DELETE /2 HTTP/1.1\nHost: a\n\n", true),
        ("POST /2 HTTP/1.1\nHost: a\n\n", false),
        ("PUT /2 HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc", false),
    ] {
        let (_proxy, listener, mut client, mut server) =
            begun(ProxyConfig::default(), "GET /1 HTTP/1.1\nHost: a\n\n").await;
        server.write_all(OK.as_bytes()).await.unwrap();
        read_head(&mut client).await;
        expect_text(&mut client, "ok").await;
        client.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
        read_head(&mut server).await;
        drop(server);
        if again {
            let (mut server, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
            assert!(read_head(&mut server).await.contains(" /2 "));
            server.write_all(OK.as_bytes()).await.unwrap();
        }
        let status = if again { "HTTP/1.1 200 " } else { "HTTP/1.1 502 " };
        assert!(read_head(&mut client).await.starts_with(status), "{request}");
    }
}
