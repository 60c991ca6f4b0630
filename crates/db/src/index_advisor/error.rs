//! What can keep the advisor from advising.

/// The advisor's failure. A statement that it cannot judge is no failure: it stands in
/// [`Advice::skipped`](super::Advice::skipped).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database does not count its statements.
    #[error(
        "pg_stat_statements is not in this database: add `shared_preload_libraries = 'pg_stat_statements'` to \
         postgresql.conf and restart, then run `CREATE EXTENSION pg_stat_statements`"
    )]
    NoStatistics(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),

    /// The role may not do what the advice needs.
    #[error("the role may not {what}: {cure}")]
    Denied {
        /// What it may not do.
        what: &'static str,
        /// What to do about it.
        cure: &'static str,
        /// The database's own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// Others held a lock for longer than the advisor waits.
    #[error("others keep {table} locked: try again when its long transactions have ended")]
    Locked {
        /// The table.
        table: String,
        /// The database's own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The database could not answer.
    #[error("could not {doing}")]
    Database {
        /// What the advisor was about to do.
        doing: &'static str,
        /// The database's own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The database is too large for advice to be tried out on a copy.
    #[error(
        "the database has {} MB, and advice is verified on a copy of {} MB at most: ask for advice without it",
        bytes >> 20, max_bytes >> 20
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The largest that is copied.
        max_bytes: u64,
    },
}
