//! Takes requests from clients and brings them to upstreams.

pub(crate) mod answer;
pub(crate) mod body;
mod client_stream;
mod config;
pub(crate) mod context;
mod converse;
pub(crate) mod fetch;
mod forward;
mod framing;
mod headers;
mod listen;
mod proxy_protocol;
pub(crate) mod sweep;
mod tls;
mod tunnel;
mod upstream;
pub(crate) mod worker;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use metrics::Gauge;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use config::{ProxyConfig, TlsConfig, TrustConfig};
pub use listen::listen;

use crate::access_log::AccessLog;
use crate::overload::RateLimits;
use crate::routes::Groups;
use crate::telemetry;
use crate::{Error, Group, HttpCache, Upstreams};
use listen::Ends;
use tls::Tls;

/// A reverse proxy over healthy upstreams, for clients that speak HTTP/1.1 or, over TLS, HTTP/2.
///
/// Each request goes to the upstream that is likely to answer it soonest. Bodies are streamed both ways. What an upstream
/// sees of the client, what is kept in the response cache and what is refused under overload stands in the README.
///
/// A request that could not reach an upstream is tried at the next one. A repeatable one without a body whose upstream
/// dies before it answers is sent once more. Where no upstream is healthy a request waits for
/// [`upstream_wait`](ProxyConfig::upstream_wait). So clients that read do not notice when an instance crashes or
/// is restarted, unless it was in the middle of an answer to them.
///
/// What the proxy answers itself has a body `{"error": CODE, "message": TEXT}`.
#[derive(Clone)]
pub struct Proxy {
    shared: Arc<Shared>,
    succeeded: bool,
}

/// What all threads of a proxy share.
pub(crate) struct Shared {
    pub(crate) config: ProxyConfig,
    pub(crate) groups: Groups,
    pub(crate) cache: HttpCache,
    pub(crate) rate_limits: RateLimits,
    pub(crate) access_log: Option<AccessLog>,
    tls: Option<Tls>,
    // Room for connections of clients.
    places: Arc<Semaphore>,
    active: Gauge,
}

impl Proxy {
    /// Makes a proxy for one group of upstreams, balanced as the configuration says; [`serve`](Self::serve) puts it to
    /// work. Clones share all that they know of their upstreams.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], with the key that is wrong.
    pub fn new(config: ProxyConfig, upstreams: watch::Receiver<Upstreams>) -> Result<Self, Error> {
        let mut group = Group::new("default", upstreams);
        group.balance = config.balance.clone();
        Self::with_groups(config, vec![group])
    }

    /// Makes a proxy for several groups, each balanced as it says itself. A request that no route of theirs fits is
    /// answered with 404.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when two groups have the same name or the same route, or a route is none.
    pub fn with_groups(config: ProxyConfig, groups: Vec<Group>) -> Result<Self, Error> {
        config.check()?;
        let shared = Shared {
            groups: Groups::new(groups, &config.overload)?,
            rate_limits: RateLimits::new(&config.rate_limits)?,
            access_log: AccessLog::new(&config.access_log)?,
            tls: Tls::new(&config.tls)?,
            cache: HttpCache::new(config.cache.clone()),
            places: Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS))),
            active: metrics::gauge!(telemetry::ACTIVE_REQUESTS),
            config,
        };
        Ok(Self { shared: Arc::new(shared), succeeded: false })
    }

    /// Addresses of upstreams that [drain](crate::Upstream::draining) and have no request in flight any more: they may
    /// be ended.
    pub fn released(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.shared.groups.released()
    }

    /// The response cache: to purge, to read its counts, to hand it over to a successor.
    #[must_use]
    pub fn cache(&self) -> HttpCache {
        self.shared.cache.clone()
    }

    /// Leaves the listeners to a successor: another process that has inherited them and goes on to accept. Connections
    /// that have not been accepted when this proxy is told to stop are then the successor's. Without one, this proxy
    /// takes them up, as they would be lost when it closes the listeners.
    #[must_use]
    pub fn with_successor(mut self) -> Self {
        self.succeeded = true;
        self
    }

    /// Serves what the listeners accept until `cancel`, then drains: it accepts no more, lets running requests finish
    /// for [`drain_timeout`](ProxyConfig::drain_timeout), and returns. A connection without a request is kept
    /// for [`drain_idle_timeout`](ProxyConfig::drain_idle_timeout), so that one that is just arriving is answered; each
    /// answer now tells its client that the connection ends.
    ///
    /// Each listener gets a thread of its own; a single one is shared by [`threads`](ProxyConfig::threads) of them.
    /// [`listen`] opens as many as are wanted. What was made in a runtime stays in it: these threads have their own.
    ///
    /// # Errors
    /// [`Error::Serve`] when a thread could not begin, and [`Error::Drain`] when requests had to be cut at the end.
    ///
    /// # Cancel safety
    /// Dropping the future cuts all connections at once.
    pub async fn serve(
        self,
        listeners: Vec<std::net::TcpListener>,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        let kill = CancellationToken::new();
        let _killed_on_drop = kill.clone().drop_guard();
        let ends = Ends { drain: cancel, kill, succeeded: self.succeeded };
        let mut threads = Vec::new();
        for listener in self.spread(listeners).map_err(Error::Serve)? {
            threads.push(self.start(listener, ends.clone()).map_err(Error::Serve)?);
        }
        let ended = async {
            let mut cut = 0;
            for thread in threads {
                let ended = thread.await.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
                cut += ended.map_err(Error::Serve)?;
            }
            match cut {
                0 => Ok(()),
                connections => Err(Error::Drain { connections, within: self.shared.config.drain_timeout }),
            }
        };
        tokio::select! {
            ended = ended => ended,
            // Neither of these ends.
            () = self.keep_fresh() => Ok(()),
            () = self.shared.groups.follow() => Ok(()),
        }
    }

    /// One listener for each thread.
    fn spread(&self, mut listeners: Vec<std::net::TcpListener>) -> io::Result<Vec<std::net::TcpListener>> {
        let threads = listen::cores_or(self.shared.config.threads);
        if let [only] = &listeners[..] {
            let twins: Vec<_> = (1..threads).map(|_| only.try_clone()).collect::<io::Result<_>>()?;
            listeners.extend(twins);
        }
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        Ok(listeners)
    }

    fn start(
        &self,
        listener: std::net::TcpListener,
        ends: Ends,
    ) -> io::Result<oneshot::Receiver<io::Result<usize>>> {
        let (end, ended) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("greenwave-edge".into()).spawn(move || {
            // Nobody waits any more when the future was dropped.
            let _ = end.send(listen::run(shared, listener, ends));
        })?;
        Ok(ended)
    }

    async fn keep_fresh(&self) {
        match &self.shared.tls {
            Some(tls) => tls.keep_fresh().await,
            None => std::future::pending().await,
        }
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
