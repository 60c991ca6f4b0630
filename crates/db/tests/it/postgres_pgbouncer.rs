//! Behind PgBouncer in transaction mode, with fewer of the server's connections than clients.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, future::join_all};
use greenwave_db::{Error, PoolConfig, postgres::Pool};
use greenwave_test_servers::{Server, postgres_database};
use sqlx::{Acquire, AssertSqlSafe, Executor, Row};
use tokio::time::timeout;

const TASKS: i64 = 16;

/// A proxy with three connections, and a pool of eight before it.
async fn pool(config: PoolConfig) -> (Server, Pool) {
    let proxy = Server::pgbouncer(&postgres_database());
    let config = PoolConfig { max_connections: 8, connection_timeout: Duration::from_secs(20), ..config };
    let pool = Pool::connect(&proxy.url(), config).await.unwrap();
    (proxy, pool)
}

fn pooling() -> PoolConfig {
    PoolConfig { transaction_pooling: true, ..Default::default() }
}

async fn echo(pool: &Pool, n: i64) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT $1::bigint").bind(n).fetch_one(pool).await
}

/// One of the things that callers do, every answer checked. `Err` is an answer that should have come.
async fn step(pool: &Pool, kind: i64, n: i64) -> Result<(), sqlx::Error> {
    match kind {
        0 => assert_eq!(echo(pool, n).await?, n),
        1 => {
            // A new statement each time, without arguments.
            let statement = AssertSqlSafe(format!("SELECT {n}::bigint, 'x'"));
            assert_eq!(sqlx::query(statement).fetch_one(pool).await?.get::<i64, _>(0), n);
        }
        2 => {
            let statement = AssertSqlSafe(format!("SELECT {n}::bigint; SELECT 2::bigint"));
            assert_eq!(sqlx::raw_sql(statement).fetch_all(pool).await?[0].get::<i64, _>(0), n);
        }
        3 => {
            let mut tx = pool.begin().await?;
            sqlx::query("INSERT INTO written VALUES ($1)").bind(n).execute(&mut *tx).await?;
            let found: i64 = sqlx::query_scalar("SELECT count(*) FROM written WHERE n = $1")
                .bind(n)
                .fetch_one(pool.timed(&mut tx))
                .await?;
            assert_eq!(found, 1);
            tx.commit().await?;
        }
        4 => {
            let mut tx = Acquire::begin(pool).await?;
            sqlx::query("INSERT INTO written VALUES ($1)").bind(-n).execute(&mut *tx).await?;
            drop(tx);
        }
        5 => {
            let error = sqlx::query("SELECT $1::bigint / 0").bind(n).fetch_all(pool).await.unwrap_err();
            let code = error.as_database_error().and_then(|error| error.code().map(String::from));
            assert_eq!(code.as_deref(), Some("22012"), "{error:?}");
        }
        6 => {
            let rows = sqlx::query_scalar::<_, i64>("SELECT $1::bigint + generate_series(0, 300)");
            let rows: Vec<i64> = rows.bind(n).fetch(pool).try_collect().await?;
            assert_eq!(rows, (n..=n + 300).collect::<Vec<_>>());
        }
        7 => {
            // Dropped after the first row.
            let rows = sqlx::query_scalar::<_, i64>("SELECT $1::bigint + generate_series(0, 5000)");
            assert_eq!(rows.bind(n).fetch(pool).next().await.unwrap()?, n);
        }
        8 => {
            let slow = sqlx::query("SELECT pg_sleep($1)").bind(0.02).execute(pool);
            let _ = timeout(Duration::from_millis(n.unsigned_abs() % 15), slow).await;
        }
        _ => {
            let prepared = pool.prepare(sqlx::SqlStr::from_static("SELECT $1::bigint")).await?;
            let row = sqlx::Statement::query(&prepared).bind(n).fetch_one(pool).await?;
            assert_eq!(row.get::<i64, _>(0), n);
        }
    }
    Ok(())
}

/// Runs every kind of step in many tasks at once; gives back the first error of each that had one.
async fn crowd(pool: &Pool, rounds: i64) -> Vec<sqlx::Error> {
    sqlx::query("CREATE TABLE written (n BIGINT)").execute(pool).await.unwrap();
    let tasks = (0..TASKS).map(|task| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for n in 1..=rounds {
                step(&pool, (task + n) % 10, n * TASKS + task).await?;
            }
            Ok(())
        })
    });
    join_all(tasks).await.into_iter().filter_map(|done| done.unwrap().err()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_statement_works_behind_a_proxy_that_pools_by_transaction() {
    let (_proxy, pool) = pool(pooling()).await;
    let errors = crowd(&pool, 60).await;
    assert!(errors.is_empty(), "{errors:?}");
    let (kept, undone): (i64, i64) =
        sqlx::query_as("SELECT count(*) FILTER (WHERE n > 0), count(*) FILTER (WHERE n < 0) FROM written")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!((kept, undone), (TASKS * 6, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_switch_statements_fail_there() {
    let proxy = Server::pgbouncer(&postgres_database());
    let refused = Pool::connect(&proxy.url(), PoolConfig::default()).await.unwrap_err();
    assert!(crate::chain(&refused).contains("extra_float_digits"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_dropped_behind_the_proxy_is_not_cancelled_by_process_and_disturbs_nobody() {
    let (_proxy, pool) = pool(pooling()).await;
    sqlx::query("CREATE EXTENSION pg_stat_statements").execute(&pool).await.unwrap();
    // Busy all the time, so that a cancel that misses its statement could hit one of these.
    let others = join_all((0..4).map(|task| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for n in 0..60 {
                let statement = sqlx::query_scalar("SELECT $1::bigint FROM pg_sleep(0.01)");
                let answer: i64 = statement.bind(n * 4 + task).fetch_one(&pool).await.unwrap();
                assert_eq!(answer, n * 4 + task);
            }
        })
    }));
    let dropped = async {
        for _ in 0..8 {
            let long = sqlx::query("SELECT pg_sleep($1)").bind(0.5).execute(&pool);
            assert!(timeout(Duration::from_millis(30), long).await.is_err());
        }
    };
    let (others, ()) = tokio::join!(others, dropped);
    others.into_iter().for_each(|task| task.unwrap());
    let cancels = "SELECT count(*) FROM pg_stat_statements JOIN pg_database ON oid = dbid
                   WHERE datname = current_database() AND query LIKE 'SELECT pg_cancel_backend%'";
    let cancels: i64 = sqlx::query_scalar(cancels).fetch_one(&pool).await.unwrap();
    assert_eq!(cancels, 0);
}

#[tokio::test]
async fn what_cannot_run_in_a_transaction_runs_there_all_the_same() {
    let (_proxy, pool) = pool(pooling()).await;
    sqlx::query("CREATE TABLE plain (n BIGINT)").execute(&pool).await.unwrap();
    sqlx::query("VACUUM plain").execute(&pool).await.unwrap();
    sqlx::query("CREATE INDEX CONCURRENTLY plain_n ON plain (n)").execute(&pool).await.unwrap();
}

#[tokio::test]
async fn a_statement_beyond_the_limit_ends_behind_the_proxy_too() {
    let config = PoolConfig { max_statement: Duration::from_millis(200), ..pooling() };
    let (_proxy, pool) = pool(config).await;
    let start = Instant::now();
    let error = sqlx::query("SELECT pg_sleep($1)").bind(3.0).execute(&pool).await.unwrap_err();
    assert!(matches!(Error::in_sqlx(&error), Some(Error::TooLong { .. })), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(echo(&pool, 7).await.unwrap(), 7);
}

#[tokio::test]
async fn options_in_the_url_are_refused_with_the_switch() {
    let url = "postgres://shop@localhost/shop?options=-c%20statement_timeout%3D5s";
    let error = Pool::connect_lazy(url, pooling()).unwrap_err();
    assert!(matches!(error, Error::Config { field: "transaction_pooling", .. }), "{error:?}");
}
