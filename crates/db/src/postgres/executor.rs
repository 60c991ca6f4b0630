//! Statements, timed.

use std::{
    borrow::BorrowMut,
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
    Arguments, Describe, Either, Execute, Executor, PgConnection, Postgres, SqlStr,
    error::BoxDynError,
    postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo},
};

use super::{
    Pool,
    here::Here,
    holds::Site,
    lease::Condition,
    limit::{Alarm, alarm, within},
    transaction::Transaction,
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
            let text = self.sql.as_str().as_bytes().trim_ascii_start();
            text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
        };
        self.arguments.is_none() || starts_with("BEGIN") || starts_with("START")
    }
}

impl Statement {
    /// Without arguments, and without rows whose values come in another format, it needs no preparation.
    fn simplify(&mut self) {
        self.arguments.take_if(|arguments| arguments.len() == 0);
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

    fn count_done(&mut self, done: &PgQueryResult) {
        self.affected = done.rows_affected();
    }

    fn count_one(&mut self, row: &Option<PgRow>) {
        self.returned = u64::from(row.is_some());
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

/// Waits for the answer to the statement that `watch` times.
async fn answer<'w, T>(
    mut watch: Watch<'w>,
    alarm: &mut Alarm,
    answer: BoxFuture<'_, Result<T, sqlx::Error>>,
    count: fn(&mut Watch<'w>, &T),
) -> Result<T, sqlx::Error> {
    let limit = watch.pool.inner.config.max_statement;
    let answer = within(alarm, limit, limit, answer).await;
    let answer = watch.note(answer)?;
    count(&mut watch, &answer);
    Ok(answer)
}

fn fetch_many<'c>(
    pool: Pool,
    connection: &'c mut PgConnection,
    mut alarm: impl BorrowMut<Alarm> + Send + 'c,
    statement: Statement,
    wait: Duration,
) -> impl Stream<Item = Result<Item, sqlx::Error>> + Send + 'c {
    try_stream! {
        let mut watch = Watch::start(&pool, &statement, wait);
        let limit = pool.inner.config.max_statement;
        let mut items = connection.fetch_many(statement);
        loop {
            let left = limit.saturating_sub(watch.spent);
            let item = within(alarm.borrow_mut(), limit, left, items.try_next()).await;
            let Some(item) = watch.note(item)? else { break };
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
    async fn checkout_for(&self, statement: &mut Statement) -> Result<Transaction, sqlx::Error> {
        let site = statement.site.map_or_else(|| Site::Statement(statement.sql.clone()), Site::Code);
        let mut lease = self.checkout(site).await?;
        // Until it has ended.
        lease.condition = Condition::Unsure;
        lease.careful = statement.may_begin();
        if self.inner.config.transaction_pooling && statement.arguments.is_some() {
            statement.persistent = false;
            return Box::pin(Transaction::begin(lease)).await;
        }
        Ok(Transaction::none(lease))
    }

    /// A connection on which to prepare.
    async fn checkout_to_prepare(&self, sql: &SqlStr) -> Result<Transaction, sqlx::Error> {
        let mut lease = self.checkout(Site::Statement(sql.clone())).await?;
        lease.condition = Condition::Unsure;
        match self.inner.config.transaction_pooling {
            true => Transaction::begin(lease).await,
            false => Ok(Transaction::none(lease)),
        }
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
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            if pool.inner.config.transaction_pooling {
                statement.simplify();
            }
            let mut using = pool.checkout_for(&mut statement).await?;
            let watch = Watch::start(&pool, &statement, using.lease.wait);
            let (connection, alarm) = using.lease.line();
            let result = answer(watch, alarm, connection.execute(statement), Watch::count_done).await;
            using.end_with(result).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Item, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(try_stream! {
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            let mut using = pool.checkout_for(&mut statement).await?;
            let mut result = Ok(());
            {
                let wait = using.lease.wait;
                let (connection, alarm) = using.lease.line();
                let items = fetch_many(pool, connection, alarm, statement, wait);
                for await item in items {
                    match item {
                        Ok(item) => yield item,
                        Err(error) => result = Err(error),
                    }
                }
            }
            using.end_with(result).await?;
        })
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(async move {
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            let mut using = pool.checkout_for(&mut statement).await?;
            let watch = Watch::start(&pool, &statement, using.lease.wait);
            let (connection, alarm) = using.lease.line();
            let result = answer(watch, alarm, connection.fetch_all(statement), |watch, rows| {
                watch.returned = rows.len() as u64
            })
            .await;
            using.end_with(result).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.pool.clone(), Statement::of(query, self.site));
        Box::pin(async move {
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            let mut using = pool.checkout_for(&mut statement).await?;
            let watch = Watch::start(&pool, &statement, using.lease.wait);
            let (connection, alarm) = using.lease.line();
            let result = answer(watch, alarm, connection.fetch_optional(statement), Watch::count_one).await;
            using.end_with(result).await
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
            let mut using = pool.checkout_to_prepare(&sql).await?;
            let result = using.lease.within(|connection| connection.prepare_with(sql, parameters)).await;
            using.end_with(result).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        let pool = self.pool.clone();
        Box::pin(async move {
            let mut using = pool.checkout_to_prepare(&sql).await?;
            let result = using.lease.within(|connection| connection.describe(sql)).await;
            using.end_with(result).await
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
            let watch = Watch::start(&self.pool, &statement, Duration::ZERO);
            answer(watch, &mut alarm(), self.connection.execute(statement), Watch::count_done).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Item, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match Statement::of(query, Some(self.site)) {
            Ok(statement) => {
                Box::pin(fetch_many(self.pool, self.connection, alarm(), statement, Duration::ZERO))
            }
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
            let watch = Watch::start(&self.pool, &statement, Duration::ZERO);
            answer(watch, &mut alarm(), self.connection.fetch_all(statement), |watch, rows| {
                watch.returned = rows.len() as u64
            })
            .await
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
            let watch = Watch::start(&self.pool, &statement, Duration::ZERO);
            answer(watch, &mut alarm(), self.connection.fetch_optional(statement), Watch::count_one).await
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
        let limit = self.pool.inner.config.max_statement;
        Box::pin(async move {
            within(&mut alarm(), limit, limit, self.connection.prepare_with(sql, parameters)).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        let limit = self.pool.inner.config.max_statement;
        Box::pin(async move { within(&mut alarm(), limit, limit, self.connection.describe(sql)).await })
    }
}
