//! A transaction that owns its lease.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use futures_util::future::BoxFuture;
use sqlx::{Connection as _, PgConnection, Postgres, postgres::PgTransactionManager};
use sqlx_core::transaction::TransactionManager;

use super::lease::{Condition, Lease};

/// An open transaction: [`commit`](Self::commit) it, or drop it to roll back.
///
/// It lends its connection as `&mut *tx`, as sqlx's own transaction does. Where that very type is needed,
/// `sqlx::Acquire::begin(&pool)` gives one, for one round trip more.
pub struct Transaction {
    lease: Lease,
    open: bool,
}

impl Transaction {
    pub(super) async fn begin(mut lease: Lease) -> Result<Self, sqlx::Error> {
        // Dropped between `BEGIN` and its answer, this leaves a transaction that sqlx does not count.
        lease.condition = Condition::Unsure;
        match lease.within(|connection| PgTransactionManager::begin(connection, None)).await {
            Ok(()) => Ok(Self { lease, open: true }),
            error => {
                error.or_else(|error| lease.ended(Err(error)))?;
                Err(sqlx::Error::BeginFailed)
            }
        }
    }

    /// Commits.
    ///
    /// # Errors
    /// sqlx's own. After one that does not come from the server, whether it was committed is unknown.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let ended = self.lease.within(PgTransactionManager::commit).await;
        self.ended(ended)
    }

    /// Rolls back, and waits for it; dropping does the same in the background.
    ///
    /// # Errors
    /// sqlx's own; it is rolled back in any case.
    pub async fn rollback(mut self) -> Result<(), sqlx::Error> {
        let ended = self.lease.within(PgTransactionManager::rollback).await;
        self.ended(ended)
    }

    fn ended(mut self, result: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
        self.lease.ended(result)?;
        // A savepoint that was forgotten, never dropped, took the commit for itself.
        if self.is_in_transaction() {
            self.lease.condition = Condition::Unsure;
        } else {
            self.open = false;
        }
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.open && self.lease.condition != Condition::Broken {
            // Goes out before the connection is made clean.
            PgTransactionManager::start_rollback(self.lease.connection_mut());
            self.lease.condition = Condition::Unsure;
        }
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.lease.connection()
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.lease.connection_mut()
    }
}

impl AsMut<PgConnection> for Transaction {
    fn as_mut(&mut self) -> &mut PgConnection {
        self
    }
}

impl<'t> sqlx::Acquire<'t> for &'t mut Transaction {
    type Database = Postgres;
    type Connection = &'t mut PgConnection;

    fn acquire(self) -> BoxFuture<'t, Result<Self::Connection, sqlx::Error>> {
        Box::pin(std::future::ready(Ok(&mut **self)))
    }

    fn begin(self) -> BoxFuture<'t, Result<sqlx::Transaction<'t, Postgres>, sqlx::Error>> {
        sqlx::Transaction::begin(&mut **self, None)
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("open", &self.open).finish_non_exhaustive()
    }
}
