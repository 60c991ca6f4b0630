//! TLS towards clients, and HTTP/2 in it.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use expect_test::expect;
use greenwave_edge::{Error, Proxy, ProxyConfig, TlsConfig, Upstreams};
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clients::{LIMIT, RunningProxy, read_head};
use crate::upstreams::{OK, Scripted};

/// A certificate for `localhost` in files, which clients of it trust.
struct Identity {
    folder: TempDir,
}

impl Identity {
    fn new() -> Self {
        let identity = Self { folder: tempfile::tempdir().unwrap() };
        identity.renew();
        identity
    }

    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(self.config().certificate, made.cert.pem()).unwrap();
        fs::write(self.config().key, made.signing_key.serialize_pem()).unwrap();
    }

    fn config(&self) -> TlsConfig {
        let file = |name| self.folder.path().join(name);
        TlsConfig { certificate: file("certificate.pem"), key: file("key.pem") }
    }

    async fn connect(&self, address: SocketAddr, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.config().certificate).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
        Ok(stream)
    }

    async fn http2<B>(&self, address: SocketAddr) -> SendRequest<B>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = TokioIo::new(self.connect(address, b"h2").await.unwrap());
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

async fn start(identity: &Identity, config: ProxyConfig, upstream: SocketAddr) -> RunningProxy {
    let config = ProxyConfig { tls: identity.config(), ..config };
    RunningProxy::start(config, Upstreams::fixed([upstream]).into_watch()).await
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("https://localhost{path}")).body(Full::default()).unwrap()
}

#[tokio::test]
async fn an_upstream_is_told_that_the_client_speaks_tls() {
    let upstream = Scripted::start(OK).await;
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), upstream.address).await;
    let mut client = identity.connect(proxy.address, b"http/1.1").await.unwrap();
    client.write_all(b"GET /1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    assert!(upstream.heads().await[0].contains("x-forwarded-proto: https\r\n"));
}

#[tokio::test]
async fn http2_reaches_the_upstream_as_http1() {
    let upstream = Scripted::start(OK).await;
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), upstream.address).await;
    let mut client = identity.http2(proxy.address).await;
    let mut request = get("/a?b");
    for cookie in ["a=1", "b=2"] {
        request.headers_mut().append("cookie", cookie.parse().unwrap());
    }
    let answer = client.send_request(request).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    expect![[r#"
        GET /a?b HTTP/1.1
        cookie: a=1; b=2
        traceparent: BEGUN
        host: localhost
        x-real-ip: 127.0.0.1
        x-forwarded-for: 127.0.0.1
        forwarded: for=127.0.0.1;host="localhost";proto=https
        x-forwarded-host: localhost
        x-forwarded-proto: https

    "#]]
    .assert_eq(&upstream.shown().await);
}

#[tokio::test]
async fn a_request_of_http2_is_held_to_the_same() {
    let upstream = Scripted::start(OK).await;
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), upstream.address).await;
    let mut client = identity.http2(proxy.address).await;
    for (name, value) in [("host", "other"), ("host", "a@b"), ("content-length", "x"), ("expect", "x")] {
        let mut request = get("/");
        request.headers_mut().insert(name, value.parse().unwrap());
        let answer = client.send_request(request).await;
        assert!(!answer.is_ok_and(|answer| answer.status().is_success()), "{name}: {value}");
    }
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
    assert_eq!(upstream.heads().await.len(), 1);
}

#[tokio::test]
async fn a_drain_lets_streams_of_http2_end() {
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), upstream.local_addr().unwrap()).await;
    let mut client = identity.http2(proxy.address).await;
    let running = tokio::spawn(client.send_request(get("/")));
    let (mut server, _) = upstream.accept().await.unwrap();
    read_head(&mut server).await;
    proxy.cancel.cancel();
    tokio::time::timeout(LIMIT, async {
        while TcpStream::connect(proxy.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    server.write_all(OK.as_bytes()).await.unwrap();
    let answer = running.await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    tokio::time::timeout(LIMIT, proxy.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_whose_client_takes_nothing_is_cut_and_others_are_not() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", 1 << 20, "x".repeat(1 << 20));
    let upstream = Scripted::start(large.leak()).await;
    let identity = Identity::new();
    let config = ProxyConfig { write_timeout: Duration::from_millis(200), ..Default::default() };
    let proxy = start(&identity, config, upstream.address).await;
    let stream = TokioIo::new(identity.connect(proxy.address, b"h2").await.unwrap());
    let (mut client, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(8 << 20)
        .handshake(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let unread = client.send_request(get("/")).await.unwrap();
    let read = client.send_request(get("/")).await.unwrap();
    assert_eq!(read.into_body().collect().await.unwrap().to_bytes().len(), 1 << 20);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(unread.into_body().collect().await.is_err());
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_stream_whose_body_does_not_come_is_answered_408() {
    let upstream = Scripted::start("HTTP/1.1 200 OK\r\n").await;
    let identity = Identity::new();
    let config = ProxyConfig { body_timeout: Duration::from_millis(200), ..Default::default() };
    let proxy = start(&identity, config, upstream.address).await;
    let mut client = identity.http2(proxy.address).await;
    let request = Request::post("https://localhost/").body(Never).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::REQUEST_TIMEOUT);
}

/// A body that does not come.
struct Never;

impl Body for Never {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let upstream = Scripted::start(OK).await;
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), upstream.address).await;
    identity.connect(proxy.address, b"h2").await.unwrap();
    let good = fs::read(identity.config().certificate).unwrap();
    fs::write(identity.config().certificate, "broken").unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    fs::write(identity.config().certificate, good).unwrap();
    identity.connect(proxy.address, b"h2").await.unwrap();
    identity.renew();
    tokio::time::timeout(LIMIT, async {
        while identity.connect(proxy.address, b"h2").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the new certificate is not used");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let start = |tls: TlsConfig| {
        let config = ProxyConfig { tls, ..Default::default() };
        Proxy::new(config, Upstreams::default().into_watch()).unwrap_err().to_string()
    };
    let (one, other) = (Identity::new(), Identity::new());
    let (config, strange) = (one.config(), other.config());
    let errors = [
        start(TlsConfig { certificate: config.certificate.clone(), ..Default::default() }),
        start(TlsConfig { certificate: "missing".into(), key: config.key.clone() }),
        start(TlsConfig { certificate: config.key.clone(), key: config.key.clone() }),
        start(TlsConfig { certificate: config.certificate.clone(), key: config.certificate.clone() }),
        start(TlsConfig { certificate: config.certificate, key: strange.key }),
    ];
    let folder = |text: String| {
        let text = text.replace(&one.folder.path().display().to_string(), "ONE");
        text.replace(&other.folder.path().display().to_string(), "OTHER")
    };
    expect![[r#"
        `tls` needs both `certificate` and `key`, or neither
        `tls.certificate` cannot be used: missing: No such file or directory (os error 2)
        `tls.certificate` cannot be used: ONE/key.pem: no certificate in it
        `tls.key` cannot be used: ONE/certificate.pem: no items found
        `tls.key` cannot be used: OTHER/key.pem: it does not belong to the certificate"#]]
    .assert_eq(&errors.map(folder).join("\n"));
    let bad = ProxyConfig { max_connections: 0, ..Default::default() };
    let error = Proxy::new(bad, Upstreams::default().into_watch()).unwrap_err();
    assert!(matches!(&error, Error::InvalidConfig { key, .. } if key == "max_connections"), "{error}");
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn a_client_that_resets_stream_after_stream_is_told_to_calm_down() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), silent.local_addr().unwrap()).await;
    let mut client = identity.connect(proxy.address, b"h2").await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for stream in (1..2000).step_by(2) {
        // GET https://a/, and that it is wanted no more.
        bytes.extend(frame(1, 5, stream, b"\x82\x87\x84\x41\x01a"));
        bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    client.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    let _ = tokio::time::timeout(LIMIT, read).await.expect("the connection stays open");
    let calm = frame(7, 0, 0, &[])[3..5].to_vec();
    assert!(answer.windows(2).any(|pair| pair == calm), "no GOAWAY: {answer:?}");
    assert!(answer.windows(4).any(|code| code == 11_u32.to_be_bytes()), "not ENHANCE_YOUR_CALM: {answer:?}");
}

/// What becomes of a stream whose head holds these fields, and then perhaps data.
async fn streamed(proxy: SocketAddr, identity: &Identity, fields: &[(&str, &str)], data: &[u8]) {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal that is not indexed, with a new name; all are shorter than 127 bytes.
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        block.extend([vec![0], text(name), text(value)].concat());
    }
    let mut client = identity.connect(proxy, b"h2").await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, if data.is_empty() { 5 } else { 4 }, 1, &block));
    if !data.is_empty() {
        bytes.extend(frame(0, 1, 1, data));
    }
    client.write_all(&bytes).await.unwrap();
    // It ends with its answer, by a reset, or with the connection.
    loop {
        let mut head = [0; 9];
        let read = tokio::time::timeout(LIMIT, client.read_exact(&mut head)).await;
        if read.expect("the stream does not end").is_err() {
            return;
        }
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        client.read_exact(&mut vec![0; length]).await.unwrap();
        let (kind, ends, stream) = (head[3], head[4] & 1 == 1, head[8]);
        if kind == 7 || (stream == 1 && (kind == 3 || (kind < 2 && ends))) {
            return;
        }
    }
}

#[tokio::test]
async fn what_http2_can_say_and_http1_cannot_does_not_reach_the_upstream() {
    let upstream = Scripted::start(OK).await;
    let identity = Identity::new();
    let proxy = start(&identity, ProxyConfig::default(), upstream.address).await;
    let usual = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")];
    let with = |name: &'static str, value: &'static str| {
        let mut fields = usual.to_vec();
        match fields.iter_mut().find(|field| field.0 == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
        fields
    };
    for fields in [
        with(":path", "/ HTTP/1.1\r\nX: y"),
        with(":path", "/a b"),
        with(":path", ""),
        with(":path", "*"),
        with(":path", "a"),
        with(":path", "http://b/"),
        with(":authority", "a\r\nX: y"),
        with(":authority", "a@b"),
        with(":authority", "a/b"),
        with(":authority", ""),
        with(":scheme", "ftp"),
        with(":method", "GET / HTTP/1.1\r\nX: y\r\n\r\n"),
        with(":method", "CONNECT"),
        with(":protocol", "websocket"),
        with("x", "a\r\nX: y"),
        with("x", "a\0"),
        with("x y", "a"),
        with("X", "a"),
        with("x:", "a"),
        with("", "a"),
        with("host", "b"),
        with("connection", "close"),
        with("keep-alive", "timeout=5"),
        with("proxy-connection", "close"),
        with("transfer-encoding", "chunked"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("content-length", "5"),
        with("content-length", "+0"),
        [&usual[..3], &usual[2..]].concat(),
        usual[..3].to_vec(),
        [&usual[..2], &[("x", "a")], &usual[2..]].concat(),
    ] {
        streamed(proxy.address, &identity, &fields, b"").await;
        assert_eq!(upstream.heads().await, [""; 0], "{fields:?}");
    }
    // Nor is a body that is longer or shorter than it should be ever whole.
    for length in ["2", "4"] {
        streamed(proxy.address, &identity, &with("content-length", length), b"abc").await;
    }
    streamed(proxy.address, &identity, &with("cookie", "a"), b"").await;
    assert!(upstream.shown().await.ends_with("x-forwarded-proto: https\n\n"));
}
