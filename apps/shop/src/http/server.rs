use std::{io, net::SocketAddr, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a connection may say nothing: in the middle of a request's head, or between two requests.
const SILENCE: Duration = Duration::from_secs(75);

/// How long requests that run may still take when the server ends.
const GRACE: Duration = Duration::from_secs(5);

/// How many connections there may be at once; more wait to be accepted. Fewer, where the process may not open so many
/// files.
const MAX_CONNECTIONS: usize = 10_000;

/// Files that connections leave to everything else: databases, Redis, logs.
const OTHER_FILES: usize = 100;

/// How many callers may wait to be accepted.
const BACKLOG: u32 = 1024;

/// An address that is this process's: nobody else listens there, and callers are turned away until it listens.
#[derive(Debug)]
pub struct Reserved {
    socket: TcpSocket,
    address: SocketAddr,
}

/// Takes this address, or says who may have it.
pub fn reserve(address: SocketAddr) -> anyhow::Result<Reserved> {
    let socket = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    let socket = socket().map_err(|error| cannot_listen(address, error))?;
    Ok(Reserved { socket, address })
}

impl Reserved {
    /// Listens: callers wait now, until they are served.
    pub fn listen(self) -> anyhow::Result<TcpListener> {
        self.socket.listen(BACKLOG).map_err(|error| cannot_listen(self.address, error))
    }
}

/// Listens on this address.
pub fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    reserve(address)?.listen()
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "something listens on {address} already: end it, or choose another port with PORT={}",
            address.port().checked_add(1).unwrap_or(8001)
        ),
        _ => anyhow::anyhow!("cannot listen on {address}: {error}; choose another port with PORT"),
    }
}

/// How many connections this process has room for.
fn max_connections() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    MAX_CONNECTIONS.min(files.saturating_sub(OTHER_FILES)).max(1)
}

/// Serves until the token is cancelled; then accepts no more, lets the requests that run finish (up to 5 s) and
/// returns. At most 10,000 connections are open at once, fewer where the process may not open so many files; more wait
/// to be accepted.
pub async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    serve_at_most(max_connections(), listener, router, cancel).await;
}

async fn serve_at_most(
    max_connections: usize,
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < max_connections => match accepted {
                Ok((stream, _)) => {
                    let watcher = graceful.watcher();
                    let connection = connection(stream, router.clone());
                    connections.spawn(async move {
                        // A client that went away is no news.
                        let _ = watcher.watch(connection).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must end first, and to ask again at once would only
                    // keep them from it.
                    tracing::warn!(%error, "could not accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    if timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!(connections = connections.len(), "closing connections whose requests did not finish");
    }
    connections.shutdown().await;
}

fn connection(
    stream: TcpStream,
    router: Router,
) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    // An answer is one small write; waiting for more would only delay it.
    let _ = stream.set_nodelay(true);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_too_many_waits_until_another_ends() {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n";
        let listener = bind(crate::loopback(0)).unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let serving = tokio::spawn(serve_at_most(2, listener, Router::new(), cancel.clone()));
        let mut answer = [0; 12];
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(REQUEST).await.unwrap();
            client.read_exact(&mut answer).await.unwrap();
            clients.push(client);
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(REQUEST).await.unwrap();
        let wait = timeout(Duration::from_millis(200), late.read_exact(&mut answer)).await;
        assert!(wait.is_err(), "{wait:?}");
        clients.pop();
        timeout(Duration::from_secs(10), late.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        cancel.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_reserved_address_takes_nobody_yet_and_nobody_can_take_it() {
        let reserved = reserve(crate::loopback(0)).unwrap();
        let address = reserved.socket.local_addr().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        let _listener = reserved.listen().unwrap();
        assert!(TcpStream::connect(address).await.is_ok());
        let taken = reserve(address).unwrap_err().to_string();
        assert!(taken.contains("another port"), "{taken}");
    }
}
