//! What the clones of a pool share.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, oneshot},
    time::timeout,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::{
    connect::Diagnosis,
    connector::Connector,
    health::{Health, Ping},
    holds::{Holds, Site},
    lease::Lease,
    limit::Alarm,
    native::Native,
    queue::{Next, Queue, Turn},
};
use crate::{Error, PoolConfig, telemetry};

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
    pub(super) alarm: Alarm,
}

pub(super) struct Inner {
    pub(super) config: PoolConfig,
    pub(super) server: Arc<str>,
    pub(super) options: PgConnectOptions,
    state: Mutex<State>,
    /// Tells `keep_time` that somebody waits.
    pub(super) clock: Arc<Notify>,
    pub(super) health: Health,
    pub(super) connector: Connector,
    pub(super) diagnosis: Diagnosis,
    /// How many cancels may be under way at once, each through a connection beside the pool.
    pub(super) cancels: Semaphore,
    given_back: Notify,
    runtime: Handle,
    tasks: TaskTracker,
    /// Ends with the pool.
    pub(super) keepers: OnceLock<[AbortOnDropHandle<()>; 2]>,
}

#[derive(Default)]
struct State {
    /// The last one given back is the first to be used, so that a pool larger than needed shrinks.
    idle: Vec<Live>,
    /// Connections kept for transactions of sqlx's own type.
    natives: Vec<Native>,
    holds: Holds,
    /// Empty unless `max_connections` are in use.
    queue: Queue,
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
            state: Mutex::default(),
            clock: Arc::default(),
            health: Health::new(&config),
            connector: Connector::new(options.clone(), config.max_lifetime),
            diagnosis: Diagnosis::new(options.clone(), config.connection_timeout),
            cancels: Semaphore::new(2),
            given_back: Notify::new(),
            tasks: TaskTracker::new(),
            keepers: OnceLock::new(),
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

    fn needs_check(&self, live: &Live, now: Instant) -> bool {
        live.expires <= now || self.health.needs_ping(now.duration_since(live.idle_since))
    }

    /// A lease, if one is free and nobody waits for it; else a place in the queue. If `with_connection`, the lease has
    /// the connection last used if that needs no check: the common way takes the lock once.
    pub(super) fn begin_hold(
        self: Arc<Self>,
        site: Site,
        with_connection: bool,
        now: Instant,
        deadline: Instant,
    ) -> Result<Result<Lease, oneshot::Receiver<Turn>>, Error> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::Closed);
        }
        if state.holds.count() == self.config.max_connections as usize {
            return Ok(Err(state.queue.join(site, with_connection, deadline, &self.clock)));
        }
        let slot = state.holds.begin(site, now);
        let live = state.idle.pop_if(|live| with_connection && !self.needs_check(live, now));
        drop(state);
        Ok(Ok(Lease::new(self, slot, live, now)))
    }

    /// Gives back a slot, and the connection, if it is to be used again: to the first who waits, if anybody does.
    pub(super) fn end_hold(self: Arc<Self>, slot: usize, live: Option<Live>) {
        let now = Instant::now();
        let mut state = self.state();
        let mut live = live;
        if !state.closed
            && let Some(mut live) = live.take()
        {
            live.idle_since = now;
            state.idle.push(live);
        }
        let Some(Next { site, with_connection, turn }) = state.queue.next() else {
            let held = state.holds.end(slot, now);
            let closed = state.closed;
            drop(state);
            telemetry::held(held);
            if closed {
                live.into_iter().for_each(|live| self.say_goodbye(live));
                self.given_back.notify_waiters();
            }
            return;
        };
        let held = state.holds.hand_on(slot, site, now);
        let live = state.idle.pop_if(|live| with_connection && !self.needs_check(live, now));
        drop(state);
        telemetry::held(held);
        // Comes back, and goes on to the next, if this one has just left.
        let _ = turn.send(Ok(Lease::new(self, slot, live, now)));
    }

    /// Sends away those whose time is up, and says when to look again.
    pub(super) fn send_away(&self, now: Instant) -> Option<Instant> {
        let (late, next) = self.state().queue.take_late(now);
        for (turn, waiting) in late {
            // Or it has gone by itself.
            let _ = turn.send(Err(waiting));
        }
        next
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
                Ping::Silent => {
                    // Closed only once the lock is free.
                    let idle = std::mem::take(&mut self.state().idle);
                    drop(idle);
                }
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

    /// A lease for another connection, if one should be opened for `min_idle`.
    pub(super) fn begin_another(self: &Arc<Self>) -> Option<Lease> {
        let now = Instant::now();
        let mut state = self.state();
        let idle = state.idle.len();
        let open = idle + state.natives.len() + state.holds.count();
        let wanted = idle < self.config.min_idle as usize && open < self.config.max_connections as usize;
        (wanted && !state.closed)
            .then(|| state.holds.begin(Site::Pool, now))
            .map(|slot| Lease::new(Arc::clone(self), slot, None, now))
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
        let longest = self.state().holds.longest();
        longest.into_iter().map(crate::Holder::from).collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.state().queue.len()
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
        let waiting = state.queue.len();
        drop(state);
        drop(natives);
        closing.into_iter().for_each(|live| self.say_goodbye(live));
        overdue.into_iter().for_each(|held| telemetry::long_hold(&held.into()));
        telemetry::connections(idle, used, waiting);
    }

    /// Closes what is unused, and sends away who waits.
    pub(super) fn shut(&self) {
        let (idle, natives, queue) = {
            let mut state = self.state();
            state.closed = true;
            let State { idle, natives, queue, .. } = &mut *state;
            (std::mem::take(idle), std::mem::take(natives), std::mem::take(queue))
        };
        drop((natives, queue));
        idle.into_iter().for_each(|live| self.say_goodbye(live));
    }

    /// Closes, and waits until all is given back.
    pub(super) async fn close(&self) {
        self.shut();
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

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Wake},
    };

    use super::*;

    /// Runs what it wakes at once, as tokio's does not, and counts how often the pool's lock was free for that.
    struct AtOnce(Arc<Inner>, AtomicUsize);

    impl Wake for AtOnce {
        fn wake(self: Arc<Self>) {
            self.1.fetch_add(usize::from(self.0.state.try_lock().is_ok()), Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn who_is_sent_away_wakes_with_the_lock_free() -> Result<(), Error> {
        let config = PoolConfig { max_connections: 1, ..PoolConfig::default() };
        let (options, server) = (PgConnectOptions::new_without_pgpass(), Arc::from("server"));
        let inner = Arc::new(Inner::new(config, options, server, Handle::current()));
        let now = Instant::now();
        let begin = || Arc::clone(&inner).begin_hold(Site::Pool, false, now, now);
        let _lease = begin()?.ok().expect("the only connection is free");
        let turn = begin()?.err().expect("the only connection is held");
        let waker = Arc::new(AtOnce(Arc::clone(&inner), AtomicUsize::new(0)));
        let mut turn = pin!(turn);
        assert!(turn.as_mut().poll(&mut Context::from_waker(&Arc::clone(&waker).into())).is_pending());
        inner.send_away(now);
        assert_eq!(waker.1.load(Ordering::Relaxed), 1);
        Ok(())
    }
}
