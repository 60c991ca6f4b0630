use greenwave_cache::LoadError;
use greenwave_db::BatchError;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in the shop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody has this email already.
    #[error("email: a user has it already")]
    EmailInUse,

    /// An order names a customer who does not exist.
    #[error("customer_id: there is no user {0}")]
    NoSuchCustomer(i64),

    /// An order names a product that does not exist.
    #[error("items: there is no product {0}")]
    NoSuchProduct(i64),

    /// Seeding found rows.
    #[error(
        "the database has users, products or orders already, and seeding adds to no data: give an empty database \
         (an SQLite file may simply be removed)"
    )]
    NotEmpty,

    /// Seeding was asked for sizes that make no shop.
    #[error("{0}")]
    SeedSize(&'static str),

    /// The database's URL is none that the shop knows.
    #[error("{0}")]
    Url(&'static str),

    /// The folder of an SQLite file could not be made.
    #[error("cannot create the folder {}: choose another path in DATABASE_URL", path.display())]
    Folder {
        /// The folder.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },

    /// Another process changes the tables, and did not end within a minute.
    #[error(
        "another process has kept the database's tables to itself for a minute: let it finish (`shop seed` takes a \
         while), then try again"
    )]
    Busy,

    /// The cache's URL does not parse.
    #[error("REDIS_URL: write redis://HOST:PORT, or leave it out to cache in this process only")]
    RedisUrl(#[source] greenwave_cache::Error),

    /// The pool could not be opened.
    #[error(transparent)]
    Open(greenwave_db::Error),

    /// The database failed, or was not there.
    #[error("the database could not do it")]
    Database(#[source] BoxError),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Error {
        // Lock not available: only who prepares or fills the database sets a limit for that.
        match error.as_database_error().and_then(|error| error.code()).as_deref() {
            Some("55P03") => Error::Busy,
            _ => Error::Database(error.into()),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => Error::Busy,
            _ => Error::Database(error.into()),
        }
    }
}

impl From<greenwave_db::Error> for Error {
    fn from(error: greenwave_db::Error) -> Error {
        Error::Database(error.into())
    }
}

impl From<BatchError<sqlx::Error>> for Error {
    fn from(error: BatchError<sqlx::Error>) -> Error {
        Error::Database(error.into())
    }
}

impl From<LoadError<Error>> for Error {
    fn from(error: LoadError<Error>) -> Error {
        Error::Database(error.into())
    }
}

impl From<greenwave_events::Error> for Error {
    fn from(error: greenwave_events::Error) -> Error {
        Error::Database(error.into())
    }
}

impl From<greenwave_jobs::Error> for Error {
    fn from(error: greenwave_jobs::Error) -> Error {
        Error::Database(error.into())
    }
}

/// The error and its causes, each said once: some libraries repeat a cause in their own message.
///
/// ```
/// #[derive(Debug, thiserror::Error)]
/// #[error("the shop is closed")]
/// struct Closed(#[source] std::fmt::Error);
///
/// let error = Closed(std::fmt::Error);
/// assert_eq!(greenwave_shop::error_chain(&error), format!("the shop is closed: {}", std::fmt::Error));
/// ```
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The same on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    error_chain(error).replace('\n', " ")
}
