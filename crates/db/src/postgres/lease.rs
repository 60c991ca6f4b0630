//! A connection out of the pool, and its way back.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
};

use sqlx::PgConnection;

use super::{
    inner::{Inner, Live},
    limit::{Alarm, within},
    recover,
};

/// What may be assumed of a connection when its lease ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// Its last statement was answered in full, and no transaction is open.
    Clean,
    /// Something may be under way on it. It is made clean, or closed, before anybody else gets it.
    Unsure,
    /// It is closed.
    Broken,
}

/// The right to one connection; it ends when dropped, whatever happens.
pub(super) struct Lease {
    /// `None` once it has ended.
    held: Option<(Arc<Inner>, usize)>,
    pub(super) live: Option<Live>,
    pub(super) condition: Condition,
    /// Even a statement that ended well may have left a transaction open.
    pub(super) careful: bool,
    /// How long the caller waited for it.
    pub(super) wait: Duration,
    /// Since when the caller has it.
    pub(super) since: Instant,
}

impl Lease {
    /// Of a slot of `inner`'s holds.
    pub(super) fn new(inner: Arc<Inner>, slot: usize, live: Option<Live>, since: Instant) -> Self {
        let (condition, careful, wait) = (Condition::Clean, false, Duration::ZERO);
        Self { held: Some((inner, slot)), live, condition, careful, wait, since }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.held.as_ref().expect("a lease has not ended before it is dropped").0
    }

    pub(super) fn connection(&self) -> &PgConnection {
        &self.live.as_ref().expect("a lease is handed out with its connection").connection
    }

    pub(super) fn connection_mut(&mut self) -> &mut PgConnection {
        self.line().0
    }

    /// The connection, and what ends its statement in time.
    pub(super) fn line(&mut self) -> (&mut PgConnection, &mut Alarm) {
        let live = self.live.as_mut().expect("a lease is handed out with its connection");
        (&mut live.connection, &mut live.alarm)
    }

    /// Waits for the end of what sqlx does with the connection, for `max_statement` at most.
    pub(super) async fn within<'a, T, F>(
        &'a mut self,
        work: impl FnOnce(&'a mut PgConnection) -> F,
    ) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>> + 'a,
    {
        let limit = self.inner().config.max_statement;
        let (connection, alarm) = self.line();
        within(alarm, limit, limit, work(connection)).await
    }

    /// What follows from how a statement ended.
    pub(super) fn ended<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.condition = match &result {
            Err(error) if self.inner().health.note(error) => Condition::Broken,
            _ if self.careful => Condition::Unsure,
            Ok(_) => Condition::Clean,
            Err(sqlx::Error::Database(_) | sqlx::Error::RowNotFound) => Condition::Clean,
            Err(_) => Condition::Unsure,
        };
        result
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some((inner, slot)) = self.held.take() else { return };
        match (self.live.take(), self.condition) {
            (Some(live), Condition::Unsure) => {
                let mut rest = Self::new(Arc::clone(&inner), slot, Some(live), self.since);
                // Until proven clean: if the runtime drops the task, the connection closes.
                rest.condition = Condition::Broken;
                inner.spawn(recover::recover(Arc::clone(&inner), rest));
            }
            (live, Condition::Clean) => inner.end_hold(slot, live),
            (live, _) => {
                drop(live);
                inner.end_hold(slot, None);
            }
        }
    }
}

/// A connection of one's own for a while; dropped, it goes back to its pool.
///
/// The pool cannot know what was run on it: before anybody else gets it, the pool makes sure that nothing is under
/// way on it and no transaction open. Settings made with `SET` and locks of the session stay.
pub struct Connection {
    lease: Lease,
}

impl Connection {
    pub(super) fn new(mut lease: Lease) -> Self {
        lease.condition = Condition::Unsure;
        Self { lease }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.lease.connection()
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.lease.connection_mut()
    }
}

impl AsMut<PgConnection> for Connection {
    fn as_mut(&mut self) -> &mut PgConnection {
        self
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}
