//! A connection out of the pool, and its way back.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::PgConnection;

use super::{
    holds::Site,
    inner::{Inner, Live},
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
    inner: Arc<Inner>,
    slot: Option<usize>,
    pub(super) live: Option<Live>,
    pub(super) condition: Condition,
    /// Even a statement that ended well may have left a transaction open.
    pub(super) careful: bool,
    pub(super) wait: Duration,
}

impl Lease {
    /// Makes a lease of the permit that the caller has just got from `inner.permits`, and forgotten. If
    /// `with_connection`, it has one already if one lies ready that needs no check.
    pub(super) fn new(inner: Arc<Inner>, site: Site, with_connection: bool) -> Self {
        let (slot, live) = inner.begin_hold(site, with_connection);
        Self::of(inner, slot, live, Condition::Clean)
    }

    fn of(inner: Arc<Inner>, slot: usize, live: Option<Live>, condition: Condition) -> Self {
        Self { inner, slot: Some(slot), live, condition, careful: false, wait: Duration::ZERO }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(super) fn connection(&self) -> &PgConnection {
        &self.live.as_ref().expect("a lease is handed out with its connection").connection
    }

    pub(super) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.live.as_mut().expect("a lease is handed out with its connection").connection
    }

    /// What follows from how a statement ended.
    pub(super) fn ended<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.condition = match &result {
            Err(error) if self.inner.health.note(error) => Condition::Broken,
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
        let Some(slot) = self.slot.take() else { return };
        match (self.live.take(), self.condition) {
            (Some(live), Condition::Unsure) => {
                // Broken until proven clean: if the runtime drops the task, the connection closes.
                let rest = Self::of(Arc::clone(&self.inner), slot, Some(live), Condition::Broken);
                self.inner.spawn(recover::recover(Arc::clone(&self.inner), rest));
            }
            (live, Condition::Clean) => self.inner.end_hold(slot, live),
            (live, _) => {
                drop(live);
                self.inner.end_hold(slot, None);
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
