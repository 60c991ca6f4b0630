//! `greenwave up`: instances behind a balancer, with a dashboard.

mod arguments;
mod banner;
mod dashboard;
mod service;

use std::{fs, future::pending, os::unix::fs::PermissionsExt, time::Duration};

use anyhow::{Context, Result, bail};
use greenwave_edge::Proxy;
use greenwave_monitor::Monitor;
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{config::Config, log::Log};
pub(crate) use arguments::UpArguments;
use service::Service;

/// How long the dashboard's viewers may hold its end up.
const DASHBOARD_GRACE: Duration = Duration::from_secs(2);

/// Runs until SIGINT or SIGTERM, then drains. A second signal ends it at once.
pub(crate) async fn run(config: Config) -> Result<()> {
    let log = Log::start();
    raise_open_files();
    let monitor = Monitor::install().context("cannot measure")?;
    let mut signals = Signals::new()?;
    // Whatever can be wrong is found before anything is started.
    let edge = listen(&config.edge.listen, "--listen").await?;
    let board = listen(&config.dashboard.listen, "--dashboard").await?;
    let addresses = (edge.local_addr()?, board.local_addr()?);
    dashboard::refuse_public_without_token(&board, &config.dashboard)?;
    let sockets = private_folder()?;

    let service = tokio::select! {
        service = Service::start(&config, sockets.path(), &log) => service?,
        () = signals.next() => return Ok(()),
    };
    let (drain, stop_dashboard) = (CancellationToken::new(), CancellationToken::new());
    let proxy = Proxy::new(config.edge.proxy.clone(), service.upstreams())?;
    let proxy = tokio::spawn(proxy.serve(vec![edge.into_std()?], drain.clone()));
    let source = dashboard::source(service.handles(), monitor, sockets.path());
    let token = Some(config.dashboard.token.clone()).filter(|token| !token.is_empty());
    let mut dashboard = tokio::spawn(dashboard::serve(board, token, source, stop_dashboard.clone()));

    let ready = tokio::select! {
        ready = service.ready(config.app.ready_timeout) => Some(ready),
        () = signals.next() => None,
    };
    if let Some(Ok(())) = ready {
        banner::print(&service, addresses);
        signals.next().await;
        info!("draining; a second signal stops at once");
    }
    let finish = async {
        drain.cancel();
        match proxy.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("{error}"),
            Err(error) => warn!("the balancer failed: {error}"),
        }
        service.shutdown().await;
        stop_dashboard.cancel();
        if timeout(DASHBOARD_GRACE, &mut dashboard).await.is_err() {
            dashboard.abort();
        }
    };
    tokio::select! {
        () = finish => info!("stopped"),
        // What still runs is killed as the supervisors are dropped.
        () = signals.next() => bail!("stopped at once by a second signal; requests may have been cut"),
    }
    ready.unwrap_or(Ok(()))
}

/// A folder for the instances' sockets, which nobody else may look into.
fn private_folder() -> Result<TempDir> {
    let private = fs::Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().prefix("greenwave-").permissions(private).tempdir();
    folder.context("cannot make a temporary folder")
}

/// Each request that is passed on holds two sockets; the usual soft limit of 1024 files is soon reached.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it may not be raised, what there is must do.
    let _ = setrlimit(Resource::Nofile, limit);
}

async fn listen(address: &str, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "{address} is in use: stop what listens there, or choose another address with {flag}"
            )
        }
        std::io::ErrorKind::InvalidInput => {
            anyhow::anyhow!("{address} is no address: write HOST:PORT, as in 127.0.0.1:8080, for {flag}")
        }
        _ => anyhow::anyhow!("cannot listen on {address}: {error}; choose another address with {flag}"),
    })
}

/// The signals that end a program.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        let next = async |signal: &mut Signal| match signal.recv().await {
            Some(()) => {}
            None => pending().await,
        };
        tokio::select! {
            () = next(&mut self.interrupt) => {}
            () = next(&mut self.terminate) => {}
        }
    }
}
