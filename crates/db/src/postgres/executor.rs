//! Statements, timed.

use std::{
    borrow::BorrowMut,
    fmt,
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
    holds::Site,
    lease::Condition,
    limit::{Alarm, alarm, within},
    transaction::Transaction,
};
use crate::telemetry::Finished;

type Item = Either<PgQueryResult, PgRow>;

/// A connection whose statements are timed: see [`Pool::timed`].
pub struct Timed<'c> {
    pool: Pool,
    connection: &'c mut PgConnection,
}

impl<'c> Timed<'c> {
    pub(super) fn new(pool: Pool, connection: &'c mut PgConnection) -> Self {
        Self { pool, connection }
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
}

impl Statement {
    fn of<'q>(mut query: impl Execute<'q, Postgres>) -> Result<Self, BoxDynError> {
        let arguments = query.take_arguments()?;
        let prepared = query.statement().cloned();
        let persistent = query.persistent();
        Ok(Self { sql: query.sql(), prepared, arguments, persistent })
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
struct Watch {
    sql: SqlStr,
    slow: Duration,
    wait: Duration,
    spent: Duration,
    since: Option<Instant>,
    rows: u64,
}

impl Watch {
    fn start(pool: &Pool, statement: &Statement, wait: Duration) -> Self {
        Self {
            sql: statement.sql.clone(),
            slow: pool.inner.config.slow_query,
            wait,
            spent: Duration::ZERO,
            since: Some(Instant::now()),
            rows: 0,
        }
    }

    /// The caller has the row now: what it does with it is not the database's time.
    fn pause(&mut self) {
        self.spent += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }

    fn resume(&mut self) {
        self.since = Some(Instant::now());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.pause();
        let &mut Self { ref sql, slow, wait, spent, rows, .. } = self;
        Finished { system: "postgresql", text: sql.as_str(), elapsed: spent, wait, rows }.report(slow);
    }
}

/// Waits for the answer to the statement that `watch` times.
async fn answer<T>(
    pool: &Pool,
    mut watch: Watch,
    alarm: &mut Alarm,
    answer: BoxFuture<'_, Result<T, sqlx::Error>>,
    rows: fn(&T) -> usize,
) -> Result<T, sqlx::Error> {
    let limit = pool.inner.config.max_statement;
    let answer = pool.noting_breakage(within(alarm, limit, limit, answer).await)?;
    watch.rows = rows(&answer) as u64;
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
            let Some(item) = pool.noting_breakage(item)? else { break };
            watch.rows += u64::from(item.is_right());
            watch.pause();
            yield item;
            watch.resume();
        }
    }
}

impl Pool {
    async fn checkout_for(&self, statement: &mut Statement) -> Result<Transaction, sqlx::Error> {
        let mut lease = self.checkout(Site::Statement(statement.sql.clone())).await?;
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

impl<'p> Executor<'p> for &Pool {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.clone(), Statement::of(query));
        Box::pin(async move {
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            if pool.inner.config.transaction_pooling {
                statement.simplify();
            }
            let mut using = pool.checkout_for(&mut statement).await?;
            let watch = Watch::start(&pool, &statement, using.lease.wait);
            let (connection, alarm) = using.lease.line();
            let result = answer(&pool, watch, alarm, connection.execute(statement), |_| 0).await;
            using.end_with(result).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Item, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.clone(), Statement::of(query));
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
        let (pool, statement) = (self.clone(), Statement::of(query));
        Box::pin(async move {
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            let mut using = pool.checkout_for(&mut statement).await?;
            let watch = Watch::start(&pool, &statement, using.lease.wait);
            let (connection, alarm) = using.lease.line();
            let result = answer(&pool, watch, alarm, connection.fetch_all(statement), Vec::len).await;
            using.end_with(result).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let (pool, statement) = (self.clone(), Statement::of(query));
        Box::pin(async move {
            let mut statement = statement.map_err(sqlx::Error::Encode)?;
            let mut using = pool.checkout_for(&mut statement).await?;
            let watch = Watch::start(&pool, &statement, using.lease.wait);
            let (connection, alarm) = using.lease.line();
            let result = answer(&pool, watch, alarm, connection.fetch_optional(statement), |row| {
                usize::from(row.is_some())
            })
            .await;
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
        let pool = self.clone();
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
        let pool = self.clone();
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
        let statement = Statement::of(query);
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let watch = Watch::start(&self.pool, &statement, Duration::ZERO);
            answer(&self.pool, watch, &mut alarm(), self.connection.execute(statement), |_| 0).await
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Item, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match Statement::of(query) {
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
        let statement = Statement::of(query);
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let watch = Watch::start(&self.pool, &statement, Duration::ZERO);
            answer(&self.pool, watch, &mut alarm(), self.connection.fetch_all(statement), Vec::len).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let statement = Statement::of(query);
        Box::pin(async move {
            let statement = statement.map_err(sqlx::Error::Encode)?;
            let watch = Watch::start(&self.pool, &statement, Duration::ZERO);
            answer(&self.pool, watch, &mut alarm(), self.connection.fetch_optional(statement), |row| {
                usize::from(row.is_some())
            })
            .await
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
