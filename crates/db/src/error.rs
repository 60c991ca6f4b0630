//! What can go wrong with a pool, and what to do about it.

#[cfg(feature = "postgres")]
use std::sync::Arc;
use std::{fmt, time::Duration};

/// A pool's failure. Its messages hold no password and no bound value; those of a database, which are its sources,
/// may quote a value.
///
/// Statements on a PostgreSQL pool return `sqlx::Error`, as sqlx's own pool does; where no connection could be
/// had, that error carries one of these: [`Error::in_sqlx`] finds it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A knob of [`PoolConfig`](crate::PoolConfig) has a value that cannot work.
    #[error("`{field}` must be {must}")]
    Config {
        /// The field.
        field: &'static str,
        /// What it must be.
        must: &'static str,
    },

    /// The URL of the database cannot be read.
    #[cfg(feature = "postgres")]
    #[error(
        "the database URL is not valid: write `postgres://USER:PASSWORD@HOST:5432/DATABASE`, \
         with special characters percent-encoded"
    )]
    Url(#[source] Option<sqlx::Error>),

    /// The URL of the database has a parameter that is not known, and would be ignored.
    #[cfg(feature = "postgres")]
    #[error("the database URL has an unknown parameter `{name}`: correct its name, or leave it out")]
    UrlParameter {
        /// Its name.
        name: String,
    },

    /// No PostgreSQL server could be reached at that address, or it did not answer as one.
    #[cfg(feature = "postgres")]
    #[error("cannot reach PostgreSQL at {server}: check that it runs there, and that the URL is right")]
    Unreachable {
        /// Address and database, without user and password.
        server: Arc<str>,
        /// What connecting ended with.
        source: Arc<sqlx::Error>,
    },

    /// A server answers, but does not let us in.
    #[cfg(feature = "postgres")]
    #[error("PostgreSQL at {server} refused the connection: check user, password, database and its limits")]
    Refused {
        /// Address and database, without user and password.
        server: Arc<str>,
        /// The server's own words.
        source: Arc<sqlx::Error>,
    },

    /// Every connection stayed in use for the whole connection timeout.
    #[error(
        "no database connection became free within {waited:?} ({in_use} of {max_connections} in use{}): \
         raise `max_connections`, or hold connections for less time",
        Queue(*waiting, longest_held)
    )]
    Exhausted {
        /// The connection timeout.
        waited: Duration,
        /// Connections in use at the end of the wait.
        in_use: u32,
        /// The pool's limit.
        max_connections: u32,
        /// Callers that waited at that moment, this one included; 0 on SQLite, where they are not counted.
        waiting: usize,
        /// Those who had held a connection for longest, the longest first; a few at most. Empty on SQLite.
        longest_held: Vec<Holder>,
    },

    /// A PostgreSQL statement ran for longer than [`max_statement`](crate::PoolConfig::max_statement). The pool
    /// cancels it on the server, or closes its connection if the server is silent.
    #[cfg(feature = "postgres")]
    #[error(
        "the PostgreSQL statement was given up because it ran for longer than `max_statement` ({limit:?}): give it an \
         index, let it touch fewer rows, or raise the limit; if all statements end so, check the network"
    )]
    TooLong {
        /// The limit.
        limit: Duration,
    },

    /// There is no Tokio runtime here, and the pool needs one.
    #[error("a pool must be made inside a Tokio runtime")]
    NoRuntime,

    /// The pool is closed.
    #[error("the pool is closed")]
    Closed,

    /// The caller's closure panicked; its transaction was rolled back.
    #[error("a database closure panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },

    /// The file cannot be opened as a SQLite database.
    #[cfg(feature = "sqlite")]
    #[error(
        "cannot open the SQLite database {}: check that its directory exists and may be written",
        path.display()
    )]
    Open {
        /// The file.
        path: std::path::PathBuf,
        /// SQLite's own words.
        source: rusqlite::Error,
    },

    /// The name stands for a database that only one connection could see.
    #[cfg(feature = "sqlite")]
    #[error("an in-memory SQLite database is private to one connection, a pool has several: name a file")]
    InMemory,

    /// The name would be read as a URI, whose parameters could undo what the pool relies on.
    #[cfg(feature = "sqlite")]
    #[error(
        "SQLite would read a path that starts with `file:` as a URI: write the path alone, or `./file:…`"
    )]
    Uri,

    /// Earlier writers of this pool held the turn for the whole connection timeout.
    #[cfg(feature = "sqlite")]
    #[error("no turn to write came within {waited:?}: make the write transactions shorter")]
    WriterBusy {
        /// The connection timeout.
        waited: Duration,
    },

    /// Another pool or process kept the file locked for the whole connection timeout.
    #[cfg(feature = "sqlite")]
    #[error(
        "another pool or process kept the SQLite file locked for {waited:?}: make its transactions shorter"
    )]
    Locked {
        /// The connection timeout.
        waited: Duration,
        /// SQLite's own words.
        source: rusqlite::Error,
    },

    /// SQLite could not do it.
    #[cfg(feature = "sqlite")]
    #[error("the SQLite statement failed")]
    Sqlite(#[source] rusqlite::Error),

    /// A SQLite statement ran for longer than [`max_statement`](crate::PoolConfig::max_statement).
    #[cfg(feature = "sqlite")]
    #[error(
        "the SQLite statement was interrupted because it ran for longer than `max_statement`: \
         give it an index, let it touch fewer rows, or raise the limit"
    )]
    Interrupted(#[source] rusqlite::Error),

    /// The system gave no thread.
    #[error("could not start the database's thread")]
    Thread(#[source] std::io::Error),
}

/// Who holds a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The place in the source that acquired it or began a transaction, or the statement that runs on it.
    pub site: String,
    /// For how long, so far.
    pub held: Duration,
}

/// How many wait, and for whom.
struct Queue<'a>(usize, &'a [Holder]);

impl fmt::Display for Queue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 > 0 {
            write!(f, ", {} waiting", self.0)?;
        }
        for (n, Holder { site, held }) in self.1.iter().enumerate() {
            let lead = if n == 0 { "; held longest by " } else { ", " };
            write!(f, "{lead}{site} for {} ms", held.as_millis())?;
        }
        Ok(())
    }
}

/// So that `?` works in a write closure.
#[cfg(feature = "sqlite")]
impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::Interrupted(error),
            _ => Self::Sqlite(error),
        }
    }
}

#[cfg(feature = "postgres")]
impl Error {
    /// The pool's own error inside the `sqlx::Error` of a statement, if it is one.
    ///
    /// ```
    /// # fn answer(error: sqlx::Error) -> u16 {
    /// match greenwave_db::Error::in_sqlx(&error) {
    ///     Some(greenwave_db::Error::Exhausted { .. }) => 503,
    ///     _ => 500,
    /// }
    /// # }
    /// ```
    pub fn in_sqlx(error: &sqlx::Error) -> Option<&Self> {
        match error {
            sqlx::Error::Io(io) => io.get_ref()?.downcast_ref(),
            _ => None,
        }
    }

    /// Wraps into the variant that says "the connection failed", which callers already treat as weather.
    pub(crate) fn into_sqlx(self) -> sqlx::Error {
        let kind = match &self {
            Self::Closed => return sqlx::Error::PoolClosed,
            Self::Exhausted { .. } | Self::TooLong { .. } => std::io::ErrorKind::TimedOut,
            _ => std::io::ErrorKind::NotConnected,
        };
        sqlx::Error::Io(std::io::Error::new(kind, self))
    }
}

/// What a panic said, for the error that reports it.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
