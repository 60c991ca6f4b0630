/// What can go wrong with a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The job could not be written as JSON; pushing it again will not help.
    #[error("could not encode job `{job}` as JSON")]
    Encode {
        /// [`Job::NAME`](crate::Job::NAME) of the job.
        job: &'static str,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },

    /// A schedule makes no sense: its cron pattern, its time zone or its interval.
    #[error("{0}")]
    Schedule(String),

    /// A workflow was put together wrongly.
    #[error("the workflow cannot be pushed: {0}")]
    Workflow(String),

    /// The result of a job is not of the type that was asked for.
    #[error("the result of job {job} is of another type")]
    Result {
        /// The job.
        job: crate::JobId,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },

    /// PostgreSQL refused or could not be reached. After a failed push the job may or may not be stored.
    #[cfg(feature = "postgres")]
    #[error("the queue's PostgreSQL database failed")]
    Postgres(#[source] sqlx::Error),

    /// SQLite refused: the file is locked, full, or not ours.
    #[cfg(feature = "sqlite")]
    #[error("the queue's SQLite database failed")]
    Sqlite(#[source] rusqlite::Error),

    /// JetStream refused or could not be reached. After a failed push the jobs, or some of them, may be stored.
    #[cfg(feature = "nats")]
    #[error("the queue's NATS server failed")]
    Nats(#[source] crate::BoxError),

    /// The queue's tables are missing or older than this library: call [`Queue::migrate`](crate::Queue::migrate).
    #[error("the queue's tables are missing or out of date; call `Queue::migrate` before running a worker")]
    NotMigrated,

    /// The queue is as full as its limits allow; nothing was stored. Try later, or do without.
    #[error("the queue `{queue}` is full: {max_waiting} jobs wait in it")]
    Full {
        /// The queue.
        queue: String,
        /// Its bound.
        max_waiting: u64,
    },

    /// The database of this queue cannot do what was asked; trying again will not help.
    #[error("this queue's backend does not support {0}")]
    Unsupported(&'static str),

    /// The pushes that were stored together with this one failed with it. It may or may not be stored.
    #[error("could not store the job")]
    Batch(#[source] std::sync::Arc<Error>),

    /// The worker's configuration or its handlers contradict themselves.
    #[error("the worker cannot run: {0}")]
    Worker(String),

    /// What was asked for makes no sense, and was not done.
    #[error("{0}")]
    Invalid(String),

    /// The database did not answer in time: it or the network hangs, or another process holds a lock.
    #[error("the queue's database did not answer within {0:?}")]
    Timeout(std::time::Duration),

    /// What had to answer has ended: the thread that owns the SQLite connection, or the runtime that stored the pushes
    /// of several callers.
    #[error("the queue has been shut down")]
    Closed,
}

impl Error {
    /// True if the database surely stored nothing because of what it was given, so that of a batch the others may be
    /// stored all the same.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Error::Full { .. } | Error::Unsupported(_) | Error::Invalid(_) => true,
            // Data exceptions, broken constraints, what is too large or nested too deeply, what a trigger raised.
            #[cfg(feature = "postgres")]
            Error::Postgres(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| ["22", "23", "54", "P0"].iter().any(|class| code.starts_with(class))),
            #[cfg(feature = "sqlite")]
            Error::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => matches!(
                error.code,
                rusqlite::ErrorCode::ConstraintViolation
                    | rusqlite::ErrorCode::TooBig
                    | rusqlite::ErrorCode::TypeMismatch
            ),
            _ => false,
        }
    }
}

#[cfg(feature = "postgres")]
pub(crate) fn postgres(error: sqlx::Error) -> Error {
    Error::Postgres(error)
}

/// The error and its causes in one line, for where only text can be kept.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
