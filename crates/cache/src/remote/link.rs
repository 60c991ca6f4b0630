//! The connection to the remote, and the task that keeps it.
//!
//! One task connects, and connects again, with pauses between; it asks every now and then whether the other end is
//! still there, and repeats what it may have missed before anybody reads. Readers take the connection that is there,
//! or go on without: they wait for the very first one only.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{ErrorKind, PushInfo, PushKind, RedisError, RedisResult};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    coherence::Coherence,
    connection::{self, Connection, Name},
    failure::Failure,
    hearing::Hearers,
    recovery::{Batch, Missed, Repeat},
    target::Target,
};
use crate::{CoherenceMode, RemoteConfig, telemetry::REMOTE_TARGET};

/// How many changes are repeated at a time.
const REPEATED_AT_ONCE: usize = 512;

/// How much longer than `retry_after` the pauses between attempts become.
const LONGEST_PAUSE: u32 = 3;

pub(super) struct Link {
    pub(super) target: Target,
    pub(super) config: RemoteConfig,
    pub(super) coherence: Arc<Coherence>,
    pub(super) hearers: Hearers,
    pub(super) prefix: String,
    line: Mutex<Line>,
    /// The first attempt to connect has ended.
    tried: Notify,
    /// For the task: something has happened to the connection.
    wake: Notify,
    tracking_refused: AtomicBool,
}

struct Line {
    state: State,
    missed: Missed,
    /// How many sessions there were.
    sessions: u64,
    /// What the server called the last one.
    name: Option<Name>,
    task: Option<AbortHandle>,
    /// The log says that the remote is away.
    is_away: bool,
}

enum State {
    /// Nobody has needed it yet, or the runtime of the task that kept it has ended.
    Idle,
    /// For the first time: readers wait for it.
    Connecting,
    Down,
    /// An answer was late. Nobody asks more until the task knows whether others come.
    Doubted(Session),
    Up(Session),
}

#[derive(Clone)]
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) connection: Connection,
    hears: bool,
}

impl Link {
    pub(super) fn new(target: Target, config: RemoteConfig) -> Link {
        let line = Line {
            state: State::Idle,
            missed: Missed::default(),
            sessions: 0,
            name: None,
            task: None,
            is_away: false,
        };
        Link {
            target,
            coherence: Arc::new(Coherence::new(config.untracked_ttl)),
            prefix: match config.namespace.as_str() {
                "" => String::new(),
                namespace => format!("{namespace}:"),
            },
            config,
            hearers: Hearers::default(),
            line: Mutex::new(line),
            tried: Notify::new(),
            wake: Notify::new(),
            tracking_refused: AtomicBool::new(false),
        }
    }

    /// Does `work` with the connection, within the timeout, if there is one.
    pub(super) async fn exchange<T, F>(
        self: &Arc<Link>,
        work: impl FnOnce(Session) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let (session, limit) = match self.look() {
            Some(looked) => (looked?, self.config.timeout),
            None => self.first().await?,
        };
        let number = session.number;
        match timeout(limit, work(session)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let failure = Failure::of(error);
                if let Failure::Broken(_) = failure {
                    self.give_up(number, Instant::now(), &failure);
                }
                Err(failure)
            }
            Err(_) => {
                self.doubt(number);
                Err(Failure::TimedOut(self.config.timeout))
            }
        }
    }

    /// The same for a change without which the remote must not be read. Says whether nothing is left to do.
    pub(super) async fn insist<F>(self: &Arc<Link>, work: impl FnOnce(Session) -> F) -> bool
    where
        F: Future<Output = RedisResult<()>>,
    {
        let mut number = 0;
        let work = |session: Session| {
            number = session.number;
            work(session)
        };
        match self.exchange(work).await {
            Ok(()) => true,
            Err(failure) if failure.is_lasting() => {
                self.refused(&failure, 1);
                true
            }
            Err(failure) => {
                if let Failure::Refused(_) = failure {
                    self.give_up(number, Instant::now(), &failure);
                }
                false
            }
        }
    }

    /// The session, if there is one; nothing if it is worth waiting for one.
    fn look(self: &Arc<Link>) -> Option<Result<Session, Failure>> {
        let mut line = self.line();
        match &line.state {
            State::Up(session) => Some(Ok(session.clone())),
            State::Connecting => None,
            State::Down | State::Doubted(_) => Some(Err(Failure::Skipped)),
            // Started by its first user rather than by `connect`: a remote may be made outside any runtime, or outlive
            // the one that ran its task.
            State::Idle => {
                let Ok(runtime) = Handle::try_current() else { return Some(Err(Failure::Skipped)) };
                line.state = State::Connecting;
                line.task = Some(runtime.spawn(Keeper(Arc::clone(self)).run()).abort_handle());
                None
            }
        }
    }

    /// The first session, and what is left of the timeout when it is there.
    #[cold]
    async fn first(self: &Arc<Link>) -> Result<(Session, Duration), Failure> {
        let (limit, begun) = (self.config.timeout, Instant::now());
        let wait = async {
            loop {
                let mut tried = pin!(self.tried.notified());
                tried.as_mut().enable();
                match self.look() {
                    Some(looked) => return looked,
                    None => tried.await,
                }
            }
        };
        match timeout(limit, wait).await {
            Ok(session) => Ok((session?, limit.saturating_sub(begun.elapsed()))),
            Err(_) => {
                self.attempt_failed(&Failure::TimedOut(limit));
                Err(Failure::TimedOut(limit))
            }
        }
    }

    /// Notes a change of `key` before it is made, in case it will have to be repeated.
    pub(super) fn note(&self, key: &[u8], repeat: Repeat) -> u64 {
        self.line().missed.note(key, repeat)
    }

    pub(super) fn confirmed(&self, key: &[u8], number: u64) {
        self.line().missed.strike_out(key, number);
    }

    /// An answer did not come in time.
    fn doubt(&self, number: u64) {
        let mut line = self.line();
        if let State::Up(session) = &line.state
            && session.number == number
        {
            line.state = State::Doubted(session.clone());
            drop(line);
            self.wake.notify_one();
        }
    }

    /// Ends a session, of which nothing was heard since then.
    pub(super) fn give_up(&self, number: u64, since: Instant, failure: &Failure) {
        let mut line = self.line();
        match &line.state {
            State::Up(session) | State::Doubted(session) if session.number == number => {}
            _ => return,
        }
        // No reader finds the old connection any more when the next epoch begins: what is read in an epoch is read on
        // its own connection.
        let old = std::mem::replace(&mut line.state, State::Down);
        self.coherence.lose(since);
        let is_news = !std::mem::replace(&mut line.is_away, true);
        drop(line);
        drop(old);
        self.wake.notify_one();
        if is_news {
            tracing::warn!(
                target: REMOTE_TARGET, address = %self.target, error = %failure,
                "the connection to the cache's remote was lost; going on without it",
            );
        }
    }

    fn attempt_failed(&self, failure: &Failure) {
        let mut line = self.line();
        if matches!(line.state, State::Up(_) | State::Doubted(_)) {
            return;
        }
        line.state = State::Down;
        let is_news = !std::mem::replace(&mut line.is_away, true);
        drop(line);
        self.tried.notify_waiters();
        if is_news {
            tracing::warn!(
                target: REMOTE_TARGET, address = %self.target, error = %failure,
                "the cache's remote does not answer; going on without it",
            );
        }
    }

    /// Ends the task. For when the last user is gone.
    pub(super) fn end(&self) {
        if let Some(task) = self.line().task.take() {
            task.abort();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task.
struct Keeper(Arc<Link>);

impl Keeper {
    async fn run(self) {
        let link = &self.0;
        let mut pause = Duration::ZERO;
        loop {
            match timeout(link.patience(), link.open()).await {
                Ok(Ok(number)) => {
                    let begun = Instant::now();
                    link.keep(number).await;
                    // One that lasts is replaced at once. One that does not would be replaced without end.
                    if begun.elapsed() >= link.config.retry_after {
                        pause = Duration::ZERO;
                        continue;
                    }
                }
                Ok(Err(failure)) => link.attempt_failed(&failure),
                Err(_) => link.attempt_failed(&Failure::TimedOut(link.patience())),
            }
            let retry_after = link.config.retry_after.max(Duration::from_millis(1));
            let longest = retry_after.saturating_mul(LONGEST_PAUSE);
            pause = pause.saturating_mul(2).clamp(retry_after, longest);
            // Many processes lose a server at the same time; they should not all come back at the same time.
            sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
    }
}

// A session whose runtime ends would be one that nobody keeps.
impl Drop for Keeper {
    fn drop(&mut self) {
        let link = &self.0;
        let mut line = link.line();
        let old = std::mem::replace(&mut line.state, State::Idle);
        link.coherence.lose(Instant::now());
        drop(line);
        drop(old);
        link.tried.notify_waiters();
    }
}

impl Link {
    /// How long connecting may take. Longer than a reader's patience, for none waits; a server that comes back from a
    /// pause then answers what it was asked during the pause.
    fn patience(&self) -> Duration {
        self.config.timeout.saturating_mul(4).max(Duration::from_millis(500))
    }

    /// Connects, repeats what was missed, and lets readers in.
    async fn open(self: &Arc<Link>) -> Result<u64, Failure> {
        let number = {
            let mut line = self.line();
            line.sessions += 1;
            line.sessions
        };
        let gone = Arc::new(AtomicBool::new(false));
        let push = self.listener(number, &gone);
        let Target::Single(info) = &self.target else { return Err(Failure::Skipped) };
        let (mut single, speaks) = connection::open(info, push).await?;
        let name = connection::introduce(&mut single).await?;
        let hears = match self.config.coherence {
            CoherenceMode::Tracking => speaks && self.track(&mut single).await?,
            CoherenceMode::Published | CoherenceMode::Off => false,
        };
        let session = Session { number, connection: Connection::Single(single), hears };
        let mut is_first = true;
        loop {
            let missed = {
                let mut line = self.line();
                let missed = line.missed.waiting(Duration::ZERO);
                if missed.is_empty() {
                    // The end of the connection is told to whoever has this lock next, or was noted before.
                    if gone.load(Ordering::SeqCst) {
                        let what = "the server closed the connection";
                        return Err(Failure::of(RedisError::from((ErrorKind::Io, what))));
                    }
                    return Ok(self.let_in(&mut line, session, name));
                }
                missed
            };
            let before = if is_first { self.line().name.take() } else { None };
            is_first = false;
            if let Some(name) = before {
                connection::end(&mut session.connection.clone(), &name).await;
            }
            self.repeat(&session, missed).await?;
        }
    }

    fn let_in(&self, line: &mut Line, session: Session, name: Option<Name>) -> u64 {
        let number = session.number;
        if session.hears {
            self.coherence.hear();
        }
        line.name = name;
        line.state = State::Up(session);
        self.tried.notify_waiters();
        if std::mem::replace(&mut line.is_away, false) {
            tracing::info!(target: REMOTE_TARGET, address = %self.target, "the cache's remote answers again");
        }
        number
    }

    /// What is to be done with what the server says unasked.
    fn listener(
        self: &Arc<Link>,
        number: u64,
        gone: &Arc<AtomicBool>,
    ) -> impl Fn(PushInfo) + Send + Sync + 'static {
        let (link, gone) = (Arc::downgrade(self), Arc::clone(gone));
        move |push| {
            let Some(link) = link.upgrade() else { return };
            match push.kind {
                PushKind::Invalidate => link.hearers.invalidated(&link.coherence, &push.data),
                PushKind::Disconnection => {
                    gone.store(true, Ordering::SeqCst);
                    let error = RedisError::from((ErrorKind::Io, "the server closed the connection"));
                    link.give_up(number, Instant::now(), &Failure::Broken(error));
                }
                _ => {}
            }
        }
    }

    /// Asks to be told of changes of what is read on this connection.
    async fn track(&self, connection: &mut redis::aio::MultiplexedConnection) -> Result<bool, Failure> {
        let command = redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP").take();
        let Err(error) = connection.send_packed_command(&command).await?.extract_error() else {
            return Ok(true);
        };
        match Failure::of(error) {
            Failure::Refused(error) => {
                if !self.tracking_refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        target: REMOTE_TARGET, address = %self.target, %error,
                        "the cache's remote refuses client tracking",
                    );
                }
                Ok(false)
            }
            failure => Err(failure),
        }
    }

    /// Returns when the session has been given up.
    async fn keep(&self, number: u64) {
        // What a dead connection hides must not be hidden for longer than what a lost one does.
        let beat = (self.config.untracked_ttl / 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
        let mut beat = interval(beat);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut alive = Instant::now();
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                _ = beat.tick() => {}
            }
            let session = match &self.line().state {
                State::Up(session) | State::Doubted(session) if session.number == number => session.clone(),
                _ => return,
            };
            let asked = Instant::now();
            match self.probe(session).await {
                Ok(()) => alive = asked,
                Err(failure) => return self.give_up(number, alive, &failure),
            }
        }
    }

    /// Whether the session is good: then it is no longer doubted.
    async fn probe(&self, session: Session) -> Result<(), Failure> {
        let limit = self.config.timeout;
        let mut connection = session.connection.clone();
        let ping = redis::cmd("PING");
        timeout(limit, connection.send(&ping)).await.map_err(|_| Failure::TimedOut(limit))??;
        loop {
            let missed = {
                let mut line = self.line();
                // Younger ones are on their way, unless nothing was sent because it was doubted.
                let is_doubted = matches!(line.state, State::Doubted(_));
                let missed = line.missed.waiting(if is_doubted { Duration::ZERO } else { limit });
                if missed.is_empty() {
                    if let State::Doubted(session) = &line.state {
                        line.state = State::Up(session.clone());
                    }
                    return Ok(());
                }
                missed
            };
            let repeat = self.repeat(&session, missed);
            timeout(self.patience(), repeat).await.map_err(|_| Failure::TimedOut(self.patience()))??;
        }
    }

    async fn repeat(&self, session: &Session, missed: Batch) -> Result<(), Failure> {
        if let Some(number) = missed.overflowed {
            session.connection.clone().send_all(&self.hearers.clearing()).await?;
            self.hearers.tell(&self.coherence, None);
            self.line().missed.cleared(number);
        }
        for changes in missed.changes.chunks(REPEATED_AT_ONCE) {
            let repeats: Vec<_> = changes.iter().map(|(key, repeat, _)| (key.as_slice(), repeat)).collect();
            match session.connection.clone().repeat(&repeats).await.map_err(Failure::of) {
                Err(failure) if failure.is_lasting() => self.refused(&failure, changes.len()),
                repeated => repeated?,
            }
            for (key, _, number) in changes {
                self.confirmed(key, *number);
                self.hearers.tell(&self.coherence, Some(key));
            }
        }
        Ok(())
    }

    fn refused(&self, failure: &Failure, changes: usize) {
        tracing::warn!(
            target: REMOTE_TARGET, address = %self.target, error = %failure, changes,
            "the cache's remote refuses to forget; its entries may be served until their TTL ends",
        );
    }
}
