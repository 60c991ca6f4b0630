//! Wake-ups between processes, by NOTIFY. They are never inside the transaction that pushes, where they would make
//! inserts wait for one another, but follow it, at most fifty a second.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use crate::backoff::Weather;
use crate::error::chain;
use crate::wakeups::{Notice, Wakeups};

const CHANNEL: &str = "greenwave_jobs";
const PAUSE: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(5);

/// Sends what was announced: the first at once, what comes within the pause after it together.
#[derive(Debug)]
pub(super) struct Announcer {
    pool: PgPool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    notices: BTreeSet<Notice>,
    sending: bool,
}

impl Announcer {
    pub(super) fn new(pool: PgPool) -> Self {
        Announcer { pool, state: Mutex::default() }
    }

    pub(super) fn announce(self: &Arc<Self>, notice: Notice) {
        let mut state = self.lock();
        state.notices.insert(notice);
        if state.sending {
            return;
        }
        // Outside a runtime nobody can send; the other processes will poll.
        if let Ok(runtime) = Handle::try_current() {
            state.sending = true;
            // A runtime that is ending drops the task here and now, and that takes the lock.
            drop(state);
            // This task ends by itself, one pause after the last announcement.
            runtime.spawn(Sending { announcer: Arc::clone(self), ended: false }.run());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one task that sends. When its runtime drops it half way, the next announcement starts another.
struct Sending {
    announcer: Arc<Announcer>,
    ended: bool,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.ended {
            self.announcer.lock().sending = false;
        }
    }
}

impl Sending {
    async fn run(mut self) {
        while let Some(notices) = self.take() {
            let payloads: Vec<_> = notices.iter().map(Notice::payload).collect();
            let notify = sqlx::query("SELECT pg_notify($1, notice) FROM unnest($2::text[]) AS notice")
                .bind(CHANNEL)
                .bind(payloads)
                .execute(&self.announcer.pool);
            if let Ok(Err(error)) = timeout(DEADLINE, notify).await {
                tracing::debug!(error = chain(&error), "could not announce new jobs; workers will poll");
            }
            sleep(PAUSE).await;
        }
    }

    /// What is to be announced; when there is nothing, the task ends under the same lock, so that no announcement
    /// falls between the look and the end.
    fn take(&mut self) -> Option<BTreeSet<Notice>> {
        let mut state = self.announcer.lock();
        if state.notices.is_empty() {
            state.sending = false;
            self.ended = true;
            return None;
        }
        Some(mem::take(&mut state.notices))
    }
}

/// Rings when another process announces. On a connection outside the caller's pool: it is held for good.
pub(super) async fn listen(pool: PgPool, wakeups: Arc<Wakeups>) {
    let mut weather = Weather::default();
    loop {
        let options = pool.connect_options().as_ref().clone();
        let own = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let error = match PgListener::connect_with(&own.connect_lazy_with(options)).await {
            Ok(listener) => pass_on(listener, &wakeups, &mut weather).await,
            Err(error) => error,
        };
        tracing::debug!(error = chain(&error), "cannot listen for new jobs; polling until it works again");
        sleep(weather.next()).await;
    }
}

async fn pass_on(mut listener: PgListener, wakeups: &Wakeups, weather: &mut Weather) -> sqlx::Error {
    if let Err(error) = listener.listen(CHANNEL).await {
        return error;
    }
    weather.clear();
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                Notice::parse(notification.payload()).iter().for_each(|notice| wakeups.tell(notice));
            }
            // The connection was lost and made again: what was announced in between is unknown.
            Ok(None) => wakeups.wake(None),
            Err(error) => return error,
        }
    }
}
