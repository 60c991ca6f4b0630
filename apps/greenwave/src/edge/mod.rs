//! `greenwave edge`: the process that serves requests, and shows the dashboard. `greenwave up` starts it, and starts
//! another when it dies or is reloaded.

mod admin;
mod cache;
mod dashboard;
mod groups;
mod jobs;
mod link;

use std::{
    net::{SocketAddr, TcpListener},
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use greenwave_edge::{Error, InstanceStatus, LogFileConfig, Proxy};
use greenwave_monitor::{Monitor, dashboard::DashboardConfig};
use listenfd::ListenFd;
use tokio::{
    net,
    net::unix::OwnedReadHalf,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::warn;

use crate::{
    control::{FromEdge, Reader, Start, ToEdge, VERSION},
    log::Log,
};
pub(crate) use dashboard::socket;
use groups::Groups;
pub(crate) use groups::check;
use link::Sender;

/// How long the dashboard's viewers may hold its end up.
const DASHBOARD_GRACE: Duration = Duration::from_secs(2);

/// Serves until the supervisor says otherwise, or is gone; then finishes what is in flight.
pub(crate) async fn run() -> Result<()> {
    let _log = Log::start(LogFileConfig::default())?;
    let sockets = inherited()?;
    let (mut messages, link) = link::open(supervisor()?);
    let Some(ToEdge::Start(start)) = messages.next().await.context("the supervisor is not understood")?
    else {
        bail!("this is started by `greenwave up`, not by hand");
    };
    let sender = link.sender();
    match Edge::start(*start, sockets).await {
        Ok(edge) => edge.serve(messages, sender).await?,
        // The supervisor says it.
        Err(error) => sender.send(FromEdge::Failed(greenwave_shop::error_chain(&*error).to_string())),
    }
    link.finish().await;
    Ok(())
}

/// The sockets that this process was given: the dashboard's, then those for requests.
fn inherited() -> Result<Vec<TcpListener>> {
    let mut given = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..given.len() {
        sockets.extend(given.take_tcp_listener(index)?);
    }
    ensure!(sockets.len() > 1, "this is started by `greenwave up`, not by hand");
    Ok(sockets)
}

/// The supervisor's socket, which stands in for standard input.
fn supervisor() -> Result<net::UnixStream> {
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    Ok(net::UnixStream::from_std(stream)?)
}

/// What runs in this process.
struct Edge {
    groups: Groups,
    proxy: Proxy,
    sockets: Vec<TcpListener>,
    serving: JoinHandle<Result<(), Error>>,
    drain: CancellationToken,
    instances: watch::Sender<Vec<InstanceStatus>>,
    dashboard: JoinHandle<()>,
    stop_dashboard: CancellationToken,
}

impl Edge {
    async fn start(start: Start, mut sockets: Vec<TcpListener>) -> Result<Edge> {
        if start.version != VERSION {
            bail!(
                "the supervisor speaks version {} and this program {VERSION}: restart greenwave instead",
                start.version
            );
        }
        let monitor = Monitor::install().context("cannot measure")?;
        let (groups, proxy) = Groups::start(&start.config, start.upstreams)?;
        if let Some(file) = start.import {
            let cache = proxy.cache();
            tokio::task::spawn_blocking(move || cache::import(&cache, file)).await?;
        }
        let board = sockets.remove(0);
        board.set_nonblocking(true)?;
        let board = net::TcpListener::from_std(board)?;
        let listeners = sockets.iter().map(TcpListener::try_clone).collect::<Result<_, _>>()?;
        let (instances, seen) = watch::channel(Vec::new());
        let (drain, stop_dashboard) = (CancellationToken::new(), CancellationToken::new());
        // Whether another edge goes on with the sockets is known only at the end: until then it is supposed.
        let serving = tokio::spawn(proxy.clone().with_successor().serve(listeners, drain.clone()));
        let source = dashboard::source(seen.clone(), monitor, &start.sockets);
        let jobs = start.config.jobs_database();
        let config = DashboardConfig {
            links: jobs.iter().map(|_| jobs::link()).collect(),
            token: Some(start.config.dashboard.token).filter(|token| !token.is_empty()),
            ..DashboardConfig::default()
        };
        let admin =
            admin::router(start.control, seen, proxy.cache(), jobs.map(jobs::router).unwrap_or_default());
        let dashboard = tokio::spawn(dashboard::serve(board, config, source, admin, stop_dashboard.clone()));
        Ok(Edge { groups, proxy, sockets, serving, drain, instances, dashboard, stop_dashboard })
    }

    /// Follows the supervisor until all requests are finished that it has let in.
    async fn serve(mut self, mut messages: Reader<OwnedReadHalf>, sender: Sender) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
        sender.send(FromEdge::Ready);
        let _telling =
            AbortOnDropHandle::new(tokio::spawn(tell_released(self.proxy.released(), sender.clone())));
        let mut hears = true;
        let mut rest = None;
        let ended = loop {
            let drain = tokio::select! {
                ended = &mut self.serving => break ended,
                message = messages.next(), if hears => match message {
                    Ok(Some(message)) => self.hear(message, &sender),
                    // The supervisor is gone, or talks nonsense: nobody is left to say when this is to end.
                    lost => {
                        hears = false;
                        lost.err().inspect(|error| warn!("the supervisor is not understood: {error}"));
                        Some(Drain { last: true })
                    }
                },
                _ = terminate.recv() => Some(Drain { last: true }),
            };
            match drain {
                None => {}
                Some(Drain { last: false }) => self.leave(),
                Some(Drain { last: true }) if rest.is_none() => rest = Some(self.leave_nobody()),
                Some(Drain { last: true }) => {}
            }
        };
        report(ended);
        if let Some(rest) = rest {
            report(rest.await);
        }
        self.stop_dashboard.cancel();
        if timeout(DASHBOARD_GRACE, &mut self.dashboard).await.is_err() {
            self.dashboard.abort();
        }
        Ok(())
    }

    /// Does what the supervisor says, unless it is to drain.
    fn hear(&self, message: ToEdge, sender: &Sender) -> Option<Drain> {
        match message {
            ToEdge::Upstreams(lists) => self.groups.update(lists),
            ToEdge::Instances(instances) => drop(self.instances.send_replace(instances)),
            ToEdge::Ask { id, question } => {
                let (cache, sender) = (self.proxy.cache(), sender.clone());
                // It may take a while, and new upstreams must not wait for it.
                tokio::task::spawn_blocking(move || {
                    let answer = cache::answer(&cache, question).map_err(|error| format!("{error:#}"));
                    sender.send(FromEdge::Answer { id, answer });
                });
            }
            ToEdge::Drain { last } => return Some(Drain { last }),
            // It has begun.
            ToEdge::Start(_) => {}
        }
        None
    }

    /// Leaves the sockets to a successor, and finishes what was let in.
    fn leave(&mut self) {
        self.drain.cancel();
        self.sockets.clear();
        self.stop_dashboard.cancel();
    }

    /// Finishes what was let in, and what waits in the sockets: those who wait believe that they are served.
    fn leave_nobody(&mut self) -> JoinHandle<Result<(), Error>> {
        let sockets = std::mem::take(&mut self.sockets);
        self.drain.cancel();
        tokio::spawn(self.proxy.clone().serve(sockets, self.drain.clone()))
    }
}

/// Tells the supervisor whom it may end.
async fn tell_released(mut released: watch::Receiver<Vec<SocketAddr>>, sender: Sender) {
    loop {
        let addresses = released.borrow_and_update().clone();
        sender.send(FromEdge::Released(addresses));
        if released.changed().await.is_err() {
            return;
        }
    }
}

struct Drain {
    last: bool,
}

fn report(ended: Result<Result<(), Error>, JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!("{}", greenwave_shop::error_chain(&error)),
        Err(error) => warn!("the proxy failed: {error}"),
    }
}
