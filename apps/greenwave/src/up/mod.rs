//! `greenwave up`: the process that owns the sockets and starts, watches and replaces everything else.

mod apps;
mod arguments;
mod banner;
mod edge_process;
mod edges;
mod listeners;
mod notify;
mod plan;
mod running;
mod server;

use std::{fs, future::pending, os::unix::fs::PermissionsExt, sync::Arc};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info};

use crate::{
    config::Config,
    control::{Listener, Place},
    log::Log,
};
pub(crate) use arguments::{Settings, UpArguments};
use listeners::Listeners;
use notify::notify;
use plan::{Plan, prepare_shop};
use running::Running;

/// Refuses what would not start, without starting anything.
pub(crate) fn check(config: &Config) -> Result<()> {
    Plan::new(config).map(drop)
}

/// Runs until SIGINT, SIGTERM or `greenwave stop`, then drains. A second signal ends it at once.
pub(crate) async fn run(settings: Settings) -> Result<()> {
    let config = settings.load()?;
    let log = Log::start(config.logs.clone())?;
    raise_open_files();
    let mut signals = Signals::new()?;
    let hangup = listen_for(SignalKind::hangup())?;
    // Whatever can be wrong is found before anything is started.
    let plan = Plan::new(&config)?;
    let listeners = Listeners::open(&config)?;
    if config.runs_shop() {
        tokio::select! {
            prepared = prepare_shop(&config) => prepared?,
            () = signals.end() => return Ok(()),
        }
    }
    let control = Listener::bind(&Place::new(settings.socket(), &config.data_dir)?).await?;
    let folder = private_folder()?;
    let addresses = listeners.addresses();
    let running = Arc::new(Running::start(
        settings,
        config.clone(),
        &plan,
        listeners,
        (folder.path(), &control.path),
        log,
    )?);
    let mut server = Box::pin(server::serve(&control, Arc::clone(&running)));

    let ready = tokio::select! {
        ready = running.ready(&plan) => Some(ready),
        () = signals.end() => None,
        () = running.stop.cancelled() => None,
        () = &mut server => None,
    };
    if let Some(Ok(())) = ready {
        banner::print(&plan, &config, addresses, &control.path);
        notify("READY=1");
        tokio::select! {
            () = signals.end() => info!("draining; a second signal stops at once"),
            () = running.stop.cancelled() => info!("draining"),
            () = reload_on(hangup, &running) => {}
            () = &mut server => {}
        }
    }
    notify("STOPPING=1");
    let finish = async {
        running.shutdown().await;
        running.stopped.cancel();
    };
    tokio::select! {
        // Whoever asked for it is told.
        ((), ()) = async { tokio::join!(finish, server) } => info!("stopped"),
        // What still runs is killed as its owners are dropped.
        () = signals.end() => bail!("stopped at once by a second signal; requests may have been cut"),
    }
    ready.unwrap_or(Ok(()))
}

/// Reloads everything at each such signal.
async fn reload_on(mut signal: Signal, running: &Arc<Running>) {
    while signal.recv().await.is_some() {
        let running = Arc::clone(running);
        // In a task of its own: whoever stops meanwhile does not leave half a reload behind.
        tokio::spawn(async move {
            match running.reload(false, None).await {
                Ok(()) => info!("reloaded"),
                Err(error) => error!("not reloaded: {error:#}"),
            }
        });
    }
    pending().await
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

fn listen_for(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// The signals that end a program.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        Ok(Signals {
            interrupt: listen_for(SignalKind::interrupt())?,
            terminate: listen_for(SignalKind::terminate())?,
        })
    }

    async fn end(&mut self) {
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
