//! What instances share, and what each of them is run with.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::log_book::LogBook;
use super::logs::Sink;
use super::notices::Folder;
use super::table::{Row, RowId, Table};
use super::{Env, Port, SupervisorConfig, env_file, sockets};
use crate::{Error, Health};

/// What instances share.
pub(super) struct Context {
    pub(super) env: Env,
    pub(super) sink: Sink,
    pub(super) wrapper: Vec<String>,
    /// Inherited by every instance, by name.
    pub(super) sockets: Vec<(String, OwnedFd)>,
    pub(super) table: Table,
    pub(super) book: LogBook,
    pub(super) notices: Folder,
    pub(super) tasks: TaskTracker,
    // Ends instances in order; and what is still there when nobody waits any more.
    pub(super) stop: CancellationToken,
    pub(super) kill: CancellationToken,
    /// Held by what changes the set of instances, so that there is one change at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    plan: Mutex<Arc<Plan>>,
}

impl Context {
    pub(super) fn new(
        plan: Plan,
        env: Env,
        sink: Sink,
        wrapper: Vec<String>,
        sockets: Vec<(String, OwnedFd)>,
    ) -> Arc<Self> {
        Arc::new(Self {
            env,
            sink,
            wrapper,
            sockets,
            table: Table::default(),
            book: LogBook::new(),
            notices: Folder::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            turn: tokio::sync::Mutex::default(),
            plan: Mutex::new(Arc::new(plan)),
        })
    }

    /// What an instance that is started anew gets.
    pub(super) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_plan(&self, plan: Arc<Plan>) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }
}

/// A configuration with all that it refers to, read once: an instance that crashes starts again as it was started.
pub(super) struct Plan {
    pub(super) config: SupervisorConfig,
    /// From the environment files and the configuration, later ones over earlier.
    pub(super) environment: Vec<(String, String)>,
}

impl Plan {
    pub(super) fn new(config: SupervisorConfig) -> Result<Self, Error> {
        config.check()?;
        let mut environment = Vec::new();
        for path in &config.env_files {
            environment.extend(env_file::read(path)?);
        }
        environment.extend(config.env.0.clone());
        Ok(Self { config, environment })
    }

    pub(super) fn with_instances(&self, instances: usize) -> Result<Self, Error> {
        let config = SupervisorConfig { instances, ..self.config.clone() };
        config.check()?;
        Ok(Self { config, environment: self.environment.clone() })
    }
}

/// One row's place: all that its processes are started with, from the first to the last.
pub(super) struct Seat {
    pub(super) context: Arc<Context>,
    pub(super) plan: Arc<Plan>,
    pub(super) id: RowId,
    pub(super) index: usize,
    pub(super) name: Arc<str>,
    pub(super) stop: CancellationToken,
    /// Where its processes listen, one after another, if they inherit the socket.
    pub(super) socket: Option<TcpListener>,
}

impl Seat {
    /// A new row for that slot; when it takes another's place, only once it is ready.
    pub(super) fn take(
        context: &Arc<Context>,
        plan: &Arc<Plan>,
        index: usize,
        replaces: Option<&Row>,
    ) -> Result<Arc<Self>, Error> {
        let inherits = plan.config.port == Port::Socket && plan.config.health != Health::None;
        let socket = inherits.then(sockets::listen).transpose().map_err(Error::Socket)?;
        let stop = context.stop.child_token();
        let mut row = Row::new(&plan.config.name, index, replaces.map(|old| old.id), stop.clone());
        row.restarts = replaces.map_or(0, |old| old.restarts.saturating_add(1));
        let (context, plan, id, name) =
            (Arc::clone(context), Arc::clone(plan), row.id, Arc::clone(&row.name));
        context.table.insert(row);
        Ok(Arc::new(Self { context, plan, id, index, name, stop, socket }))
    }
}
