//! Feeds the dashboard, and serves it.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use anyhow::{Result, bail};
use greenwave_edge::{InstanceStatus, Supervisor};
use greenwave_monitor::{
    Monitor, Snapshot,
    dashboard::{DashboardConfig, InstanceRow, Sources, router_until},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Dashboard;

pub(crate) fn refuse_public_without_token(listener: &TcpListener, config: &Dashboard) -> Result<()> {
    if config.token.is_empty() && !listener.local_addr()?.ip().is_loopback() {
        let address = &config.listen;
        bail!(
            "the dashboard would be public on {address}: set dashboard.token, or let it listen on 127.0.0.1"
        );
    }
    Ok(())
}

pub(crate) async fn serve<F, Fut>(
    listener: TcpListener,
    token: Option<String>,
    source: F,
    stop: CancellationToken,
) where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Sources> + Send + 'static,
{
    let router = router_until(DashboardConfig { token, ..Default::default() }, source, stop.clone());
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        warn!("the dashboard ended: {error}");
    }
}

/// What the dashboard shows: every instance, and what all of them and this process have measured.
pub(crate) fn source(
    supervisors: Vec<Arc<Supervisor>>,
    monitor: Monitor,
    sockets: &Path,
) -> impl Fn() -> Pin<Box<dyn Future<Output = Sources> + Send>> + Send + Sync + 'static {
    let sockets = sockets.to_path_buf();
    move || {
        let statuses: Vec<_> = supervisors.iter().flat_map(|supervisor| supervisor.instances()).collect();
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
