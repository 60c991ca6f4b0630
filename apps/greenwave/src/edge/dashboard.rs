//! Feeds the dashboard, and serves it with the admin API beside it.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
};

use axum::Router;
use greenwave_edge::InstanceStatus;
use greenwave_monitor::{
    Monitor, Snapshot,
    dashboard::{DashboardConfig, InstanceRow, Sources, guarded, router_until},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Serves until `stop`.
pub(super) async fn serve<F, Fut>(
    listener: TcpListener,
    config: DashboardConfig,
    source: F,
    admin: Router,
    stop: CancellationToken,
) where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Sources> + Send + 'static,
{
    let token = config.token.clone();
    let router = router_until(config, source, stop.clone()).merge(guarded(admin, token));
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        warn!("the dashboard ended: {error}");
    }
}

/// What the dashboard shows: every instance, and what all of them and this process have measured.
pub(super) fn source(
    instances: watch::Receiver<Vec<InstanceStatus>>,
    monitor: Monitor,
    sockets: &Path,
) -> impl Fn() -> Pin<Box<dyn Future<Output = Sources> + Send>> + Send + Sync + 'static {
    let sockets = sockets.to_path_buf();
    move || {
        let statuses = instances.borrow().clone();
        let (monitor, sockets) = (monitor.clone(), sockets.clone());
        Box::pin(async move {
            let mut snapshots = monitor.snapshot();
            let mut fetches: JoinSet<_> = statuses
                .iter()
                .map(|status| socket(&sockets, &status.name))
                .filter(|socket| socket.exists())
                .map(Snapshot::fetch_unix)
                .collect();
            // An instance that has just ended has nothing to say; the next second's fetch finds its successor.
            while let Some(fetched) = fetches.join_next().await {
                if let Ok(Ok(snapshot)) = fetched {
                    snapshots.merge(snapshot);
                }
            }
            Sources { instances: statuses.into_iter().map(row).collect(), snapshots }
        })
    }
}

/// Where an instance serves what it measured.
pub(crate) fn socket(sockets: &Path, instance: &str) -> PathBuf {
    sockets.join(format!("{instance}.sock"))
}

fn row(status: InstanceStatus) -> InstanceRow {
    let state = if status.crash_looping { "crash loop".into() } else { status.state.to_string() };
    InstanceRow {
        name: status.name,
        pid: status.pid,
        address: status.address.map(|address| address.to_string()),
        state,
        restarts: status.restarts.into(),
        memory_bytes: status.memory_bytes,
    }
}
