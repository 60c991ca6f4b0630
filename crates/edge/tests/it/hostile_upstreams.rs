//! What upstreams do that no well-behaved one does, and what becomes of the connection behind it.

use std::time::Duration;

use expect_test::expect;
use greenwave_edge::{ProxyConfig, Upstreams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{LIMIT, RunningProxy, read_head};
use crate::upstreams::OK;

/// An upstream whose connections the test serves itself.
struct Hostile {
    listener: TcpListener,
    proxy: RunningProxy,
    client: TcpStream,
}

impl Hostile {
    async fn start(config: ProxyConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstreams = Upstreams::fixed([listener.local_addr().unwrap()]).into_watch();
        let proxy = RunningProxy::start(config, upstreams).await;
        // One connection, so that one thread of the proxy answers all.
        let client = TcpStream::connect(proxy.address).await.unwrap();
        Self { listener, proxy, client }
    }

    async fn connect(&mut self) {
        self.client = TcpStream::connect(self.proxy.address).await.unwrap();
    }

    async fn ask(&mut self, request: &str) {
        self.client.write_all(request.replace('\n', "\r\n").as_bytes()).await.unwrap();
    }

    async fn accept(&self) -> TcpStream {
        tokio::time::timeout(LIMIT, self.listener.accept()).await.expect("nobody connects").unwrap().0
    }

    /// The next answer in words: status and body.
    async fn answer(&mut self, bodiless: bool) -> String {
        let head = read_head(&mut self.client).await;
        let status = head.get(9..12).unwrap_or("?").to_owned();
        let mut body = Vec::new();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        // Whether a head is written whose body breaks off at once is a matter of time.
        if head.is_empty() {
            return "cut".to_owned();
        }
        if bodiless {
            return status;
        }
        let cut = if let Some(length) = field("content-length: ") {
            let length: usize = length.parse().unwrap();
            body.resize(length, 0);
            self.client.read_exact(&mut body).await.is_err()
        } else {
            while !body.ends_with(b"0\r\n\r\n") {
                let read = tokio::time::timeout(LIMIT, self.client.read_buf(&mut body)).await.unwrap();
                if !matches!(read, Ok(1..)) {
                    return "cut".to_owned();
                }
            }
            body =
                String::from_utf8(body).unwrap().split("\r\n").skip(1).step_by(2).collect::<String>().into();
            false
        };
        let text = String::from_utf8(body).unwrap();
        let text = if text.starts_with("{\"error\"") { "refused".to_owned() } else { text };
        if cut { "cut".to_owned() } else { format!("{status} {text}") }
    }
}

/// Asks with `method` an upstream that sends `answer`, and ends or not; then asks once more. Tells the first answer,
/// and whether the second came on the same connection to the upstream.
async fn case(method: &str, answer: &str, ends: bool) -> String {
    let mut hostile = Hostile::start(ProxyConfig::default()).await;
    hostile.ask(&format!("{method} /1 HTTP/1.1\nHost: a\n\n")).await;
    let mut first = hostile.accept().await;
    read_head(&mut first).await;
    first.write_all(answer.as_bytes()).await.unwrap();
    if ends {
        first.shutdown().await.unwrap();
    }
    let told = hostile.answer(method == "HEAD" || answer.contains(" 204 ") || answer.contains(" 304 ")).await;
    if told == "cut" {
        hostile.connect().await;
    }
    hostile.ask("GET /2 HTTP/1.1\nHost: a\n\n").await;
    // A connection that is not kept is closed, which reads as an empty head.
    let kept = read_head(&mut first).await.starts_with("GET /2 ");
    if !kept {
        first = hostile.accept().await;
        assert!(read_head(&mut first).await.starts_with("GET /2 "));
    }
    first.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(hostile.answer(false).await, "200 ok", "behind {answer:?}");
    format!("{told}, {}", if kept { "kept" } else { "not kept" })
}

#[tokio::test]
async fn a_connection_is_kept_only_behind_an_answer_without_any_doubt() {
    let mut table = String::new();
    for (method, answer) in [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc"),
        (
            "GET",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcX"),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        ),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"),
        ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\nabc"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ("GET", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\n"),
    ] {
        table += &format!("{}: {method} {}\n", case(method, answer, false).await, answer.escape_default());
    }
    expect![[r#"
        200 abc, kept: GET HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc
        200 abc, kept: GET HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n
        200 abc, kept: GET HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc
        200 abc, kept: GET HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc
        204, kept: GET HTTP/1.1 204 No Content\r\n\r\n
        304, kept: GET HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n
        200, kept: HEAD HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n
        200, kept: HEAD HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n
        200 abc, not kept: GET HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcX
        200 abc, not kept: GET HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil
        200 abc, not kept: GET HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\r\n
        200 abc, not kept: GET HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc
        200 abc, not kept: GET HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc
        204, not kept: GET HTTP/1.1 204 No Content\r\n\r\nabc
        304, not kept: GET HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc
        200, not kept: HEAD HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc
        502 refused, not kept: GET HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd
        502 refused, not kept: GET HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n
        502 refused, not kept: GET HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n
        502, not kept: HEAD HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\n
    "#]].assert_eq(&table);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_never_a_whole_one() {
    let mut table = String::new();
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: 1\r\n",
        // Only the end of the connection can end this one.
        "HTTP/1.1 200 OK\r\n\r\nabc",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nabc",
    ] {
        table += &format!("{}: {}\n", case("GET", answer, true).await, answer.escape_default());
    }
    expect![[r#"
        cut, not kept: HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc
        cut, not kept: HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc
        cut, not kept: HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n
        cut, not kept: HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n
        cut, not kept: HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: 1\r\n
        200 abc, not kept: HTTP/1.1 200 OK\r\n\r\nabc
        200 abc, not kept: HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nabc
    "#]]
    .assert_eq(&table);
}

#[tokio::test]
async fn what_an_upstream_says_unasked_is_no_answer() {
    for unasked in ["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "\r\n", "x"] {
        let mut hostile = Hostile::start(ProxyConfig::default()).await;
        hostile.ask("GET /1 HTTP/1.1\nHost: a\n\n").await;
        let mut first = hostile.accept().await;
        read_head(&mut first).await;
        first.write_all(OK.as_bytes()).await.unwrap();
        assert_eq!(hostile.answer(false).await, "200 ok");
        first.write_all(unasked.as_bytes()).await.unwrap();
        hostile.ask("GET /2 HTTP/1.1\nHost: a\n\n").await;
        let mut second = hostile.accept().await;
        assert!(read_head(&mut second).await.starts_with("GET /2 "));
        second.write_all(OK.as_bytes()).await.unwrap();
        assert_eq!(hostile.answer(false).await, "200 ok");
        // The first connection is closed, and has seen nothing of the second request.
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(LIMIT, first.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
}

#[tokio::test]
async fn an_answer_in_single_bytes_is_the_same_answer() {
    let mut hostile = Hostile::start(ProxyConfig::default()).await;
    hostile.ask("GET /1 HTTP/1.1\nHost: a\n\n").await;
    let mut upstream = hostile.accept().await;
    upstream.set_nodelay(true).unwrap();
    read_head(&mut upstream).await;
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
    for byte in answer.bytes() {
        upstream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(hostile.answer(false).await, "200 abcde");
}

#[tokio::test]
async fn a_head_that_comes_too_slowly_is_given_up_at_its_deadline() {
    let config = ProxyConfig { answer_timeout: Duration::from_millis(200), ..Default::default() };
    let mut hostile = Hostile::start(config).await;
    hostile.ask("GET /1 HTTP/1.1\nHost: a\n\n").await;
    let mut upstream = hostile.accept().await;
    read_head(&mut upstream).await;
    // Interim answers and single bytes put nothing off.
    let drip = async {
        while upstream.write_all(b"HTTP/1.1 103 Early Hints\r\nX: ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if upstream.write_all(b"1\r\n\r\n").await.is_err() {
                break;
            }
        }
        std::future::pending::<String>().await
    };
    let answer = tokio::select! { answer = hostile.answer(false) => answer, never = drip => never };
    assert!(["504 refused", "502 refused"].contains(&answer.as_str()), "{answer}");
}
