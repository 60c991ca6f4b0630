//! What the clones of a pool share.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::timeout,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{
    connect::Diagnosis,
    connector::Connector,
    health::{Health, Ping},
    holds::{Holds, Site},
    native::Native,
};
use crate::{PoolConfig, telemetry};

/// How long a goodbye to the server may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// An open connection.
pub(super) struct Live {
    pub(super) connection: PgConnection,
    /// The server's process behind it, to cancel its statement by.
    pub(super) pid: i32,
    pub(super) expires: Instant,
    /// When it was last given back.
    pub(super) idle_since: Instant,
}

pub(super) struct Inner {
    pub(super) config: PoolConfig,
    pub(super) server: Arc<str>,
    pub(super) options: PgConnectOptions,
    /// One for each connection that may be in use; fair. Leases forget theirs and add it back.
    pub(super) permits: Semaphore,
    pub(super) waiting: AtomicUsize,
    state: Mutex<State>,
    pub(super) health: Health,
    pub(super) connector: Connector,
    pub(super) diagnosis: Diagnosis,
    /// How many cancels may be under way at once, each through a connection beside the pool.
    pub(super) cancels: Semaphore,
    given_back: Notify,
    runtime: Handle,
    tasks: TaskTracker,
    /// Ends with the pool.
    pub(super) reaper: std::sync::OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct State {
    /// The last one given back is the first to be used, so that a pool larger than needed shrinks.
    idle: Vec<Live>,
    /// Connections kept for transactions of sqlx's own type.
    natives: Vec<Native>,
    holds: Holds,
    closed: bool,
}

impl Inner {
    pub(super) fn new(
        config: PoolConfig,
        options: PgConnectOptions,
        server: Arc<str>,
        runtime: Handle,
    ) -> Self {
        Self {
            permits: Semaphore::new(config.max_connections as usize),
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
            health: Health::new(&config),
            connector: Connector::new(options.clone(), config.max_lifetime),
            diagnosis: Diagnosis::new(options.clone(), config.connection_timeout),
            cancels: Semaphore::new(2),
            given_back: Notify::new(),
            tasks: TaskTracker::new(),
            reaper: std::sync::OnceLock::new(),
            config,
            server,
            options,
            runtime,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn needs_check(&self, live: &Live) -> bool {
        live.expires <= Instant::now() || self.health.needs_ping(live.idle_since.elapsed())
    }

    /// A slot, and a connection if the one last used needs no check: the common way takes the lock once.
    pub(super) fn begin_hold(&self, site: Site, with_connection: bool) -> (usize, Option<Live>) {
        let mut state = self.state();
        let slot = state.holds.begin(site);
        let live = state.idle.pop_if(|live| with_connection && !self.needs_check(live));
        (slot, live)
    }

    /// Gives back a slot with its permit, and the connection, if it is to be used again.
    pub(super) fn end_hold(&self, slot: usize, live: Option<Live>) {
        let mut state = self.state();
        let held = state.holds.end(slot);
        let mut live = live;
        if !state.closed
            && let Some(mut live) = live.take()
        {
            live.idle_since = Instant::now();
            state.idle.push(live);
        }
        let closed = state.closed;
        drop(state);
        self.permits.add_permits(1);
        telemetry::held(held);
        if closed {
            if let Some(live) = live {
                self.say_goodbye(live);
            }
            self.given_back.notify_waiters();
        }
    }

    /// An idle connection that is alive.
    pub(super) async fn revive(&self) -> Option<Live> {
        loop {
            let mut live = self.state().idle.pop()?;
            if live.expires <= Instant::now() {
                self.say_goodbye(live);
                continue;
            }
            if !self.health.needs_ping(live.idle_since.elapsed()) {
                return Some(live);
            }
            match self.health.ping(&mut live.connection).await {
                Ping::Alive => return Some(live),
                Ping::Broken => {}
                // The others went the same way; to wait for each would use up the caller's time.
                Ping::Silent => drop(std::mem::take(&mut self.state().idle)),
            }
        }
    }

    pub(super) fn say_goodbye(&self, live: Live) {
        self.spawn(async move {
            let _ = timeout(GOODBYE, live.connection.close()).await;
        });
    }

    /// Called by one who is about to open a connection in the right of a lease: keeps the sum within the limit.
    pub(super) fn make_room(&self) {
        let mut state = self.state();
        let open = state.idle.len() + state.natives.len() + state.holds.count();
        if open <= self.config.max_connections as usize {
            return;
        }
        let (oldest, native) = match state.idle.is_empty() {
            true => (None, state.natives.pop()),
            false => (Some(state.idle.remove(0)), None),
        };
        drop(state);
        drop(native);
        if let Some(oldest) = oldest {
            self.say_goodbye(oldest);
        }
    }

    /// Whether another connection should be opened for `min_idle`.
    pub(super) fn wants_another(&self) -> bool {
        let state = self.state();
        let idle = state.idle.len();
        let open = idle + state.natives.len() + state.holds.count();
        !state.closed && idle < self.config.min_idle as usize && open < self.config.max_connections as usize
    }

    pub(super) fn take_native(&self) -> Option<Native> {
        self.state().natives.pop()
    }

    pub(super) fn keep_native(&self, native: Native) {
        let mut state = self.state();
        if !state.closed {
            state.natives.push(native);
        }
    }

    pub(super) fn in_use(&self) -> usize {
        self.state().holds.count()
    }

    pub(super) fn num_idle(&self) -> usize {
        let state = self.state();
        state.idle.len() + state.natives.len()
    }

    pub(super) fn longest_held(&self) -> Vec<crate::Holder> {
        self.state().holds.longest()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// One round of the reaper: warns of long holds, closes what was unused or lives too long.
    pub(super) fn tidy(&self) {
        let PoolConfig { idle_timeout, min_idle, max_hold, .. } = self.config;
        let now = Instant::now();
        let mut closing = Vec::new();
        let mut state = self.state();
        let overdue = state.holds.overdue(max_hold);
        // The longest unused lie at the bottom.
        let mut spare = state.idle.len().saturating_sub(min_idle as usize);
        closing.extend(state.idle.extract_if(.., |live| {
            let unused = spare > 0 && now.duration_since(live.idle_since) >= idle_timeout;
            spare -= usize::from(unused);
            unused || live.expires <= now
        }));
        let natives: Vec<_> = state
            .natives
            .extract_if(.., |native| now.duration_since(native.idle_since()) >= idle_timeout)
            .collect();
        let (idle, used) = (state.idle.len() + state.natives.len(), state.holds.count());
        drop(state);
        drop(natives);
        closing.into_iter().for_each(|live| self.say_goodbye(live));
        overdue.iter().for_each(telemetry::long_hold);
        telemetry::connections(idle, used, self.waiting());
    }

    /// Closes, and waits until all is given back.
    pub(super) async fn close(&self) {
        let (idle, natives) = {
            let mut state = self.state();
            state.closed = true;
            (std::mem::take(&mut state.idle), std::mem::take(&mut state.natives))
        };
        self.permits.close();
        drop(natives);
        idle.into_iter().for_each(|live| self.say_goodbye(live));
        loop {
            let given_back = self.given_back.notified();
            tokio::pin!(given_back);
            given_back.as_mut().enable();
            if self.in_use() == 0 {
                break;
            }
            given_back.await;
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}
