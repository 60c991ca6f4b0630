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

    /// The queue's tables are missing or older than this library: call [`Queue::migrate`](crate::Queue::migrate).
    #[error("the queue's tables are missing or out of date; call `Queue::migrate` before running a worker")]
    NotMigrated,

    /// The worker's configuration or its handlers contradict themselves.
    #[error("the worker cannot run: {0}")]
    Worker(String),

    /// The database did not answer in time: it or the network hangs, or another process holds a lock.
    #[error("the queue's database did not answer within {0:?}")]
    Timeout(std::time::Duration),

    /// The thread that owns the SQLite connection has ended.
    #[error("the queue's SQLite thread has ended")]
    Closed,
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
