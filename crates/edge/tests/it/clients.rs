//! A proxy in this process, and clients of it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use greenwave_edge::{Error, Proxy, ProxyConfig, Upstreams};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; reached only when something hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Sockets for two threads, at one address.
pub(crate) fn listeners() -> Vec<std::net::TcpListener> {
    greenwave_edge::listen("127.0.0.1:0".parse().unwrap(), 2).unwrap()
}

pub(crate) struct RunningProxy {
    pub(crate) address: SocketAddr,
    pub(crate) cancel: CancellationToken,
    pub(crate) served: JoinHandle<Result<(), Error>>,
}

impl RunningProxy {
    pub(crate) async fn start(config: ProxyConfig, upstreams: watch::Receiver<Upstreams>) -> Self {
        let listeners = listeners();
        let address = listeners[0].local_addr().unwrap();
        let cancel = CancellationToken::new();
        let served = tokio::spawn(Proxy::new(config, upstreams).unwrap().serve(listeners, cancel.clone()));
        Self { address, cancel, served }
    }

    /// In front of servers at these addresses.
    pub(crate) async fn before(addresses: &[SocketAddr]) -> Self {
        Self::start(ProxyConfig::default(), Upstreams::fixed(addresses.iter().copied()).into_watch()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Response<Bytes> {
        self.request(Method::GET, path, "").await
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder().method(method).uri(uri).body(Full::from(body.into())).unwrap();
        send(&client(), request).await.unwrap()
    }

    /// Sends these bytes and reads until the proxy closes the connection.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }
}

pub(crate) type TestClient = Client<HttpConnector, Full<Bytes>>;

/// A client that keeps connections and sends nothing twice.
pub(crate) fn client() -> TestClient {
    Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http()
}

pub(crate) async fn send(
    client: &TestClient,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    tokio::time::timeout(LIMIT, async {
        let (head, body) = client.request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    })
    .await?
}

pub(crate) async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset comes where the proxy closes with something unread; what it wrote before counts.
    let _ =
        tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("the connection stays open");
    String::from_utf8(bytes).unwrap()
}

/// Reads up to the end of a head, or of the stream.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        match tokio::time::timeout(LIMIT, stream.read_u8()).await.expect("the head never ends") {
            Ok(byte) => head.push(char::from(byte)),
            Err(_) => break,
        }
    }
    head
}
