//! A transaction that owns its lease.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use futures_util::future::BoxFuture;
use sqlx::{Connection as _, PgConnection, Postgres, SqlStr, postgres::PgTransactionManager};
use sqlx_core::transaction::TransactionManager;

use super::lease::{Condition, Lease};
use crate::PoolConfig;

/// An open transaction: [`commit`](Self::commit) it, or drop it to roll back.
///
/// It lends its connection as `&mut *tx`, as sqlx's own transaction does. Where that very type is needed,
/// `sqlx::Acquire::begin(&pool)` gives one, for one round trip more.
pub struct Transaction {
    pub(super) lease: Lease,
    open: bool,
}

/// Behind a proxy that pools by transaction, the server's connection still has what earlier users prepared on it, under
/// names that sqlx takes again.
const BEGIN_AFRESH: &str = "DEALLOCATE ALL; BEGIN";

/// How to begin a transaction, if not as sqlx does.
pub(super) fn beginning(config: &PoolConfig) -> Option<SqlStr> {
    config.transaction_pooling.then(|| SqlStr::from_static(BEGIN_AFRESH))
}

impl Transaction {
    pub(super) async fn begin(mut lease: Lease) -> Result<Self, sqlx::Error> {
        // Dropped between `BEGIN` and its answer, this leaves a transaction that sqlx does not count.
        lease.condition = Condition::Unsure;
        let begin = beginning(&lease.inner().config);
        match lease.within(|connection| PgTransactionManager::begin(connection, begin)).await {
            Ok(()) => Ok(Self { lease, open: true }),
            error => {
                error.or_else(|error| lease.ended(Err(error)))?;
                Err(sqlx::Error::BeginFailed)
            }
        }
    }

    /// A lease without a transaction, to be used in the place of one.
    pub(super) fn none(lease: Lease) -> Self {
        Self { lease, open: false }
    }

    /// What follows from how the only statement of a transaction, or of none, ended.
    pub(super) async fn end_with<T>(mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if !self.open {
            return self.lease.ended(result);
        }
        match result {
            Ok(answer) => Box::pin(self.commit()).await.map(|()| answer),
            Err(error @ sqlx::Error::Database(_)) => {
                let _ = Box::pin(self.rollback()).await;
                Err(error)
            }
            // The statement may be under way still.
            error => self.lease.ended(error),
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
