//! A PostgreSQL pool of our own, over sqlx's connections: one round trip a statement.

mod checkout;
mod connect;
mod connector;
mod executor;
mod explain;
mod health;
mod here;
mod holds;
mod inner;
mod lease;
mod limit;
mod native;
mod queue;
mod reaper;
mod recover;
mod transaction;

use std::{fmt, panic::Location, sync::Arc, time::Instant};

use futures_util::future::BoxFuture;
use sqlx::{PgConnection, Postgres};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, PoolConfig, query_stats::QueryStats, telemetry};
use connector::after;
use holds::Site;
use inner::Inner;

pub use executor::Timed;
pub use here::Here;
pub use lease::Connection;
pub use transaction::Transaction;

/// A pool of PostgreSQL connections; clones share it.
///
/// `&Pool` stands wherever sqlx takes an executor. Beyond what sqlx's own pool does, each statement is timed, apart
/// from the wait for its connection, and reported: see [`telemetry`]. A wait that ends without a
/// connection says why: the pool exhausted, and by whom; the server unreachable, or refusing.
///
/// A statement costs one round trip. A connection is checked with a ping only after it was idle for a second, or when
/// another one has just been found broken; sqlx pings before and after every statement. When the server restarts, the
/// statements under way fail, and later ones get new connections, a few of which are opened at a time.
///
/// Callers are served in the order in which they came. A statement ends within
/// [`max_statement`](PoolConfig::max_statement), whatever the server and the network do, with [`Error::TooLong`].
///
/// The pool belongs to the runtime in which it was made, and closes when that ends.
///
/// # Cancel safety
/// Every future and stream of the pool may be dropped at any time. A connection on which a statement is then still
/// under way is not handed out before it was made clean: a statement that does not end within 50 ms is cancelled on
/// the server, through a connection beside the pool; what cannot be made clean within seconds is closed. On a transaction
/// of sqlx's own type, from [`sqlx::Acquire::begin`], nothing is cancelled, only closed.
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
    stats: QueryStats,
}

impl Pool {
    /// A pool, after one connection was made to see that it works.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::UrlParameter`], [`Error::Unreachable`] or [`Error::Refused`], within the connection timeout and half a second.
    #[track_caller]
    pub fn connect(
        url: &str,
        config: PoolConfig,
    ) -> impl Future<Output = Result<Self, Error>> + Send + use<> {
        let site = Site::Code(Location::caller());
        let pool = Self::connect_lazy(url, config);
        async move {
            let pool = pool?;
            pool.lease(site).await?;
            Ok(pool)
        }
    }

    /// A pool that makes its first connection when one is needed.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::UrlParameter`], [`Error::Config`] or, outside Tokio, [`Error::NoRuntime`].
    pub fn connect_lazy(url: &str, config: PoolConfig) -> Result<Self, Error> {
        config.check()?;
        let stats = QueryStats::new(config.query_stats.clone());
        let options = connect::parse(url, config.transaction_pooling)?;
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let server = connect::server_name(&options);
        let inner = Arc::new(Inner::new(config, options, server, runtime.clone()));
        let reaper = runtime.spawn(reaper::run(Arc::downgrade(&inner), stats.clone(), reaper::tick(&inner)));
        let time = runtime.spawn(queue::keep_time(Arc::downgrade(&inner), Arc::clone(&inner.clock)));
        // A new cell, so it takes the value.
        let _ = inner.keepers.set([reaper, time].map(AbortOnDropHandle::new));
        Ok(Self { inner, stats })
    }

    /// The same pool, counting its statements in `stats`, by the config of those.
    pub fn with_query_stats(self, stats: QueryStats) -> Self {
        Self { stats, ..self }
    }

    /// What statements cost, and which of them repeat.
    pub fn query_stats(&self) -> &QueryStats {
        &self.stats
    }

    /// A connection of one's own, for several statements that must share a session.
    ///
    /// Run statements through [`timed`](Self::timed), or they go unreported.
    ///
    /// # Errors
    /// `sqlx::Error`, with one of ours inside where no connection could be had: see [`Error::in_sqlx`].
    ///
    /// # Cancel safety
    /// Safe: dropped while it waits, it leaves the queue.
    #[track_caller]
    pub fn acquire(&self) -> impl Future<Output = Result<Connection, sqlx::Error>> + Send + use<> {
        let (pool, site) = (self.clone(), Site::Code(Location::caller()));
        async move { Ok(Connection::new(pool.checkout(site).await?)) }
    }

    /// Begins a transaction; dropping it rolls back.
    ///
    /// Run its statements through [`timed`](Self::timed), or they go unreported.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// Safe: a transaction that begins too late is rolled back.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Transaction, sqlx::Error>> + Send + use<> {
        let (pool, site) = (self.clone(), Site::Code(Location::caller()));
        async move { Transaction::begin(pool.checkout(site).await?).await }
    }

    /// Lends a connection of this pool, a transaction's for example, as an executor that times its statements as
    /// the pool does. They count for the line that calls this.
    ///
    /// A statement that fails with [`Error::TooLong`] is still under way on its connection: drop the transaction, or the
    /// connection, and the pool cancels it.
    #[track_caller]
    pub fn timed<'c>(&self, connection: &'c mut PgConnection) -> Timed<'c> {
        Timed::new(self.clone(), connection, Location::caller())
    }

    /// Closes the pool: waits until what is in use comes back; later callers get [`Error::Closed`].
    pub async fn close(&self) {
        self.inner.close().await;
    }

    /// Connections open now, those included that are being opened.
    pub fn size(&self) -> u32 {
        u32::try_from(self.inner.in_use() + self.inner.num_idle()).unwrap_or(u32::MAX)
    }

    /// Connections open and unused now.
    pub fn num_idle(&self) -> usize {
        self.inner.num_idle()
    }

    fn noting_breakage<T>(&self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        if let Err(error) = &result {
            self.inner.health.note(error);
        }
        result
    }
}

impl<'c> sqlx::Acquire<'c> for &Pool {
    type Database = Postgres;
    type Connection = Connection;

    #[track_caller]
    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, sqlx::Error>> {
        Box::pin(Pool::acquire(self))
    }

    #[track_caller]
    fn begin(self) -> BoxFuture<'c, Result<sqlx::Transaction<'c, Postgres>, sqlx::Error>> {
        let (pool, site) = (self.clone(), Site::Code(Location::caller()));
        Box::pin(async move {
            let asked = Instant::now();
            let deadline = after(asked, pool.inner.config.connection_timeout);
            let lease = pool.claim(site, asked, false).await.map_err(Error::into_sqlx)?;
            match native::begin(&pool.inner, lease, asked, deadline).await {
                Ok(transaction) => Ok(transaction),
                Err(Some(error)) => pool.noting_breakage(Err(error)),
                Err(None) => {
                    telemetry::timed_out();
                    Err(pool.no_connection(None, pool.inner.waiting()).await.into_sqlx())
                }
            }
        })
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the options: they hold the password.
        let Inner { server, config, .. } = &*self.inner;
        f.debug_struct("Pool")
            .field("server", server)
            .field("size", &self.size())
            .field("config", config)
            .finish()
    }
}
