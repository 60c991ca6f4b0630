//! Everything that runs, and what may be done with it.

use std::{path::Path, process::id, sync::Arc};

use anyhow::{Result, bail};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{
    apps::Apps,
    arguments::Settings,
    edge_process::World,
    edges::{Edges, Served},
    listeners::Listeners,
    plan::{Plan, PlannedApp, prepare_shop},
};
use crate::{
    config::Config,
    control::{Status, VERSION},
    log::Log,
};

/// The edge and the apps behind it; dropping it kills them.
pub(super) struct Running {
    settings: Settings,
    pub apps: Arc<Apps>,
    pub edges: Edges,
    // Held by a reload: they take turns.
    reloading: Mutex<()>,
    /// Asks for the end.
    pub stop: CancellationToken,
    /// The end.
    pub stopped: CancellationToken,
}

impl Running {
    /// Starts everything and returns at once. `paths` are the folder for sockets, and the control socket.
    pub(super) fn start(
        settings: Settings,
        config: Config,
        plan: &Plan,
        listeners: Listeners,
        (folder, control): (&Path, &Path),
        log: Log,
    ) -> Result<Running> {
        let apps = Arc::new(Apps::new(folder.into(), log));
        apps.start(&plan.apps)?;
        let (of_apps, releasing) = (Arc::clone(&apps), Arc::clone(&apps));
        let world = World { upstreams: apps.upstreams(), instances: Arc::new(move || of_apps.instances()) };
        let release = Box::new(move |address| releasing.released(address));
        let edges = Edges::start(
            Served::new(config, plan),
            listeners,
            world,
            (folder.into(), control.into()),
            release,
        )?;
        let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
        Ok(Running { settings, apps, edges, reloading: Mutex::default(), stop, stopped })
    }

    /// Waits until everything is ready; the error holds the last lines of what is not.
    pub(super) async fn ready(&self, plan: &Plan) -> Result<()> {
        self.edges.ready().await?;
        for app in &plan.apps {
            self.apps.ready(app).await?;
        }
        Ok(())
    }

    pub(super) fn status(&self) -> Status {
        Status { version: VERSION, pid: id(), edge: self.edges.status(), apps: self.apps.status() }
    }

    /// Reads the config again and replaces what runs by it: the edge, one app, or everything. Fails before anything is
    /// changed when the config is wrong, and stops at what does not become ready.
    pub(super) async fn reload(&self, edge: bool, app: Option<&str>) -> Result<()> {
        let _turn = self.reloading.lock().await;
        let config = self.settings.load()?;
        let plan = Plan::new(&config)?;
        if edge {
            return self.edges.replace(Served::new(config, &plan)).await;
        }
        let Some(name) = app else { return self.reload_all(config, &plan).await };
        match plan.apps.iter().find(|app| app.name() == name) {
            Some(planned) => self.apps.roll(planned).await,
            None => bail!("no app is called {name:?}"),
        }
    }

    async fn reload_all(&self, config: Config, plan: &Plan) -> Result<()> {
        if config.runs_shop() {
            prepare_shop(&config).await?;
        }
        let names: Vec<&str> = plan.apps.iter().map(PlannedApp::name).collect();
        let before = self.apps.names();
        let (old, new): (Vec<_>, Vec<_>) =
            plan.apps.iter().partition(|app| before.iter().any(|name| name == app.name()));
        // The new edge is told of new apps; the old one would have nobody to send their requests to.
        self.apps.start(new.iter().copied())?;
        if let Err(error) = self.edges.replace(Served::new(config, plan)).await {
            self.apps.keep_only(&before).await;
            return Err(error);
        }
        for app in &new {
            self.apps.ready(app).await?;
        }
        for app in &old {
            self.apps.roll(app).await?;
            info!("{} is replaced", app.name());
        }
        if before.iter().any(|name| !names.contains(&name.as_str())) {
            // The old edge may still have requests there.
            self.edges.drained().await;
            self.apps.keep_only(&names).await;
        }
        Ok(())
    }

    /// Finishes all requests, then ends everything.
    pub(super) async fn shutdown(&self) {
        self.edges.stop().await;
        self.apps.shutdown().await;
    }
}
