use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

use crate::collect::http::HttpSignals;
use crate::collect::queries;
use crate::collect::recorder::Recorder;
use crate::{Error, HttpLayer, Snapshot, socket};

/// How much a [`Monitor`] may remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Most series (a name with its labels) of all kinds together; more are dropped and counted. Default: 10,000.
    pub max_series: usize,
    /// Most series that are histograms, each of which takes 24 kB. Default: 2,000.
    pub max_histograms: usize,
}

impl Default for MonitorConfig {
    fn default() -> Self {
        MonitorConfig { max_series: 10_000, max_histograms: 2_000 }
    }
}

/// What this process has measured so far, and the layers that measure.
///
/// A handle: clones share one recorder.
#[derive(Clone)]
pub struct Monitor {
    inner: Arc<Inner>,
}

struct Inner {
    recorder: Recorder,
    http: Arc<HttpSignals>,
    // Whether a tracing layer of ours is in place: without one, a request's tally of no statements would be a lie.
    counts_queries: Arc<AtomicBool>,
}

impl Monitor {
    /// A monitor that receives what its own layers measure, but not the `metrics` macros.
    ///
    /// For tests, and for a second, separate monitor in one process.
    pub fn new() -> Monitor {
        Monitor::with_config(MonitorConfig::default())
    }

    /// Like [`Monitor::new`], with limits of your own.
    pub fn with_config(config: MonitorConfig) -> Monitor {
        let recorder = Recorder::new(config);
        let counts_queries = Arc::new(AtomicBool::new(false));
        let http = Arc::new(HttpSignals::new(recorder.clone(), counts_queries.clone()));
        Monitor { inner: Arc::new(Inner { recorder, http, counts_queries }) }
    }

    /// A monitor that receives everything recorded through the `metrics` macros in this process.
    ///
    /// Install it before anything is measured: what was recorded earlier is lost, and handles taken earlier
    /// stay deaf.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyInstalled`] when the process has a recorder, ours or another.
    pub fn install() -> Result<Monitor, Error> {
        Monitor::install_with(MonitorConfig::default())
    }

    /// Like [`Monitor::install`], with limits of your own.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyInstalled`] when the process has a recorder, ours or another.
    pub fn install_with(config: MonitorConfig) -> Result<Monitor, Error> {
        let monitor = Monitor::with_config(config);
        metrics::set_global_recorder(monitor.inner.recorder.clone()).map_err(|_| Error::AlreadyInstalled)?;
        Ok(monitor)
    }

    /// This monitor as a recorder for [`metrics::with_local_recorder`] or a fan-out of recorders.
    pub fn recorder(&self) -> impl metrics::Recorder + Clone + Send + Sync + 'static + use<> {
        self.inner.recorder.clone()
    }

    /// A layer for an axum router: times each request, by route.
    ///
    /// Add it with [`Router::layer`](axum::Router::layer) after the routes, so that the matched route is known
    /// when it runs; around the router as a whole, every request would count as `unmatched`.
    pub fn http_layer(&self) -> HttpLayer {
        HttpLayer::new(self.inner.http.clone())
    }

    /// A layer for a `tracing` subscriber: attributes each statement to the request that ran it.
    ///
    /// It carries its own filter. Give your log output its filter with
    /// [`with_filter`](tracing_subscriber::Layer::with_filter) too: a filter added to the subscriber as a layer of its
    /// own would hide the statements' events from this layer.
    pub fn tracing_layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        queries::layer(self.inner.counts_queries.clone())
    }

    /// Everything measured so far.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.recorder.snapshot()
    }

    /// Serves this process's snapshot at a Unix socket until `cancel` is cancelled.
    ///
    /// The socket is readable by its owner only (mode 0600). `GET /snapshot` answers what
    /// [`Snapshot::fetch_unix`] reads, `GET /metrics` the same as text for Prometheus. A socket that a dead process
    /// left at `path` is replaced, and ours is removed at the end.
    ///
    /// *Cancel safety:* dropping the future closes the socket and removes it.
    ///
    /// # Errors
    ///
    /// When a living process serves `path`, when something other than a socket stands there, and when the
    /// system refuses the socket.
    pub async fn serve_unix(&self, path: impl AsRef<Path>, cancel: CancellationToken) -> Result<(), Error> {
        socket::serve(self.clone(), path.as_ref(), cancel).await
    }
}

impl Default for Monitor {
    fn default() -> Self {
        Monitor::new()
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor")
            .field("counts_queries", &self.inner.counts_queries.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
