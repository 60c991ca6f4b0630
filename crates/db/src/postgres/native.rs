//! Transactions of sqlx's own type, for code that is generic over `sqlx::Acquire`.
//!
//! `sqlx::Transaction<'static>` can own nothing but a connection of sqlx's own pool. So each of these transactions has
//! such a pool, of one connection, and holds a lease of ours meanwhile: the limit and the queue are ours.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Postgres, pool::PoolConnection, postgres::PgPoolOptions};
use tokio::time::timeout;

use super::{
    connector::left,
    health::Ping,
    inner::Inner,
    lease::{Condition, Lease},
    limit::{alarm, within},
    recover::settle_in_time,
    transaction::beginning,
};
use crate::telemetry;

/// sqlx's pool of one, with or without its connection.
pub(super) struct Native {
    pool: PgPool,
    loan: Loan,
    idle_since: Instant,
}

type Loan = Arc<Mutex<Option<(Lease, Native)>>>;

impl Native {
    fn new(inner: &Arc<Inner>) -> Self {
        let loan = Loan::default();
        let health = Arc::downgrade(inner);
        let ended = Arc::clone(&loan);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            // sqlx would close what is too old without calling `after_release`, where the lease ends.
            .max_lifetime(None)
            .acquire_timeout(inner.config.connection_timeout)
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let inner = health.upgrade();
                Box::pin(async move {
                    let Some(inner) = inner else { return Ok(false) };
                    let needless = !inner.health.needs_ping(meta.idle_for);
                    Ok(needless || inner.health.ping(connection).await == Ping::Alive)
                })
            })
            .after_release(move |connection, _| {
                let loan = ended.lock().unwrap_or_else(PoisonError::into_inner).take();
                Box::pin(async move {
                    let clean = settle_in_time(connection).await;
                    if let Some((lease, mut native)) = loan
                        && clean
                    {
                        native.idle_since = Instant::now();
                        lease.inner().keep_native(native);
                    }
                    Ok(clean)
                })
            })
            .connect_lazy_with(inner.options.clone());
        Self { pool, loan, idle_since: Instant::now() }
    }

    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }
}

/// Begins one in the right of `lease`, which must have no connection, for a caller that `asked` then. `Err(None)` is a
/// deadline that passed.
pub(super) async fn begin(
    inner: &Arc<Inner>,
    mut lease: Lease,
    asked: Instant,
    deadline: Instant,
) -> Result<sqlx::Transaction<'static, Postgres>, Option<sqlx::Error>> {
    lease.condition = Condition::Broken;
    let native = inner.take_native().unwrap_or_else(|| {
        inner.make_room();
        Native::new(inner)
    });
    let connection: PoolConnection<Postgres> =
        match timeout(left(deadline).max(Duration::from_millis(1)), native.pool.acquire()).await {
            Ok(Ok(connection)) => connection,
            Err(_) | Ok(Err(sqlx::Error::PoolTimedOut)) => return Err(None),
            Ok(Err(error)) => return Err(Some(error)),
        };
    telemetry::waited(asked.elapsed());
    let loan = Arc::clone(&native.loan);
    *loan.lock().unwrap_or_else(PoisonError::into_inner) = Some((lease, native));
    let (limit, begin) = (inner.config.max_statement, beginning(&inner.config));
    within(&mut alarm(), limit, limit, sqlx::Transaction::begin(connection, begin)).await.map_err(Some)
}
