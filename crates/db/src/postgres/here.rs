//! Statements on the pool, with the place in the source that they come from.

use std::{fmt, panic::Location};

use futures_util::{future::BoxFuture, stream::BoxStream};
use sqlx::{
    Describe, Either, Execute, Executor, Postgres, SqlStr,
    postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::Pool;

/// A pool that knows its caller: see [`Pool::here`].
#[derive(Clone, Copy)]
pub struct Here<'p> {
    pub(super) pool: &'p Pool,
    pub(super) site: Option<&'static Location<'static>>,
}

impl Pool {
    /// The pool as an executor whose statements count for the line that calls this.
    ///
    /// sqlx calls an executor from its own code. So of a statement run on a bare `&Pool` only a backtrace shows the
    /// call site, which is taken when the statement is first seen; for this one it is known each time, and named where
    /// the statement holds its connection for long.
    ///
    /// ```no_run
    /// # async fn f(pool: greenwave_db::postgres::Pool) -> Result<(), sqlx::Error> {
    /// let (name,): (String,) =
    ///     sqlx::query_as("SELECT name FROM users WHERE id = $1").bind(7).fetch_one(pool.here()).await?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn here(&self) -> Here<'_> {
        Here { pool: self, site: Some(Location::caller()) }
    }

    fn anywhere(&self) -> Here<'_> {
        Here { pool: self, site: None }
    }
}

impl fmt::Debug for Here<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Here").field("pool", &self.pool).field("site", &self.site).finish()
    }
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.anywhere().execute(query)
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.anywhere().fetch_many(query)
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.anywhere().fetch_all(query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.anywhere().fetch_optional(query)
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        self.anywhere().prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        self.anywhere().describe(sql)
    }
}
