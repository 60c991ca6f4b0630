//! A PostgreSQL pool that times what runs through it.

mod connect;
mod executor;
mod health;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use sqlx::{PgConnection, PgPool, Postgres, Transaction, pool::PoolConnection, postgres::PgPoolOptions};

use crate::{Error, PoolConfig, telemetry};
use connect::Diagnosis;
use health::Health;

pub use executor::Timed;

/// A pool of PostgreSQL connections; clones share it.
///
/// `&Pool` stands wherever sqlx takes an executor. Beyond what sqlx's own pool does, each statement is timed, apart
/// from the wait for its connection, and reported: see [`telemetry`]. A wait that ends without a
/// connection says why: the pool exhausted, the server unreachable, or refusing.
///
/// A connection is checked with a ping only after it was idle for a second, or when another one has just been found
/// broken; sqlx pings before every statement. When the server restarts, the statements under way fail, and later
/// ones get new connections.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use greenwave_db::{PoolConfig, postgres::Pool};
///
/// let pool = Pool::connect("postgres://shop@localhost/shop", PoolConfig::default()).await?;
///
/// let (name,): (String,) = sqlx::query_as("SELECT name FROM users WHERE id = $1").bind(7).fetch_one(&pool).await?;
///
/// let mut tx = pool.begin().await?;
/// sqlx::query("UPDATE users SET name = upper(name) WHERE id = $1").bind(7).execute(pool.timed(&mut tx)).await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    pool: PgPool,
    config: PoolConfig,
    server: Arc<str>,
    health: Arc<Health>,
    diagnosis: Diagnosis,
}

impl Pool {
    /// A pool, after one connection was made to see that it works.
    ///
    /// # Errors
    /// [`Error::Unreachable`] or [`Error::Refused`], within the connection timeout and half a second; and those of
    /// [`connect_lazy`](Self::connect_lazy).
    pub async fn connect(url: &str, config: PoolConfig) -> Result<Self, Error> {
        let pool = Self::connect_lazy(url, config)?;
        match pool.inner.pool.acquire().await {
            Ok(_) => Ok(pool),
            Err(error) => Err(pool.no_connection(error).await),
        }
    }

    /// A pool that makes its first connection when one is needed.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::UrlParameter`], [`Error::Config`] or, outside Tokio, [`Error::NoRuntime`].
    pub fn connect_lazy(url: &str, config: PoolConfig) -> Result<Self, Error> {
        config.check()?;
        let options = connect::parse(url)?;
        tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let health = Arc::new(Health::new(config.connection_timeout));
        let server = connect::server_name(&options);
        let diagnosis = Diagnosis::new(options.clone(), config.connection_timeout);
        let pool = pool_options(&config, Arc::clone(&health)).connect_lazy_with(options);
        Ok(Self { inner: Arc::new(Inner { pool, config, server, health, diagnosis }) })
    }

    /// A connection of one's own, for several statements that must share a session.
    ///
    /// Run statements through [`timed`](Self::timed), or they go unreported. For a transaction, use
    /// [`begin`](Self::begin): sqlx's own, on a connection, leaves the transaction open when it is dropped half-way.
    ///
    /// # Errors
    /// `sqlx::Error`, with one of ours inside where no connection could be had: see [`Error::in_sqlx`].
    ///
    /// # Cancel safety
    /// Safe: dropped while it waits, it gives up its turn. A connection that is being opened for it, or tested, is
    /// closed then, and the next caller opens another.
    pub async fn acquire(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        Ok(self.checkout().await?.0)
    }

    /// Begins a transaction; dropping it rolls back.
    ///
    /// Run its statements through [`timed`](Self::timed), or they go unreported.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// Safe: dropped while it waits, as `acquire`; dropped later, the transaction is begun and rolled back in the
    /// background.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let connection = self.acquire().await?;
        // In a task of its own, which ends when its caller does not wait: sqlx learns of a transaction only from the
        // server's answer, and rolls back none that it has not learned of. Dropped before, `BEGIN` would take
        // the connection back to the pool with it, and later statements of others would never be committed.
        let begun = tokio::spawn(Transaction::begin(connection, None));
        self.noting_breakage(begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed)))
    }

    /// Lends a connection of this pool, a transaction's for example, as an executor that times its statements as
    /// the pool does.
    pub fn timed<'c>(&self, connection: &'c mut PgConnection) -> Timed<'c> {
        Timed::new(self.clone(), connection)
    }

    /// Closes the pool: waits until what is in use comes back; later callers get [`Error::Closed`].
    pub async fn close(&self) {
        self.inner.pool.close().await;
    }

    /// A connection, and how long it took to get it.
    async fn checkout(&self) -> Result<(PoolConnection<Postgres>, Duration), sqlx::Error> {
        let asked = Instant::now();
        match self.inner.pool.acquire().await {
            Ok(connection) => {
                let wait = asked.elapsed();
                telemetry::waited(wait);
                Ok((connection, wait))
            }
            Err(error) => {
                if matches!(error, sqlx::Error::PoolTimedOut) {
                    telemetry::timed_out();
                }
                Err(self.no_connection(error).await.into_sqlx())
            }
        }
    }

    fn noting_breakage<T>(&self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if let Err(error) = &result {
            self.inner.health.note(error);
        }
        result
    }

    /// What an acquire ended with, in our words.
    async fn no_connection(&self, error: sqlx::Error) -> Error {
        match error {
            sqlx::Error::PoolTimedOut => self.why_timed_out().await,
            sqlx::Error::PoolClosed => Error::Closed,
            error => self.connect_failed(Arc::new(error)),
        }
    }

    fn connect_failed(&self, source: Arc<sqlx::Error>) -> Error {
        let server = Arc::clone(&self.inner.server);
        match *source {
            sqlx::Error::Database(_) => Error::Refused { server, source },
            _ => Error::Unreachable { server, source },
        }
    }

    /// sqlx says "timed out" both when all connections are in use and when the server is away: find out which.
    async fn why_timed_out(&self) -> Error {
        let Inner { pool, config, .. } = &*self.inner;
        match self.inner.diagnosis.probe().await {
            Some(source) => self.connect_failed(source),
            None => Error::Exhausted {
                waited: config.connection_timeout,
                in_use: pool.size().saturating_sub(u32::try_from(pool.num_idle()).unwrap_or(u32::MAX)),
                max_connections: config.max_connections,
            },
        }
    }
}

fn pool_options(config: &PoolConfig, health: Arc<Health>) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(config.max_connections)
        .idle_timeout(config.idle_timeout)
        .acquire_timeout(config.connection_timeout)
        .test_before_acquire(false)
        .before_acquire(move |connection, meta| Health::check(&health, connection, meta.idle_for))
}

impl<'c> sqlx::Acquire<'c> for &Pool {
    type Database = Postgres;
    type Connection = PoolConnection<Postgres>;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, sqlx::Error>> {
        let pool = self.clone();
        Box::pin(async move { Pool::acquire(&pool).await })
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Postgres>, sqlx::Error>> {
        let pool = self.clone();
        Box::pin(async move { Pool::begin(&pool).await })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options: they hold the password.
        let Inner { server, config, .. } = &*self.inner;
        f.debug_struct("Pool")
            .field("server", server)
            .field("size", &self.inner.pool.size())
            .field("config", config)
            .finish()
    }
}
