//! HTTP in its smallest form: a service, a proxy before it, and a client that keeps its connections.

use std::future::Future;
use std::io::{Error, ErrorKind, Result as IoResult};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use greenwave_edge::{Proxy, ProxyConfig, Upstreams, listen};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{BoxError, Setup};

/// The end of a message's head.
const END: &[u8] = b"\r\n\r\n";

/// Asks a proxy of its own.
#[derive(Clone)]
pub(super) struct Client {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<TcpStream>>>,
}

impl Client {
    /// Starts a proxy before these addresses, and promises its end.
    pub(super) fn of_proxy(
        setup: &Setup,
        upstreams: impl IntoIterator<Item = SocketAddr>,
        config: ProxyConfig,
    ) -> Result<Self, BoxError> {
        let proxy = Proxy::new(config, Upstreams::fixed(upstreams).into_watch())?;
        let listeners = listen((Ipv4Addr::LOCALHOST, 0).into(), 1)?;
        let address = listeners.first().ok_or("no listener was opened")?.local_addr()?;
        let served = tokio::spawn(proxy.serve(listeners, CancellationToken::new()));
        setup.on_end("stop the proxy", async move {
            served.abort();
            Ok(())
        });
        Ok(Self { address, idle: Arc::default() })
    }

    /// The body of the answer, which must be a 200.
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>, BoxError> {
        let kept = self.idle().pop();
        let mut stream = match kept {
            Some(stream) => stream,
            None => TcpStream::connect(self.address).await?,
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let (head, body) = read(&mut stream).await?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(head.into());
        }
        self.idle().push(stream);
        Ok(body)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers each request by what `answer` makes of its head, a whole message; an error closes the connection.
pub(super) async fn serve<F, Fut>(listener: TcpListener, answer: F)
where
    F: Fn(String) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<Vec<u8>, BoxError>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = answer.clone();
        connections.spawn(async move {
            while let Ok((head, _)) = read(&mut stream).await {
                let Ok(answer) = answer(head).await else { return };
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Reads one message: its head, and a body as long as the head says.
async fn read(stream: &mut TcpStream) -> IoResult<(String, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(1024);
    let end = loop {
        if let Some(end) = bytes.windows(END.len()).position(|window| window == END) {
            break end + END.len();
        }
        read_some(stream, &mut bytes).await?;
    };
    let mut body = bytes.split_off(end);
    let head = String::from_utf8(bytes).map_err(Error::other)?;
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.map_or(Ok(0), |(_, length)| length.trim().parse()).map_err(Error::other)?;
    while body.len() < length {
        read_some(stream, &mut body).await?;
    }
    Ok((head, body))
}

async fn read_some(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> IoResult<()> {
    match stream.read_buf(bytes).await? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
