//! The edge: one process that serves, earlier ones that finish their requests, and what happens when one dies.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::id,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{sync::Notify, time::sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{error, info, warn};

use super::{
    edge_process::{EdgeProcess, Phase, World},
    listeners::Listeners,
    plan::Plan,
};
use crate::{
    config::Config,
    control::{EdgeStatus, Purge, Question, Start, VERSION},
};

/// How long a new edge may take until it serves.
const READY: Duration = Duration::from_secs(30);
/// How long the export of a cache may hold up a reload.
const EXPORT: Duration = Duration::from_secs(10);
/// What a draining edge gets beyond its drain timeout, before it is killed.
const OVERTIME: Duration = Duration::from_secs(5);
/// An edge that lived longer than this starts again at once when it dies.
const STABLE: Duration = Duration::from_secs(10);
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// Short: nobody is served meanwhile, and a start is cheap.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// How often it is looked whether a draining edge is overdue.
const TIDY: Duration = Duration::from_secs(1);

/// Told of addresses at which no edge has a request in flight any more.
pub(super) type Release = Box<dyn Fn(SocketAddr) + Send + Sync>;

/// What an edge serves.
#[derive(Clone)]
pub(super) struct Served {
    pub config: Config,
    /// The apps that take requests.
    pub targets: Vec<String>,
}

impl Served {
    pub(super) fn new(config: Config, plan: &Plan) -> Served {
        Served { config, targets: plan.targets().into_iter().map(String::from).collect() }
    }
}

/// Owns the sockets, and the processes that serve on them; dropping it kills these.
pub(super) struct Edges {
    inner: Arc<Inner>,
    _keeper: AbortOnDropHandle<()>,
}

struct Inner {
    world: World,
    folder: PathBuf,
    control: PathBuf,
    release: Release,
    // Held by whoever replaces the edge, so that it happens once at a time.
    changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    changed: Arc<Notify>,
    stopping: CancellationToken,
    restarts: AtomicU32,
}

struct State {
    served: Served,
    // `None` once it stops: nobody is let in any more.
    listeners: Option<Listeners>,
    current: Option<Arc<EdgeProcess>>,
    draining: Vec<(Arc<EdgeProcess>, Instant)>,
}

impl Edges {
    /// Starts the first; [`Edges::ready`] waits for it.
    pub(super) fn start(
        served: Served,
        listeners: Listeners,
        world: World,
        (folder, control): (PathBuf, PathBuf),
        release: Release,
    ) -> Result<Edges> {
        let state = State { served, listeners: Some(listeners), current: None, draining: Vec::new() };
        let inner = Arc::new(Inner {
            world,
            folder,
            control,
            release,
            changing: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
            changed: Arc::new(Notify::new()),
            stopping: CancellationToken::new(),
            restarts: AtomicU32::new(0),
        });
        let first = inner.spawn(None)?;
        inner.state().current = Some(Arc::new(first));
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep(Arc::clone(&inner))));
        Ok(Edges { inner, _keeper: keeper })
    }

    /// Waits until the present one serves.
    pub(super) async fn ready(&self) -> Result<()> {
        match self.inner.current() {
            Some(current) => current.ready(READY).await,
            None => bail!("the edge has stopped"),
        }
    }

    /// Starts a new edge from the program on disk, with this config, and then lets the old one finish. When the new one
    /// does not serve, the old one goes on as before.
    pub(super) async fn replace(&self, served: Served) -> Result<()> {
        let inner = &self.inner;
        let _changing = inner.changing.lock().await;
        let Some(old) = inner.current() else { bail!("the edge has stopped") };
        let opened = match &inner.state().listeners {
            Some(listeners) => listeners.moved(&served.config)?,
            None => bail!("the edge is stopping"),
        };
        let import = inner.export(&old).await;
        let (old_served, old_listeners) = {
            let mut state = inner.state();
            let old_served = std::mem::replace(&mut state.served, served);
            (old_served, opened.map(|opened| state.listeners.replace(opened)))
        };
        let started = match inner.spawn(import.clone()) {
            Ok(new) => new.ready(READY).await.map(|()| new),
            Err(error) => Err(error),
        };
        if let Some(file) = import {
            let _ = std::fs::remove_file(file);
        }
        let started = started.and_then(|new| match inner.stopping.is_cancelled() {
            true => bail!("the edge is stopping"),
            false => Ok(new),
        });
        match started {
            Ok(new) => inner.succeed(&old, new),
            Err(error) => {
                let mut state = inner.state();
                state.served = old_served;
                if let Some(listeners) = old_listeners {
                    state.listeners = listeners;
                }
                return Err(error);
            }
        }
        info!("a new edge serves; the old one finishes its requests");
        old.drain(false).await;
        inner.changed.notify_one();
        Ok(())
    }

    /// Drops answers from the cache of every edge that serves; says how many of the present one's.
    pub(super) async fn purge(&self, purge: Purge) -> Result<u64> {
        // Not between the export of a cache and its import: the answers would come back.
        let _changing = self.inner.changing.lock().await;
        let Some(current) = self.inner.current() else { bail!("the edge has stopped") };
        let draining: Vec<_> = self.inner.state().draining.iter().map(|(edge, _)| Arc::clone(edge)).collect();
        for edge in draining {
            // One that has ended meanwhile serves nothing stale.
            let _ = edge.ask(Question::Purge(purge.clone())).await;
        }
        current.ask(Question::Purge(purge)).await
    }

    /// Lets nobody in any more, and waits until all requests are finished, or cut after the drain timeout.
    pub(super) async fn stop(&self) {
        let inner = &self.inner;
        inner.stopping.cancel();
        let (all, patience) = {
            let mut state = inner.state();
            state.listeners = None;
            let draining = std::mem::take(&mut state.draining).into_iter().map(|(edge, _)| edge);
            let all: Vec<_> = state.current.take().into_iter().chain(draining).collect();
            (all, state.served.config.edge.proxy.drain_timeout + OVERTIME)
        };
        let ended = async {
            for edge in &all {
                edge.drain(true).await;
            }
            for edge in &all {
                edge.ended().await;
            }
        };
        if tokio::time::timeout(patience, ended).await.is_err() {
            warn!("the edge outlived its drain timeout and is killed");
        }
    }

    /// Waits until no earlier edge is left.
    pub(super) async fn drained(&self) {
        while !self.inner.state().draining.is_empty() {
            sleep(TIDY / 10).await;
        }
    }

    pub(super) fn status(&self) -> EdgeStatus {
        let state = self.inner.state();
        let addresses = state.listeners.as_ref().map(Listeners::addresses);
        let phase = state.current.as_ref().map_or(Phase::Draining, |current| current.phase());
        EdgeStatus {
            pid: state.current.as_ref().and_then(|current| current.pid),
            state: match phase {
                Phase::Starting => "starting",
                Phase::Ready => "ready",
                Phase::Draining => "draining",
                Phase::Failed(_) => "restarting",
            }
            .into(),
            restarts: self.inner.restarts.load(Ordering::Relaxed),
            listen: addresses.map(|(edge, _)| edge.to_string()),
            dashboard: addresses.map(|(_, dashboard)| dashboard.to_string()),
            draining: state.draining.len(),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<Arc<EdgeProcess>> {
        self.state().current.clone()
    }

    fn spawn(&self, import: Option<PathBuf>) -> Result<EdgeProcess> {
        let state = self.state();
        let Some(listeners) = &state.listeners else { bail!("the edge is stopping") };
        let upstreams = self.world.upstreams.borrow().clone();
        let known = |name: &String| Some((name.clone(), upstreams.get(name)?.clone()));
        let start = Start {
            version: VERSION,
            config: state.served.config.clone(),
            upstreams: state.served.targets.iter().filter_map(known).collect(),
            sockets: self.folder.clone(),
            control: self.control.clone(),
            import,
        };
        EdgeProcess::start(listeners.sockets(), start, self.world.clone(), Arc::clone(&self.changed))
    }

    /// Puts a new edge in the place of the old, which then has until its drain timeout.
    fn succeed(&self, old: &Arc<EdgeProcess>, new: EdgeProcess) {
        let mut state = self.state();
        let patience = state.served.config.edge.proxy.drain_timeout + OVERTIME;
        state.current = Some(Arc::new(new));
        state.draining.push((Arc::clone(old), Instant::now() + patience));
    }

    /// The file to which the edge wrote its cache. Without one the next begins with an empty cache, which is no reason
    /// not to reload.
    async fn export(&self, edge: &EdgeProcess) -> Option<PathBuf> {
        let file = self.folder.join(format!("cache-{}", edge.pid.unwrap_or_else(id)));
        let exported = tokio::time::timeout(EXPORT, edge.ask(Question::Export(file.clone()))).await;
        match exported {
            Ok(Ok(0)) => {}
            Ok(Ok(_)) => return Some(file),
            Ok(Err(error)) => warn!("the response cache is not handed over: {error}"),
            Err(_) => warn!("the response cache is not handed over: its export took too long"),
        }
        let _ = std::fs::remove_file(&file);
        None
    }

    /// Forgets those that have ended, kills those that are overdue, and tells of what all have released.
    fn tidy(&self) {
        let (current, draining) = {
            let mut state = self.state();
            state.draining.retain(|(edge, until)| {
                let overdue = Instant::now() > *until;
                if overdue && !edge.has_ended() {
                    warn!("an old edge outlived its drain timeout and is killed");
                }
                !edge.has_ended() && !overdue
            });
            (state.current.clone(), state.draining.clone())
        };
        let Some(current) = current else { return };
        let of_all = |address: &SocketAddr| draining.iter().all(|(edge, _)| edge.has_released(address));
        current.released().into_iter().filter(of_all).for_each(|address| (self.release)(address));
    }
}

/// Starts a new edge when the present one dies; its connections wait in the sockets' backlogs meanwhile.
async fn keep(inner: Arc<Inner>) {
    let mut started = Instant::now();
    let mut backoff = Duration::ZERO;
    while let Some(current) = inner.current() {
        let died = tokio::select! {
            () = inner.stopping.cancelled() => return,
            () = current.ended() => true,
            () = inner.changed.notified() => false,
            () = sleep(TIDY) => false,
        };
        inner.tidy();
        if !died {
            continue;
        }
        let _changing = inner.changing.lock().await;
        let is_current = inner.current().is_some_and(|now| Arc::ptr_eq(&now, &current));
        if !is_current || inner.stopping.is_cancelled() {
            continue;
        }
        backoff = match started.elapsed() {
            lived if lived > STABLE => Duration::ZERO,
            _ => (backoff * 2).clamp(MIN_BACKOFF, MAX_BACKOFF),
        };
        error!("the edge {}; it starts again", current.end());
        tokio::select! {
            () = inner.stopping.cancelled() => return,
            () = sleep(backoff) => {}
        }
        inner.restarts.fetch_add(1, Ordering::Relaxed);
        started = Instant::now();
        match inner.spawn(None) {
            Ok(new) => inner.state().current = Some(Arc::new(new)),
            // The old one, which has ended, stands until a later try.
            Err(error) => error!("cannot start the edge: {error:#}"),
        }
    }
}
