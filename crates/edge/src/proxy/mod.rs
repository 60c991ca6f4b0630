//! Takes requests from clients and brings them to upstreams.

pub(crate) mod answer;
pub(crate) mod body;
mod config;
pub(crate) mod context;
pub(crate) mod fetch;
mod forward;
mod framing;
mod headers;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{ProxyConfig, TlsConfig, TrustConfig};

use crate::telemetry::{self, PROXY_TARGET};
use crate::{Error, LoadBalancer, Upstreams};
use forward::Forwarder;
use framing::{FollowedStream, MAX_LINE};

// A listener that cannot accept, mostly for lack of file descriptors, is left alone for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
// How long after its cancel the listener is emptied: connections that the system made already show up at once.
const LAST_ACCEPTS: Duration = Duration::from_millis(20);
// A connection that was accepted in the last moment has this long to send its request.
const LAST_HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// An HTTP/1.1 reverse proxy over healthy upstreams.
///
/// Requests take turns over the upstreams that the channel says are healthy. Bodies are streamed both ways.
/// The upstream sees the client's `Host`, and `X-Real-IP`, `X-Forwarded-For`,
/// `X-Forwarded-Host` and `X-Forwarded-Proto`.
///
/// A request that could not reach an upstream is tried at the next one. A GET or HEAD without a body whose
/// upstream dies before it answers is sent once more. Where no upstream is healthy a request waits for
/// [`upstream_wait`](ProxyConfig::upstream_wait). So clients that read do not notice when an instance crashes or
/// is restarted, unless it was in the middle of an answer to them.
///
/// What the proxy answers itself has a body `{"error": CODE, "message": TEXT}`.
#[derive(Clone)]
pub struct Proxy {
    config: Arc<ProxyConfig>,
    upstreams: watch::Receiver<Upstreams>,
    forwarder: Arc<Forwarder>,
}

impl Proxy {
    /// Makes a proxy; [`serve`](Self::serve) puts it to work. Clones share connections to upstreams.
    pub fn new(config: ProxyConfig, upstreams: watch::Receiver<Upstreams>) -> Self {
        let forwarder =
            Forwarder::new(config.clone(), LoadBalancer::new(config.balance.clone(), upstreams.clone()));
        Self { config: Arc::new(config), upstreams, forwarder: Arc::new(forwarder) }
    }

    /// Serves what the listener accepts until `cancel`, then drains: it accepts no more, closes idle
    /// connections, lets running requests finish for [`drain_timeout`](ProxyConfig::drain_timeout) and
    /// returns.
    ///
    /// Fails only when it had to cut requests at the end of that time.
    ///
    /// Dropping the future cuts all connections at once.
    pub async fn serve(self, listener: TcpListener, cancel: CancellationToken) -> Result<(), Error> {
        let places = Arc::new(Semaphore::new(self.config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        let mut connections = JoinSet::new();
        let mut upstreams = self.upstreams.clone();
        let mut upstreams_change = true;
        self.count_healthy();
        loop {
            let accepted = async {
                // The semaphore is never closed, so the only way out of here is a place.
                let place = Arc::clone(&places).acquire_owned().await.ok();
                (place, listener.accept().await)
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                changed = upstreams.changed(), if upstreams_change => {
                    upstreams_change = changed.is_ok();
                    self.count_healthy();
                }
                Some(_) = connections.join_next() => {}
                (place, accepted) = accepted => match accepted {
                    Ok((stream, peer)) => {
                        let (proxy, cancel) = (self.clone(), cancel.clone());
                        connections.spawn(async move {
                            proxy.connection(stream, peer, Some(cancel)).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(target: PROXY_TARGET, %error, "could not accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        // Clients whose connection was made before the listener closes believe that they are served.
        let last = async {
            while let Ok((stream, peer)) = listener.accept().await {
                let proxy = self.clone();
                connections.spawn(async move { proxy.connection(stream, peer, None).await });
            }
        };
        let _ = tokio::time::timeout(LAST_ACCEPTS, last).await;
        drop(listener);
        self.drain(connections).await
    }

    async fn drain(&self, mut connections: JoinSet<()>) -> Result<(), Error> {
        let within = self.config.drain_timeout;
        let ended =
            tokio::time::timeout(within, async { while connections.join_next().await.is_some() {} }).await;
        if ended.is_ok() {
            return Ok(());
        }
        let cut = connections.len();
        connections.shutdown().await;
        Err(Error::Drain { connections: cut, within })
    }

    /// Serves one connection; without `cancel`, one request of it.
    async fn connection(self, stream: TcpStream, peer: SocketAddr, cancel: Option<CancellationToken>) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(target: PROXY_TARGET, %peer, %error, "client has left already");
            return;
        }
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.config.header_timeout)
            .max_buf_size(MAX_LINE)
            .max_header_size(self.config.max_head_size.min(MAX_LINE));
        if cancel.is_none() {
            http.keep_alive(false).header_read_timeout(self.config.header_timeout.min(LAST_HEADER_TIMEOUT));
        }
        let stream = FollowedStream::new(stream);
        let sound = stream.sound();
        let number = AtomicU64::new(0);
        let forwarder = &self.forwarder;
        let service = service_fn(|request| {
            let sound = sound.holds_for(number.fetch_add(1, Ordering::Relaxed));
            async move { Ok::<_, Infallible>(forwarder.answer(request, peer.ip(), sound).await) }
        });
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let stopped = async {
            match cancel {
                Some(cancel) => cancel.cancelled_owned().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            // Requests that are there already are taken up before the connection is told to end.
            biased;
            ended = connection.as_mut() => ended,
            () = stopped => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(target: PROXY_TARGET, %peer, %error, "connection of a client failed");
        }
    }

    fn count_healthy(&self) {
        // A count of upstreams is far below what a float holds exactly.
        metrics::gauge!(telemetry::UPSTREAMS_HEALTHY).set(self.forwarder.balancer().healthy() as f64);
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("config", &self.config).finish_non_exhaustive()
    }
}
