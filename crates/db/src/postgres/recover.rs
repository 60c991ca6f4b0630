//! Makes a connection clean on which something may still be under way, or closes it.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row, SqlSafeStr};
use tokio::time::timeout;

use super::{
    inner::Inner,
    lease::{Condition, Lease},
};

/// A statement that ends by itself within this time is not cancelled.
const GRACE: Duration = Duration::from_millis(50);
/// The longest that sending a cancel may take.
const CANCEL_DEADLINE: Duration = Duration::from_secs(1);
/// The longest that a cancelled statement may take to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// More errors than this in a row are not the remains of one statement.
const MAX_ERRORS: usize = 8;

/// Whether a transaction is open: outside of one, a statement is its own transaction and begins when that does.
/// sqlx knows the server's answer to this, but does not show it.
const IN_TRANSACTION: &str = "SELECT now() <> statement_timestamp()";

/// Ends `lease`, whose connection is counted as broken until it is proven clean.
pub(super) async fn recover(inner: Arc<Inner>, mut lease: Lease) {
    let Some(pid) = lease.live.as_ref().map(|live| live.pid) else { return };
    let clean = match timeout(GRACE, settle(lease.connection_mut())).await {
        Ok(clean) => clean,
        // Behind a proxy the server's process may by now work for somebody else: only closing is safe.
        Err(_) if inner.config.transaction_pooling => false,
        Err(_) => cancel(&inner, pid).await && settle_in_time(lease.connection_mut()).await,
    };
    if clean {
        lease.condition = Condition::Clean;
    } else {
        tracing::debug!("a connection could not be made clean after its statement was dropped; it is closed");
    }
}

pub(super) async fn settle_in_time(connection: &mut PgConnection) -> bool {
    timeout(DRAIN_DEADLINE, settle(connection)).await.unwrap_or(false)
}

/// Reads what is left of earlier statements, and ends a transaction that is open.
///
/// Cancel safety: may be dropped and begun again.
async fn settle(connection: &mut PgConnection) -> bool {
    // Whatever comes first may be the error with which an earlier statement ended, so errors are tried again.
    for _ in 0..MAX_ERRORS {
        let open = match connection.fetch_one(IN_TRANSACTION).await.and_then(|row| row.try_get(0)) {
            Ok(open) => open,
            // The transaction has failed, and takes nothing but its end.
            Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code == "25P02") => true,
            Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| code.starts_with("57P")) => {
                return false;
            }
            Err(sqlx::Error::Database(_)) => continue,
            Err(_) => return false,
        };
        if !open {
            // A transaction that was forgotten, never dropped, leaves sqlx's own count of them wrong.
            return !connection.is_in_transaction();
        }
        let _ = connection.execute("ROLLBACK").await;
    }
    false
}

/// Cancels what the server's process `pid` runs. `false` if it isn't certain that the signal was sent: it could come
/// later, and hit a later caller's statement.
async fn cancel(inner: &Inner, pid: i32) -> bool {
    let cancel = async {
        let _turn = inner.cancels.acquire().await.ok()?;
        // By the server's process, for sqlx does not show the key that a cancel request needs.
        let mut side = inner.options.connect().await.ok()?;
        let statement = AssertSqlSafe(format!("SELECT pg_cancel_backend({pid})")).into_sql_str();
        side.execute(sqlx::raw_sql(statement)).await.ok()?;
        let _ = side.close().await;
        Some(())
    };
    timeout(CANCEL_DEADLINE, cancel).await.is_ok_and(|sent| sent.is_some())
}
