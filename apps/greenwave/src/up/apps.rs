//! The apps that run: their supervisors, and what they tell the edge.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use greenwave_edge::{FileWatch, InstanceStatus, Logs, Supervisor, Upstreams, WatchConfig};
use greenwave_monitor::telemetry::SOCKET_ENV;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info};

use super::plan::PlannedApp;
use crate::{child, control::AppStatus, edge::socket, log::Log};

/// How long instances that were added may take to be ready.
const SCALED: Duration = Duration::from_secs(60);

/// All supervised apps; dropping it kills their processes.
pub(super) struct Apps {
    running: Mutex<Vec<App>>,
    upstreams: Arc<watch::Sender<BTreeMap<String, Upstreams>>>,
    sockets: PathBuf,
    log: Log,
}

#[derive(Clone)]
struct App {
    name: String,
    takes_requests: bool,
    supervisor: Arc<Supervisor>,
    // Held for their drops.
    _follower: Option<Arc<AbortOnDropHandle<()>>>,
    watch: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Apps {
    pub(super) fn new(sockets: PathBuf, log: Log) -> Apps {
        let upstreams = Arc::new(watch::Sender::new(BTreeMap::new()));
        Apps { running: Mutex::default(), upstreams, sockets, log }
    }

    /// Starts these, and returns at once. When one cannot be started, none is.
    pub(super) fn start<'a>(&self, planned: impl IntoIterator<Item = &'a PlannedApp>) -> Result<()> {
        let started = planned.into_iter().map(|app| self.launch(app)).collect::<Result<Vec<_>>>();
        // Those that did start end by their drop.
        self.running().extend(started?);
        Ok(())
    }

    fn launch(&self, planned: &PlannedApp) -> Result<App> {
        let sockets = self.sockets.clone();
        let builder =
            Supervisor::new(planned.config.clone()).logs(self.log.of_instances()).env(move |instance| {
                let socket = socket(&sockets, &instance.name).to_string_lossy().into_owned();
                vec![(SOCKET_ENV.into(), socket)]
            });
        let supervisor = Arc::new(builder.wrapper(child::wrapper()?).start()?);
        let (name, takes_requests) = (planned.name().to_owned(), planned.takes_requests);
        let watch = watch(planned, &supervisor)?;
        let follower = takes_requests.then(|| {
            let (upstreams, list) = (Arc::clone(&self.upstreams), supervisor.upstreams());
            // At once: an edge that starts now knows the app.
            upstreams.send_modify(|all| drop(all.insert(name.clone(), list.borrow().clone())));
            Arc::new(AbortOnDropHandle::new(tokio::spawn(follow(name.clone(), list, upstreams))))
        });
        Ok(App { name, takes_requests, supervisor, _follower: follower, watch })
    }

    /// Waits until an app is ready; the error holds the last lines of what is not.
    pub(super) async fn ready(&self, planned: &PlannedApp) -> Result<()> {
        Ok(self.named(planned.name())?.supervisor.ready(planned.ready_timeout).await?)
    }

    /// Replaces an app's instances one after the other by new ones, with this config.
    pub(super) async fn roll(&self, planned: &PlannedApp) -> Result<()> {
        let app = self.named(planned.name())?;
        app.supervisor.reload_with(planned.config.clone()).await?;
        let watch = watch(planned, &app.supervisor)?;
        if let Some(app) = self.running().iter_mut().find(|app| app.name == planned.name()) {
            app.watch = watch;
        }
        Ok(())
    }

    /// Ends all that are not among these.
    pub(super) async fn keep_only(&self, names: &[impl AsRef<str>]) {
        let is_gone = |app: &mut App| names.iter().all(|name| name.as_ref() != app.name);
        let gone: Vec<App> = self.running().extract_if(.., is_gone).collect();
        for app in gone {
            self.upstreams.send_modify(|all| drop(all.remove(&app.name)));
            app.supervisor.shutdown().await;
            info!("{} was removed", app.name);
        }
    }

    /// Ends those that take requests first: their last requests may still leave work for the workers.
    pub(super) async fn shutdown(&self) {
        let (takers, workers): (Vec<App>, Vec<App>) =
            self.running().clone().into_iter().partition(|app| app.takes_requests);
        for app in takers.into_iter().chain(workers) {
            app.supervisor.shutdown().await;
        }
    }

    pub(super) async fn scale(&self, name: Option<&str>, instances: usize) -> Result<()> {
        let app = match name {
            Some(name) => self.named(name)?,
            None => self.only()?,
        };
        app.supervisor.scale(instances).await?;
        Ok(app.supervisor.ready(SCALED).await?)
    }

    pub(super) fn released(&self, address: SocketAddr) {
        for app in self.running().iter() {
            app.supervisor.released(address);
        }
    }

    /// The last lines of an app, of an instance, or of all.
    pub(super) fn logs(&self, name: Option<&str>, lines: usize) -> Result<Vec<Logs>> {
        let running = self.running().clone();
        let Some(name) = name else {
            return Ok(running.iter().map(|app| app.supervisor.logs(None, lines)).collect());
        };
        if let Some(app) = running.iter().find(|app| app.name == name) {
            return Ok(vec![app.supervisor.logs(None, lines)]);
        }
        let is_its = |app: &&App| app.supervisor.instances().iter().any(|instance| instance.name == name);
        match running.iter().find(is_its) {
            Some(app) => Ok(vec![app.supervisor.logs(Some(name), lines)]),
            None => bail!("no app and no instance is called {name:?}; there is {}", self.names().join(", ")),
        }
    }

    pub(super) fn upstreams(&self) -> watch::Receiver<BTreeMap<String, Upstreams>> {
        self.upstreams.subscribe()
    }

    pub(super) fn instances(&self) -> Vec<InstanceStatus> {
        self.status().into_iter().flat_map(|app| app.instances).collect()
    }

    pub(super) fn status(&self) -> Vec<AppStatus> {
        let running = self.running().clone();
        running
            .iter()
            .map(|app| AppStatus { name: app.name.clone(), instances: app.supervisor.instances() })
            .collect()
    }

    fn running(&self) -> MutexGuard<'_, Vec<App>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Option<App> {
        self.running().iter().find(|app| app.name == name).cloned()
    }

    fn named(&self, name: &str) -> Result<App> {
        self.find(name)
            .with_context(|| format!("no app is called {name:?}; there is {}", self.names().join(", ")))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.running().iter().map(|app| app.name.clone()).collect()
    }

    /// The app that is meant when none is named: the only one that takes requests, or the only one.
    fn only(&self) -> Result<App> {
        let running = self.running().clone();
        let takers: Vec<_> = running.iter().filter(|app| app.takes_requests).collect();
        match (&takers[..], &running[..]) {
            ([only], _) => Ok((*only).clone()),
            ([], [only]) => Ok(only.clone()),
            _ => bail!("say which app: there is {}", self.names().join(", ")),
        }
    }
}

/// Replaces the app's instances whenever one of its files changes.
fn watch(planned: &PlannedApp, supervisor: &Arc<Supervisor>) -> Result<Option<Arc<AbortOnDropHandle<()>>>> {
    if planned.watch.is_empty() {
        return Ok(None);
    }
    let config = WatchConfig { paths: planned.watch.clone(), ..WatchConfig::default() };
    let mut files =
        FileWatch::start(&config).with_context(|| format!("cannot watch the files of {}", planned.name()))?;
    let (name, supervisor) = (planned.name().to_owned(), Arc::downgrade(supervisor));
    let watch = tokio::spawn(async move {
        while let Some(changed) = files.changed().await
            && let Some(supervisor) = supervisor.upgrade()
        {
            let file = changed.first().map(|file| file.display().to_string()).unwrap_or_default();
            info!("{file} has changed; {name} is reloaded");
            if let Err(error) = supervisor.reload().await {
                error!("{error}");
            }
        }
    });
    Ok(Some(Arc::new(AbortOnDropHandle::new(watch))))
}

/// Copies an app's list into that of all.
async fn follow(
    name: String,
    mut list: watch::Receiver<Upstreams>,
    all: Arc<watch::Sender<BTreeMap<String, Upstreams>>>,
) {
    while list.changed().await.is_ok() {
        let now = list.borrow_and_update().clone();
        all.send_modify(|all| {
            // It may just have been removed.
            if let Some(entry) = all.get_mut(&name) {
                *entry = now;
            }
        });
    }
}
