//! `greenwave up`: instances behind a balancer, with a dashboard.

mod arguments;
mod banner;
mod dashboard;
mod service;

use std::{future::pending, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use greenwave_edge::{Proxy, ProxyConfig};
use greenwave_monitor::Monitor;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{config::Config, log};
pub(crate) use arguments::UpArguments;
use service::Service;

/// Runs until SIGINT or SIGTERM, then drains. A second signal ends it at once.
pub(crate) async fn run(config: Config) -> Result<()> {
    log::start();
    let monitor = Monitor::install().context("cannot measure")?;
    let mut signals = Signals::new()?;
    // Whatever can be wrong is found before anything is started.
    let edge = listen(&config.edge.listen, "--listen").await?;
    let board = listen(&config.dashboard.listen, "--dashboard").await?;
    dashboard::refuse_public_without_token(&board, &config.dashboard)?;
    let sockets =
        tempfile::Builder::new().prefix("greenwave-").tempdir().context("cannot make a temporary folder")?;

    let service = tokio::select! {
        service = Service::start(&config, sockets.path()) => service?,
        () = signals.next() => return Ok(()),
    };
    let running = serve(&config, &service, edge, board, monitor, sockets.path(), &mut signals);
    let outcome = running.await;
    service.shutdown().await;
    info!("stopped");
    outcome
}

async fn serve(
    config: &Config,
    service: &Service,
    edge: TcpListener,
    board: TcpListener,
    monitor: Monitor,
    sockets: &Path,
    signals: &mut Signals,
) -> Result<()> {
    let (stop_dashboard, drain) = (CancellationToken::new(), CancellationToken::new());
    let (edge_address, board_address) = (edge.local_addr()?, board.local_addr()?);
    let source = dashboard::source(service.handles(), monitor, sockets);
    let token = Some(config.dashboard.token.clone()).filter(|token| !token.is_empty());
    let dashboard = tokio::spawn(dashboard::serve(board, token, source, stop_dashboard.clone()));
    let proxy =
        tokio::spawn(Proxy::new(proxy_config(config), service.upstreams()).serve(edge, drain.clone()));

    let ready = tokio::select! {
        ready = service.ready(config.app.ready_timeout) => ready,
        () = signals.next() => Ok(()),
    };
    if ready.is_ok() {
        banner::print(service, edge_address, board_address);
        signals.next().await;
        info!("draining; a second signal stops at once");
    }
    drain.cancel();
    let finish = async {
        match proxy.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!("{error}"),
            Err(error) => warn!("the balancer failed: {error}"),
        }
        service.shutdown().await;
        stop_dashboard.cancel();
        let _ = dashboard.await;
    };
    tokio::select! {
        () = finish => {}
        () = signals.next() => bail!("stopped at once by a second signal; requests may have been cut"),
    }
    ready
}

fn proxy_config(config: &Config) -> ProxyConfig {
    ProxyConfig {
        connect_timeout: config.edge.connect_timeout,
        answer_timeout: config.edge.response_timeout,
        drain_timeout: config.edge.drain_timeout,
        ..Default::default()
    }
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

/// How long a fetch of an instance's measurements may take.
const FETCH_DEADLINE: Duration = Duration::from_millis(800);
