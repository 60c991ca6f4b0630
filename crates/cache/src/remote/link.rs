//! The connection to the remote, as those who use it see it: it is there, or they go on without. They wait for the very
//! first one only.

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use redis::RedisResult;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{
    coherence::Coherence,
    connection::Ends,
    failure::Failure,
    hearing::Hearers,
    keeper::Keeper,
    recovery::{Missed, Repeat},
    session::Session,
    target::Target,
};
use crate::{RemoteConfig, telemetry::REMOTE_TARGET};

tokio::task_local! {
    /// When all is to be answered that a read asks, lest a slow remote cost its timeout several times.
    static DEADLINE: Cell<Option<Instant>>;
}

/// What `work` asks of a remote it asks until `deadline`.
pub(super) async fn until<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> T {
    DEADLINE.scope(Cell::new(deadline), work).await
}

/// The work has waited for something else than the remote's answers.
pub(super) fn set_deadline(deadline: Option<Instant>) {
    // Whose work has none needs no other.
    let _ = DEADLINE.try_with(|old| old.set(deadline));
}

/// What is left of `limit`, if anything.
fn left_of(limit: Duration) -> Option<Duration> {
    match DEADLINE.try_with(Cell::get) {
        Ok(Some(deadline)) => {
            let left = limit.min(deadline.saturating_duration_since(Instant::now()));
            (!left.is_zero()).then_some(left)
        }
        _ => Some(limit),
    }
}

pub(super) struct Link {
    pub(super) target: Target,
    pub(super) config: RemoteConfig,
    pub(super) coherence: Arc<Coherence>,
    pub(super) hearers: Hearers,
    pub(super) prefix: String,
    line: Mutex<Line>,
    /// The state is one of those that are there to stay: nobody need wait for another.
    pub(super) settled: Notify,
    /// For the task: something has happened to the connection.
    pub(super) wake: Notify,
    /// The log says that changes cannot be heard as they should.
    pub(super) is_deaf: AtomicBool,
}

pub(super) struct Line {
    pub(super) state: State,
    pub(super) missed: Missed,
    /// How many sessions there were.
    pub(super) sessions: u64,
    /// Of the last one.
    pub(super) ends: Ends,
    task: Option<AbortHandle>,
    /// The log says that the remote is away.
    pub(super) is_away: bool,
}

pub(super) enum State {
    /// Nobody has needed it yet, or the runtime of the task that kept it has ended.
    Idle,
    /// For the first time: readers wait for it.
    Connecting,
    Down,
    /// An answer was late. Nobody asks more until the task knows whether others come.
    Doubted(Session),
    Up(Session),
}

impl Link {
    pub(super) fn new(target: Target, config: RemoteConfig) -> Link {
        let line = Line {
            state: State::Idle,
            missed: Missed::default(),
            sessions: 0,
            ends: Ends::default(),
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
            settled: Notify::new(),
            wake: Notify::new(),
            is_deaf: AtomicBool::new(false),
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
            None => Box::pin(self.first()).await?,
        };
        let limit = left_of(limit).ok_or(Failure::Skipped)?;
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
                Err(Failure::TimedOut(limit))
            }
        }
    }

    /// The same for a change without which the remote must not be read. What failed for good ([`Failure::is_lasting`])
    /// is as good as done.
    pub(super) async fn insist<F>(self: &Arc<Link>, work: impl FnOnce(Session) -> F) -> Result<(), Failure>
    where
        F: Future<Output = RedisResult<()>>,
    {
        // An answer that was late is no reason to leave an old value there.
        let _ =
            timeout(self.config.timeout, self.wait_while(|state| matches!(state, State::Doubted(_)))).await;
        let mut number = 0;
        let work = |session: Session| {
            number = session.number;
            work(session)
        };
        self.exchange(work).await.inspect_err(|failure| match failure {
            failure if failure.is_lasting() => self.refused(failure, 1),
            Failure::Refused(_) => self.give_up(number, Instant::now(), failure),
            _ => {}
        })
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
        match timeout(limit, self.wait_while(|state| matches!(state, State::Connecting))).await {
            Ok(()) => {
                let session = self.look().unwrap_or(Err(Failure::Skipped))?;
                Ok((session, limit.saturating_sub(begun.elapsed())))
            }
            Err(_) => {
                self.attempt_failed(&Failure::TimedOut(limit));
                Err(Failure::TimedOut(limit))
            }
        }
    }

    async fn wait_while(&self, is_passing: impl Fn(&State) -> bool) {
        loop {
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            if !is_passing(&self.line().state) {
                return;
            }
            settled.await;
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
    pub(super) fn doubt(&self, number: u64) {
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
        self.settled.notify_waiters();
        self.wake.notify_one();
        if is_news {
            tracing::warn!(
                target: REMOTE_TARGET, address = %self.target, error = %failure,
                "the connection to the cache's remote was lost; going on without it",
            );
        }
    }

    pub(super) fn attempt_failed(&self, failure: &Failure) {
        let mut line = self.line();
        if matches!(line.state, State::Up(_) | State::Doubted(_)) {
            return;
        }
        line.state = State::Down;
        let is_news = !std::mem::replace(&mut line.is_away, true);
        drop(line);
        self.settled.notify_waiters();
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

    pub(super) fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refused(&self, failure: &Failure, changes: usize) {
        tracing::warn!(
            target: REMOTE_TARGET, address = %self.target, error = %failure, changes,
            "the cache's remote refuses to forget; its entries may be served until their TTL ends",
        );
    }
}
