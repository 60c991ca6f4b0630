//! A SQLite pool: several readers, one writer that commits for many callers at once.

mod call;
mod config;
mod connection;
mod group;
mod readers;
mod trace;
mod writer;

use std::{fmt, panic::Location, path::Path, sync::Arc};

use rusqlite::{Connection, Transaction};

use crate::{Error, query_stats::QueryStats};
pub use config::{Config, Synchronous};
use connection::File;
use readers::Readers;
use trace::Caller;
use writer::Writer;

/// A pool over one SQLite file; clones share it.
///
/// SQLite lets many read while one writes, and makes a second writer wait. The pool is built the same way: up to
/// [`max_connections`](crate::PoolConfig::max_connections) readers, opened as they are needed, and a thread of its own
/// that writes. What waits for that thread is committed together, so a hundred writers at once cost one sync of the
/// disk and not a hundred.
///
/// The file is in WAL mode. What was acknowledged survives a crash of the process; whether it survives a power cut is
/// [`Synchronous`]' choice. Foreign keys are enforced. Several pools, in several processes of one machine, may share
/// the file. A statement that runs for longer than [`Config::max_statement`] is interrupted, with
/// [`Error::Interrupted`].
///
/// Each statement is timed and reported: see [`telemetry`](crate::telemetry).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), greenwave_db::Error> {
/// use greenwave_db::{Error, PoolConfig, sqlite::Pool};
///
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("shop.db");
/// let pool = Pool::open(&path, PoolConfig::default())?;
///
/// pool.write(|tx| {
///     tx.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)", ())?;
///     tx.execute("INSERT INTO users VALUES (7, ?1)", ["Ada"])?;
///     Ok::<_, Error>(())
/// })
/// .await?;
///
/// let name: String = pool.read(|db| db.query_one("SELECT name FROM users WHERE id = ?1", [7], |row| row.get(0))).await?;
/// assert_eq!(name, "Ada");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
    stats: QueryStats,
}

struct Inner {
    file: Arc<File>,
    readers: Arc<Readers>,
    writer: Writer,
}

impl Pool {
    /// Opens the file, or makes it.
    ///
    /// Blocks for as long as opening a file takes, and up to the connection timeout if another process has it
    /// locked: call it when the program starts.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Locked`], [`Error::InMemory`], [`Error::Uri`] or [`Error::Config`].
    pub fn open(path: impl AsRef<Path>, config: impl Into<Config>) -> Result<Self, Error> {
        let config = config.into();
        config.pool.check()?;
        let stats = QueryStats::new(config.pool.query_stats.clone());
        let file = Arc::new(File::new(path.as_ref(), config)?);
        let writer = Writer::start(Arc::clone(&file))?;
        let readers = Arc::new(Readers::new(Arc::clone(&file)));
        Ok(Self { inner: Arc::new(Inner { file, readers, writer }), stats })
    }

    /// The same pool, counting its statements in `stats`, by the config of those.
    pub fn with_query_stats(self, stats: QueryStats) -> Self {
        Self { stats, ..self }
    }

    /// What statements cost, and which of them repeat.
    pub fn query_stats(&self) -> &QueryStats {
        &self.stats
    }

    fn caller(&self, site: &'static Location<'static>) -> Caller {
        Caller::new(self.stats.clone(), site)
    }

    /// Runs `f` with a connection that cannot write, on the calling thread: for short statements.
    ///
    /// A point read costs less than handing it to another thread would. So `f` runs right here whenever a connection
    /// is open and free, and blocks this thread of the runtime for as long as it takes; beyond some hundred
    /// microseconds, call [`read_on_thread`](Pool::read_on_thread) instead. What bounds the damage of a mistake:
    /// `max_statement` for each statement, and for a lock (which a reader waits for only while another process
    /// recovers the file or keeps it for itself) the connection timeout. Where no connection is open yet, `f` runs on
    /// a thread that may block.
    ///
    /// Each statement sees the database as it is then; `unchecked_transaction` gives several the same view. A write
    /// that was acknowledged is seen. `prepare_cached` pays, for the connection is used again.
    ///
    /// # Errors
    /// [`Error::Sqlite`] with what `f` returned, [`Error::Interrupted`] if that is a statement beyond the limit,
    /// [`Error::Exhausted`] if no reader became free in time, [`Error::Panicked`] if `f` did.
    ///
    /// # Cancel safety
    /// Safe: dropped while it waits, nothing runs; dropped later, `f` runs to its end and its result is lost.
    #[track_caller]
    pub fn read<T, F>(&self, f: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let site = Location::caller();
        async move { self.inner.readers.run(self.caller(site), f).await }
    }

    /// Runs `f` with a connection that cannot write, on a thread that may block: for scans, reports, large results.
    ///
    /// Otherwise as [`read`](Pool::read), whose connections it shares: at most as many such threads run.
    ///
    /// # Errors
    /// As [`read`](Pool::read).
    ///
    /// # Cancel safety
    /// As [`read`](Pool::read).
    #[track_caller]
    pub fn read_on_thread<T, F>(&self, f: F) -> impl Future<Output = Result<T, Error>> + Send
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let site = Location::caller();
        async move { self.inner.readers.run_on_thread(self.caller(site), f).await }
    }

    /// Runs `f` in a write transaction: what it did is committed when it returns `Ok`, and undone when it returns
    /// `Err` or panics.
    ///
    /// One writer runs at a time, here and in every other process that has the file open, so keep `f` short. Callers
    /// that wait at the same time share a transaction, each in a savepoint of its own, and are answered when it is
    /// committed: one that fails undoes only its own. If SQLite itself gives up the whole transaction because of one
    /// (`RAISE(ROLLBACK)`, an interrupted statement, a full disk, a deferred constraint), the others **run again** in
    /// a new one. So `f` may run more than once, and only its last run counts; let it have no effects but on the
    /// database. [`write_once`](Pool::write_once) is for closures that cannot.
    ///
    /// The transaction is `IMMEDIATE`: it is never repeated because another writer came between. It is not `f`'s to
    /// end: a `COMMIT` or `ROLLBACK` in `f` fails the call.
    ///
    /// # Errors
    /// What `f` returned; or, as an [`Error`], why it could not run or commit: [`Error::WriterBusy`],
    /// [`Error::Locked`], [`Error::Panicked`], [`Error::Sqlite`].
    ///
    /// # Cancel safety
    /// Dropped while it waits for its turn, nothing is written; dropped later, `f` runs to its end and is committed.
    #[track_caller]
    pub fn write<T, E, F>(&self, f: F) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnMut(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let site = Location::caller();
        async move { self.inner.writer.run(false, self.caller(site), f).await }
    }

    /// Runs `f` in a write transaction of its own, once at most.
    ///
    /// For closures with effects elsewhere, or that give away what they hold. It waits for a `COMMIT` of its own:
    /// many at once are slower than many of [`write`](Pool::write).
    ///
    /// # Errors
    /// As [`write`](Pool::write).
    ///
    /// # Cancel safety
    /// As [`write`](Pool::write).
    #[track_caller]
    pub fn write_once<T, E, F>(&self, f: F) -> impl Future<Output = Result<T, E>> + Send
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let site = Location::caller();
        let mut f = Some(f);
        let once = move |transaction: &Transaction<'_>| match f.take() {
            Some(f) => f(transaction),
            None => Err(E::from(Error::Closed)), // Never: who is alone runs once.
        };
        async move { self.inner.writer.run(true, self.caller(site), once).await }
    }

    /// Closes the pool: what runs or waits ends first, later callers get [`Error::Closed`].
    ///
    /// A pool that is dropped instead ends the same way without waiting. Its writer closes in the background; its idle
    /// readers close on the thread that drops the last clone, which touches the disk.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.writer.close().await;
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("path", &self.inner.file.path()).finish_non_exhaustive()
    }
}
