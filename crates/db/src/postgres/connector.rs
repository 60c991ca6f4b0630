//! Opens connections: a few at a time, and with pauses when the server is in trouble.

use std::{
    hash::{BuildHasher, RandomState},
    io::ErrorKind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{ConnectOptions, Executor, PgConnection, Row, postgres::PgConnectOptions};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{
    inner::{Inner, Live},
    limit::alarm,
};

/// How many connections may be under way at once. A server that has just restarted gets no more than this, however
/// many callers wait.
const MAX_CONNECTING: usize = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Ten years.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a failure explains the failures of others.
const TROUBLE_HOLDS_FOR: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Connector {
    options: PgConnectOptions,
    max_lifetime: Duration,
    turns: Semaphore,
    trouble: Mutex<Option<Trouble>>,
}

/// The server could not be reached: since then, all who connect share the pauses.
#[derive(Clone)]
struct Trouble {
    pause: Duration,
    until: Instant,
    error: Arc<sqlx::Error>,
}

impl Connector {
    pub(super) fn new(options: PgConnectOptions, max_lifetime: Duration) -> Self {
        Self { options, max_lifetime, turns: Semaphore::new(MAX_CONNECTING), trouble: Mutex::default() }
    }

    /// Opens a connection, again and again while the server may be on its way up. The idle
    /// connections of `pool` are asked before each attempt: one may have come back meanwhile. `Err(None)` is a deadline
    /// that passed before anything was learnt.
    pub(super) async fn connect(
        &self,
        deadline: Instant,
        pool: Option<&Inner>,
    ) -> Result<Live, Option<Arc<sqlx::Error>>> {
        let Ok(_turn) = timeout(left(deadline), self.turns.acquire()).await else {
            return Err(self.last_error());
        };
        loop {
            if let Some(pool) = pool
                && let Some(live) = pool.revive().await
            {
                return Ok(live);
            }
            let trouble = self.trouble().clone();
            if let Some(trouble) = trouble {
                sleep(left(trouble.until).min(left(deadline))).await;
                if left(deadline).is_zero() {
                    return Err(Some(trouble.error));
                }
            }
            match timeout(left(deadline), self.open()).await {
                Ok(Ok(live)) => {
                    *self.trouble() = None;
                    return Ok(live);
                }
                Ok(Err(error)) if may_pass(&error) => self.note(error),
                Ok(Err(error)) => return Err(Some(Arc::new(error))),
                Err(elapsed) => return Err(Some(Arc::new(sqlx::Error::Io(elapsed.into())))),
            }
        }
    }

    /// What connecting failed with a moment ago, if nothing has worked since.
    pub(super) fn last_error(&self) -> Option<Arc<sqlx::Error>> {
        let trouble = self.trouble();
        let current = trouble.as_ref().filter(|trouble| trouble.until + TROUBLE_HOLDS_FOR > Instant::now());
        current.map(|trouble| Arc::clone(&trouble.error))
    }

    fn note(&self, error: sqlx::Error) {
        let mut trouble = self.trouble();
        let now = Instant::now();
        let pause = match &*trouble {
            // Attempts of the same round do not double the pause again.
            Some(Trouble { until, pause, .. }) if *until > now => *pause,
            Some(Trouble { pause, .. }) => (*pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        *trouble = Some(Trouble { pause, until: now + pause, error: Arc::new(error) });
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> Result<Live, sqlx::Error> {
        let mut connection: PgConnection = self.options.connect().await?;
        let pid = connection.fetch_one("SELECT pg_backend_pid()").await?.try_get(0)?;
        let now = Instant::now();
        let expires = after(now, jittered(self.max_lifetime));
        Ok(Live { connection, pid, expires, idle_since: now, alarm: alarm() })
    }
}

pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// `instant + duration`, or as good as never.
pub(super) fn after(instant: Instant, duration: Duration) -> Instant {
    instant.checked_add(duration).unwrap_or_else(|| instant + NEVER)
}

/// Up to a tenth less, so that connections opened together do not end together.
fn jittered(lifetime: Duration) -> Duration {
    // Each `RandomState` has keys of its own: enough randomness for this.
    let random = RandomState::new().hash_one(0_u8) % 1000;
    lifetime.mul_f64(1.0 - random as f64 / 10_000.0)
}

/// Whether a server on its way up, or full for a moment, explains the error.
fn may_pass(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(io) => matches!(
            io.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
                | ErrorKind::NotFound // the socket of a local server that is not up yet
        ),
        // Class 57P: shutting down, crashed, starting. 53300: too many connections.
        sqlx::Error::Database(database) => {
            database.code().is_some_and(|code| code.starts_with("57P") || code == "53300")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_shortened_by_a_tenth_at_most() {
        let lifetime = Duration::from_secs(100);
        for _ in 0..1000 {
            let jittered = jittered(lifetime);
            assert!(jittered <= lifetime && jittered >= lifetime * 9 / 10, "{jittered:?}");
        }
    }
}
