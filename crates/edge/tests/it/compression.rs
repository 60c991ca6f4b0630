//! Answers made smaller, and those that are left alone.

use bytes::Bytes;
use greenwave_edge::{CompressionConfig, ProxyConfig, Upstreams};
use http::{Request, Response};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::clients::{LIMIT, RunningProxy, client, read_head, send};
use crate::upstreams::Scripted;

/// A proxy that compresses what this upstream answers: so many bytes of text, with these fields.
async fn before(fields: &str, size: usize) -> RunningProxy {
    let text = "all work and no play ".repeat(size / 21 + 1);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n{fields}\r\n\r\n{}", &text[..size]);
    let upstream = Scripted::start(answer.leak()).await;
    compressing(upstream.address).await
}

async fn compressing(upstream: std::net::SocketAddr) -> RunningProxy {
    let compression = CompressionConfig { enabled: true, ..CompressionConfig::default() };
    let config = ProxyConfig { compression, ..ProxyConfig::default() };
    RunningProxy::start(config, Upstreams::fixed([upstream]).into_watch()).await
}

async fn get(proxy: &RunningProxy, accept: &str) -> Response<Bytes> {
    let mut request = Request::get(format!("http://{}/", proxy.address));
    if !accept.is_empty() {
        request = request.header("accept-encoding", accept);
    }
    send(&client(), request.body(Full::default()).unwrap()).await.unwrap()
}

fn header<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn text_is_compressed_as_the_client_accepts_it() {
    let proxy = before(
        "Content-Type: text/html; charset=utf-8\r\nETag: \"x\"\r\nVary: Cookie\r\nAccept-Ranges: bytes",
        8000,
    )
    .await;
    for (accept, encoding) in [
        ("gzip", "gzip"),
        ("gzip, br, zstd", "zstd"),
        ("gzip;q=1, br;q=0.5", "gzip"),
        ("br;q=1, gzip;q=0.1", "br"),
    ] {
        let answer = get(&proxy, accept).await;
        assert_eq!(header(&answer, "content-encoding"), encoding, "{accept}");
        assert!(answer.body().len() < 1000, "{accept}: {} bytes", answer.body().len());
        assert_eq!(header(&answer, "etag"), "W/\"x\"");
        assert!(
            !answer.headers().contains_key("content-length")
                && !answer.headers().contains_key("accept-ranges")
        );
        let vary: Vec<_> = answer.headers().get_all("vary").iter().collect();
        assert_eq!(vary, ["Cookie", "Accept-Encoding"]);
    }
    for accept in ["", "identity", "gzip;q=0", "identity;q=0, gzip;q=0", "compress"] {
        let answer = get(&proxy, accept).await;
        assert_eq!(answer.status(), 200, "{accept}");
        assert_eq!((header(&answer, "content-encoding"), answer.body().len()), ("", 8000), "{accept}");
        assert_eq!(
            (header(&answer, "etag"), header(&answer, "content-length")),
            ("\"x\"", "8000"),
            "{accept}"
        );
        assert_eq!(answer.headers().get_all("vary").iter().count(), 2, "{accept}");
    }
}

#[tokio::test]
async fn what_gains_nothing_or_must_not_change_is_left_alone() {
    let text = "Content-Type: text/plain";
    for (fields, size) in [
        (text.to_owned(), 1023),
        ("Content-Type: image/png".to_owned(), 8000),
        ("Content-Type: text/event-stream".to_owned(), 8000),
        (format!("{text}\r\nContent-Encoding: identity-of-mine"), 8000),
        (format!("{text}\r\nContent-Range: bytes 0-7999/9000"), 8000),
        (format!("{text}\r\nCache-Control: public, no-transform"), 8000),
        ("X-No-Type: 1".to_owned(), 8000),
    ] {
        let answer = get(&before(&fields, size).await, "gzip").await;
        assert_eq!(answer.body().len(), size, "{fields}");
        assert_eq!(header(&answer, "content-length"), size.to_string(), "{fields}");
        assert_eq!(header(&answer, "vary"), "", "{fields}");
    }
}

#[tokio::test]
async fn what_is_compressed_is_not_held_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = compressing(listener.local_addr().unwrap()).await;
    let (heard, hears) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_head(&mut stream).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(format!("{head}5\r\nfirst\r\n").as_bytes()).await.unwrap();
        // The second part is sent when the first has arrived.
        hears.await.unwrap();
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
        stream
    });
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n").await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.contains("content-encoding: gzip"), "{head}");
    // gzip's header alone is ten bytes, and may come first.
    let mut got = Vec::new();
    let first = async {
        while got.len() < 26 {
            got.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(LIMIT, first).await.expect("the first part is held back");
    heard.send(()).unwrap();
}
