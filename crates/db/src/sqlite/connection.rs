//! How connections to the file are opened, and how they wait for its lock.

use std::{
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Config, Synchronous, trace};
use crate::{Error, PoolConfig};

/// Statements that a connection keeps prepared.
const STATEMENT_CACHE: usize = 512;
/// The most memory that a connection keeps pages in; it grows as pages are read. SQLite's own 2 MB make a point read in
/// a file of 10 MB copy a page from the system nearly every time.
const PAGE_CACHE_KIB: i64 = 16 * 1024;
/// The longest pause between two tries for the lock.
const MAX_PAUSE: Duration = Duration::from_micros(500);

/// The database file and what its connections have in common.
pub(super) struct File {
    path: Arc<Path>,
    pub(super) config: PoolConfig,
    synchronous: Synchronous,
    /// The longest that a statement may run; zero is no limit.
    pub(super) max_statement: Duration,
}

impl File {
    pub(super) fn new(path: &Path, config: Config) -> Result<Self, Error> {
        if path.as_os_str().is_empty() || path == Path::new(":memory:") {
            return Err(Error::InMemory);
        }
        // The bundled SQLite reads such a name as a URI even where SQLITE_OPEN_URI is not given.
        if path.as_os_str().as_encoded_bytes().starts_with(b"file:") {
            return Err(Error::Uri);
        }
        let Config { pool, synchronous, max_statement } = config;
        Ok(Self { path: path.into(), config: pool, synchronous, max_statement })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn shared_path(&self) -> Arc<Path> {
        Arc::clone(&self.path)
    }

    /// A connection for the writer. It does not wait for locks by itself: see [`File::wait_for_lock`].
    pub(super) fn open_writer(&self) -> Result<Connection, Error> {
        let connection = self.open()?;
        self.wait_for_lock(|| {
            // The switch to WAL takes a lock that SQLite does not wait for, whatever the busy timeout.
            let mode: String =
                connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
            if mode != "wal" {
                return Err(no_wal());
            }
            connection.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
            connection.pragma_update(None, "synchronous", self.synchronous.pragma())?;
            connection.pragma_update(None, "foreign_keys", true)
        })
        .map_err(|error| self.opening(error))?;
        Ok(connection)
    }

    /// A connection for readers, which refuses to write.
    pub(super) fn open_reader(&self) -> Result<Connection, Error> {
        let connection = self.open()?;
        let prepare = || {
            connection.busy_timeout(self.config.connection_timeout)?;
            connection.pragma_update(None, "cache_size", -PAGE_CACHE_KIB)?;
            connection.pragma_update(None, "query_only", true)
        };
        prepare().map_err(|error| self.opening(error.into()))?;
        Ok(connection)
    }

    fn open(&self) -> Result<Connection, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&self.path, flags).map_err(|error| self.opening(error.into()))?;
        connection.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
        connection
            .busy_timeout(Duration::ZERO)
            .and_then(|()| trace::observe(&connection))
            .map_err(|error| self.opening(error.into()))?;
        Ok(connection)
    }

    fn opening(&self, error: Error) -> Error {
        match error {
            Error::Sqlite(source) => Error::Open { path: self.path.to_path_buf(), source },
            other => other,
        }
    }

    /// Repeats `attempt` until the file's lock is free, for as long as the connection timeout.
    ///
    /// SQLite's own busy handler sleeps for up to 100 ms between tries. Against a writer that commits without pause it
    /// would starve; short sleeps get their turn.
    pub(super) fn wait_for_lock<T>(
        &self,
        mut attempt: impl FnMut() -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let waited = self.config.connection_timeout;
        let start = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) if !is_busy(&error) => return Err(Error::Sqlite(error)),
                Err(source) if start.elapsed() >= waited => return Err(Error::Locked { waited, source }),
                Err(_) => thread::sleep(pause),
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn no_wal() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
    rusqlite::Error::SqliteFailure(code, Some("the file system does not support WAL mode".into()))
}
