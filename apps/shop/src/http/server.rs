use std::{io, net::SocketAddr, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long a connection may say nothing: in the middle of a request's head, or between two requests.
const SILENCE: Duration = Duration::from_secs(75);

/// How long requests that run may still take when the server ends.
const GRACE: Duration = Duration::from_secs(5);

/// Listens on this address.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "something listens on {address} already: end it, or choose another port with PORT={}",
            address.port().checked_add(1).unwrap_or(8001)
        ),
        _ => anyhow::anyhow!("cannot listen on {address}: {error}; choose another port with PORT"),
    })
}

/// Serves until the token is cancelled; then accepts no more, lets the requests that run finish (up to 5 s) and
/// returns.
pub async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let watcher = graceful.watcher();
                    let connection = connection(stream, router.clone());
                    connections.spawn(async move {
                        // A client that went away is no news.
                        let _ = watcher.watch(connection).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: others must end first.
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
