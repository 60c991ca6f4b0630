//! A live page about a service: its load, its instances, and where each route's time goes.
//!
//! [`router`] makes an axum router with four paths: `/` is the page, `/events` its data as server-sent events
//! once a second, `/metrics` the same for Prometheus, `/health` says whether the dashboard itself works.
//!
//! The dashboard asks a *source* once a second for the instances and their snapshots, and works out rates and
//! quantiles itself: one task does so, however many look on.
//!
//! ```no_run
//! use greenwave_monitor::{Monitor, dashboard::{self, DashboardConfig, Sources}};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let monitor = Monitor::install()?;
//! let router = dashboard::router(DashboardConfig::default(), move || {
//!     let monitor = monitor.clone();
//!     async move { Sources { instances: Vec::new(), snapshots: monitor.snapshot() } }
//! });
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8090").await?;
//! axum::serve(listener, router).await?;
//! # Ok(()) }
//! ```

mod access;
mod derive;
mod live;
mod overview;
mod sampler;

use std::sync::Arc;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use overview::{
    BatchRow, CacheRow, DatabaseRow, EdgeRow, EventRow, InstanceRow, JobRow, Latency, Overview, Point,
    QueueRow, RouteRow, SubscriptionRow, Traffic,
};

use crate::{Snapshot, export};
use live::Live;

/// Who may look, and how many.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DashboardConfig {
    /// What the page is headed. Default: `Greenwave`.
    pub title: String,
    /// With a token, every path but `/health` demands it, as `Authorization: Bearer` or as the password of HTTP
    /// Basic. Without one, requests are answered only if their `Host` is this machine, so that no page from
    /// elsewhere can read along. Default: none.
    pub token: Option<String>,
    /// Most pages that may follow at once; more are refused with 503. Default: 64.
    pub max_viewers: usize,
    /// Pages that the program serves beside the dashboard, and behind its door ([`guarded`]): the dashboard links them.
    /// Default: none.
    pub links: Vec<Link>,
}

/// A page beside the dashboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What the link says.
    pub title: String,
    /// Where it leads, as in `/jobs`.
    pub path: String,
}

impl Default for DashboardConfig {
    fn default() -> Self {
        DashboardConfig { title: "Greenwave".to_owned(), token: None, max_viewers: 64, links: Vec::new() }
    }
}

impl std::fmt::Debug for DashboardConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DashboardConfig")
            .field("title", &self.title)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("max_viewers", &self.max_viewers)
            .field("links", &self.links)
            .finish()
    }
}

/// What the dashboard is told once a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources {
    /// The service's processes, in the order in which they are to be shown.
    pub instances: Vec<InstanceRow>,
    /// The snapshots of all processes that have one, merged.
    pub snapshots: Snapshot,
}

/// The dashboard, fed by `source` until the router and all its clones are gone.
///
/// A page that looks on keeps its connection open, and the router with it. To end them in good order, as a
/// graceful shutdown needs, use [`router_until`].
///
/// # Panics
///
/// Outside a Tokio runtime, because it starts the task that asks the source.
pub fn router<F, Fut>(config: DashboardConfig, source: F) -> Router
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Sources> + Send + 'static,
{
    router_until(config, source, CancellationToken::new())
}

/// Like [`router`], but when `cancel` is cancelled the task ends, and with it every page's stream.
///
/// # Panics
///
/// Outside a Tokio runtime, because it starts the task that asks the source.
pub fn router_until<F, Fut>(config: DashboardConfig, source: F, cancel: CancellationToken) -> Router
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Sources> + Send + 'static,
{
    let live = Arc::new(Live::start(&config, source, cancel.child_token()));
    let doors = Arc::new(access::Doors::new(config.token));
    Router::new()
        .route("/", get(page))
        .route("/events", get(events))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(live)
        .layer(middleware::from_fn_with_state(doors, access::check))
}

/// Other routes behind the dashboard's door: answered to those who show the token or, without one, only under a name of
/// this machine. Whoever changes something there must also refuse the pages of other sites.
pub fn guarded(router: Router, token: Option<String>) -> Router {
    router.layer(middleware::from_fn_with_state(Arc::new(access::Doors::new(token)), access::check))
}

/// A page of a program's own in the look of the dashboard, for a [`Link`]: the elements of its body, and a script.
///
/// Neither may be made of what others have said: the script is to fetch that, from paths of the same origin, and to set
/// it as text. A policy keeps everything else out: no other script, no style but the dashboard's, no other origin.
///
/// ```
/// # use axum::{Router, routing::get};
/// use greenwave_monitor::dashboard::{guarded, own_page};
///
/// let page = || async { own_page("Jobs", "<main id=\"jobs\"></main>", "fetch('/admin/jobs')") };
/// let router: Router = guarded(Router::new().route("/jobs", get(page)), None);
/// ```
pub fn own_page(title: &str, body: &str, script: &str) -> Response {
    let page = include_str!("frame.html").replace("{{title}}", title);
    render(&page.replace("{{body}}", body).replace("{{script}}", script))
}

async fn page() -> Response {
    render(include_str!("page.html"))
}

fn render(page: &str) -> Response {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let page = page.replace("{{style}}", include_str!("style.css")).replace("{{nonce}}", &nonce);
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page)).into_response()
}

async fn events(State(live): State<Arc<Live>>) -> Response {
    match live.follow() {
        Some(stream) => ([(header::CONTENT_TYPE, "text/event-stream")], stream).into_response(),
        None => {
            let retry = [(header::RETRY_AFTER, "5")];
            (StatusCode::SERVICE_UNAVAILABLE, retry, "Too many pages follow already.\n").into_response()
        }
    }
}

async fn metrics(State(live): State<Arc<Live>>) -> Response {
    export::response(live.prometheus())
}

async fn health(State(live): State<Arc<Live>>) -> Response {
    if live.is_running() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "The dashboard has stopped.\n").into_response()
    }
}
