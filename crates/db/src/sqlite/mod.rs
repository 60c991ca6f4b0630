//! A SQLite pool: several readers, one writer, none on the async runtime's threads.

mod connection;
mod readers;
mod trace;
mod writer;

use std::{fmt, path::Path, sync::Arc};

use rusqlite::{Connection, Transaction};

use crate::{Error, PoolConfig};
use connection::File;
use readers::Readers;
use writer::Writer;

/// A pool over one SQLite file; clones share it.
///
/// SQLite lets many read while one writes, and makes a second writer wait. The pool is built the same way: up to
/// [`max_connections`](PoolConfig::max_connections) readers, opened as they are needed, and a thread of its own that
/// runs the writers one after the other. Closures run on threads that may block, so the async runtime never does.
///
/// The file is in WAL mode with `synchronous=NORMAL`: what was acknowledged survives a crash of the process; a crash
/// of the machine may lose the last transactions, but does not damage the file. Foreign keys are enforced. Several
/// pools, in several processes of one machine, may share the file.
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
    pub fn open(path: impl AsRef<Path>, config: PoolConfig) -> Result<Self, Error> {
        config.check()?;
        let file = Arc::new(File::new(path.as_ref(), config)?);
        let writer = Writer::start(Arc::clone(&file))?;
        let readers = Arc::new(Readers::new(Arc::clone(&file)));
        Ok(Self { inner: Arc::new(Inner { file, readers, writer }) })
    }

    /// Runs `f` with a connection that cannot write.
    ///
    /// Each statement sees the database as it is then; `unchecked_transaction` gives several the same view.
    /// `prepare_cached` pays, for the connection is used again.
    ///
    /// # Errors
    /// [`Error::Sqlite`] with what `f` returned, [`Error::Exhausted`] if no reader became free in time,
    /// [`Error::Panicked`] if `f` did.
    ///
    /// # Cancel safety
    /// Safe: dropped while it waits, nothing runs; dropped later, `f` runs to its end and its result is lost.
    pub async fn read<T, F>(&self, f: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.inner.readers.run(f).await
    }

    /// Runs `f` in a write transaction: commits when it returns `Ok`, rolls back when it returns `Err` or panics.
    ///
    /// One writer runs at a time, here and in every other process that has the file open, so keep `f` short. The
    /// transaction begins as `IMMEDIATE`: it never has to be repeated because another writer came between.
    ///
    /// # Errors
    /// What `f` returned; or, as an [`Error`], why it could not run or commit: [`Error::WriterBusy`],
    /// [`Error::Locked`], [`Error::Panicked`], [`Error::Sqlite`].
    ///
    /// # Cancel safety
    /// Dropped while it waits for its turn, nothing is written; dropped later, `f` runs to its end and is committed.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        self.inner.writer.run(f).await
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
