//! Statements, timed.

use std::{
    fmt,
    panic::Location,
    time::{Duration, Instant},
};

use async_stream::try_stream;
use futures_util::{
    TryStreamExt,
    future::BoxFuture,
    stream::{BoxStream, Stream},
};
use sqlx::{
    Describe, Either, Execute, Executor, PgConnection, Postgres, SqlStr,
    error::BoxDynError,
    postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{
    Pool,
    here::Here,
    holds::Site,
    lease::{Condition, Lease},
};
use crate::{
    query_stats::{self, Dialect, Scope},
    telemetry::Finished,
};

type Item = Either<PgQueryResult, PgRow>;

/// A connection whose statements are timed: see [`Pool::timed`].
pub struct Timed<'c> {
    pool: Pool,
    connection: &'c mut PgConnection,
    site: &'static Location<'static>,
}

impl<'c> Timed<'c> {
    pub(super) fn new(
        pool: Pool,
        connection: &'c mut PgConnection,
        site: &'static Location<'static>,
    ) -> Self {
        Self { pool, connection, site }
    }
}

impl fmt::Debug for Timed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// What sqlx hands over to be run, in the one shape that both sees the text and passes on unchanged.
struct Statement {
    sql: SqlStr,
    prepared: Option<PgStatement>,
    arguments: Option<PgArguments>,
    persistent: bool,
    site: Option<&'static Location<'static>>,
}

impl Statement {
    fn of<'q>(
        mut query: impl Execute<'q, Postgres>,
        site: Option<&'static Location<'static>>,
    ) -> Result<Self, BoxDynError> {
        let arguments = query.take_arguments()?;
        let prepared = query.statement().cloned();
        let persistent = query.persistent();
        Ok(Self { sql: query.sql(), prepared, arguments, persistent, site })
    }

    /// Whether it might begin a transaction of its own. Without arguments, it may be several statements.
    fn may_begin(&self) -> bool {
        let starts_with = |word: &str| {
            let text = self.sql.as_str().trim_start().as_bytes();
            text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
        };
        self.arguments.is_none() || starts_with("BEGIN") || starts_with("START")
    }
}

impl Execute<'_, Postgres> for Statement {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.prepared.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

/// Times one statement, and reports it when dropped: a statement that its caller gave up is among the slowest.
struct Watch<'a> {
    pool: &'a Pool,
    sql: SqlStr,
    scope: Option<Scope>,
    site: query_stats::Site,
    wait: Duration,
    spent: Duration,
    since: Option<Instant>,
    returned: u64,
    affected: u64,
    /// Whether it failed, as far as it got.
    failed: Option<bool>,
}

impl<'a> Watch<'a> {
    fn start(pool: &'a Pool, statement: &Statement, wait: Duration) -> Self {
        Self {
            pool,
            sql: statement.sql.clone(),
            scope: Scope::current(),
            site: statement.site.map_or(query_stats::Site::Unknown, query_stats::Site::Code),
            wait,
            spent: Duration::ZERO,
            since: Some(Instant::now()),
            returned: 0,
            affected: 0,
            failed: None,
        }
    }

    fn note<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        self.failed = Some(result.is_err());
        self.pool.noting_breakage(result)
    }

    /// The caller has the row now: what it does with it is not the database's time.
    fn pause(&mut self) {
        self.spent += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    fn resume(&mut self) {
        self.since = Some(Instant::now());
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.pause();
        let statement = query_stats::Statement {
            text: self.sql.as_str(),
            dialect: Dialect::Postgres,
            scope: self.scope.as_ref(),
            site: self.site,
            elapsed: self.spent,
            wait: self.wait,
            // A `SELECT`'s are counted as both.
            rows: self.returned.max(self.affected),
            failed: self.failed.unwrap_or(false),
            given_up: self.failed.is_none(),
        };
        let finished = Finished { statement, stats: &self.pool.stats, returned: self.returned };
        let slow = self.pool.inner.config.slow_query;
        if let Some(series) = finished.report(slow, false)
            && self.spent >= slow
        {
            self.pool.explain(&series, &self.sql);
        }
    }
}

async fn execute(
    pool: &Pool,
    connection: &mut PgConnection,
    statement: Statement,
    wait: Duration,
) -> Result<PgQueryResult, sqlx::Error> {
    let mut watch = Watch::start(pool, &statement, wait);
    let done = watch.note(connection.execute(statement).await)?;
    watch.affected = done.rows_affected();
    Ok(done)
}

async fn fetch_all(
    pool: &Pool,
    connection: &mut PgConnection,
    statement: Statement,
    wait: Duration,
) -> Result<Vec<PgRow>, sqlx::Error> {
    let mut watch = Watch::start(pool, &statement, wait);
    let rows = watch.note(connection.fetch_all(statement).await)?;
    watch.returned = rows.len() as u64;
    Ok(rows)
}

async fn fetch_optional(
    pool: &Pool,
    connection: &mut PgConnection,
    statement: Statement,
    wait: Duration,
) -> Result<Option<PgRow>, sqlx::Error> {
    let mut watch = Watch::start(pool, &statement, wait);
    let row = watch.note(connection.fetch_optional(statement).await)?;
    watch.returned = u64::from(row.is_some());
    Ok(row)
}

fn fetch_many<'c>(
    pool: Pool,
    connection: &'c mut PgConnection,
    statement: Statement,
    wait: Duration,
) -> impl Stream<Item = Result<Item, sqlx::Error>> + Send + 'c {
    try_stream! {
        let mut watch = Watch::start(&pool, &statement, wait);
        let mut items = connection.fetch_many(statement);
        while let Some(item) = watch.note(items.try_next().await)? {
            match &item {
                Either::Left(done) => watch.affected += done.rows_affected(),
                Either::Right(_) => watch.returned += 1,
            }
            watch.pause();
            yield item;
            watch.resume();
        }
    }
}

impl Pool {
    async fn checkout_for(&self, statement: &Statement) -> Result<Lease, sqlx::Error> {
        let site = statement.site.map_or_else(|| Site::Statement(statement.sql.clone()), Site::Code);
        let mut lease = self.checkout(site).await?;
        // Until it has ended.
        lease.condition = Condition::Unsure;
        lease.careful = statement.may_begin();
        Ok(lease)
    }
}

impl<'p> Executor<'p> for Here<'p> {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let mut lease = pool.checkout_for(&statement).await?;
            let wait = lease.wait;
            let result = execute(&pool, lease.connection_mut(), statement, wait).await;
            lease.ended(result)
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Item, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(try_stream! {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let mut lease = pool.checkout_for(&statement).await?;
            let mut result = Ok(());
            {
                let wait = lease.wait;
                let items = fetch_many(pool, lease.connection_mut(), statement, wait);
                for await item in items {
                    match item {
                        Ok(item) => yield item,
                        Err(error) => result = Err(error),
                    }
                }
            }
            lease.ended(result)?;
        })
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let mut lease = pool.checkout_for(&statement).await?;
            let wait = lease.wait;
            let result = fetch_all(&pool, lease.connection_mut(), statement, wait).await;
            lease.ended(result)
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let mut lease = pool.checkout_for(&statement).await?;
            let wait = lease.wait;
            let result = fetch_optional(&pool, lease.connection_mut(), statement, wait).await;
            lease.ended(result)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.pool.clone();
        Box::pin(async move {
            let mut lease = pool.checkout(Site::Statement(sql.clone())).await?;
            lease.condition = Condition::Unsure;
            let result = lease.connection_mut().prepare_with(sql, parameters).await;
            lease.ended(result)
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.pool.clone();
        Box::pin(async move {
            let mut lease = pool.checkout(Site::Statement(sql.clone())).await?;
            lease.condition = Condition::Unsure;
            let result = lease.connection_mut().describe(sql).await;
            lease.ended(result)
        })
    }
}

impl<'c> Executor<'c> for Timed<'c> {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::of(query, Some(self.site));
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            execute(&self.pool, self.connection, statement, Duration::ZERO).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Item, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match Statement::of(query, Some(self.site)) {
            Ok(statement) => Box::pin(fetch_many(self.pool, self.connection, statement, Duration::ZERO)),
            Err(error) => Box::pin(futures_util::stream::iter([Err(sqlx::Error::Encode(error))])),
        }
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::of(query, Some(self.site));
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            fetch_all(&self.pool, self.connection, statement, Duration::ZERO).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::of(query, Some(self.site));
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            fetch_optional(&self.pool, self.connection, statement, Duration::ZERO).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        self.connection.prepare_with(sql, parameters)
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        self.connection.describe(sql)
    }
}
