//! What works, and what it reports.

use std::time::Duration;

use expect_test::expect;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use greenwave_db::{PoolConfig, postgres::Pool, telemetry};
use greenwave_test_servers::postgres_database;
use sqlx::{Executor, Row};
use tokio::{
    task::yield_now,
    time::{sleep, timeout},
};
use tracing::Instrument;

use crate::signals::signals;

async fn pool(config: PoolConfig) -> Pool {
    Pool::connect(&postgres_database(), config).await.unwrap()
}

async fn pool_with_numbers() -> Pool {
    let pool = pool(PoolConfig::default()).await;
    let setup =
        "CREATE TABLE numbers (n BIGINT PRIMARY KEY); INSERT INTO numbers SELECT generate_series(1, 100)";
    sqlx::raw_sql(setup).execute(&pool).await.unwrap();
    pool
}

#[tokio::test]
async fn every_way_of_fetching_works_on_the_pool() {
    let pool = pool_with_numbers().await;

    let done = sqlx::query("DELETE FROM numbers WHERE n > $1").bind(90_i64).execute(&pool).await.unwrap();
    assert_eq!(done.rows_affected(), 10);

    let row = sqlx::query("SELECT n FROM numbers WHERE n = $1").bind(7_i64).fetch_one(&pool).await.unwrap();
    assert_eq!(row.get::<i64, _>("n"), 7);

    let (max, count): (i64, i64) =
        sqlx::query_as("SELECT max(n), count(*) FROM numbers").fetch_one(&pool).await.unwrap();
    assert_eq!((max, count), (90, 90));

    let none: Option<i64> =
        sqlx::query_scalar("SELECT n FROM numbers WHERE n = 0").fetch_optional(&pool).await.unwrap();
    assert_eq!(none, None);

    let all: Vec<i64> =
        sqlx::query_scalar("SELECT n FROM numbers ORDER BY n").fetch_all(&pool).await.unwrap();
    assert_eq!(all, (1..=90).collect::<Vec<_>>());

    let stream = sqlx::query_scalar::<_, i64>("SELECT n FROM numbers ORDER BY n").fetch(&pool);
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), all);

    let missing = sqlx::query("SELECT n FROM numbers WHERE n = 0").fetch_one(&pool).await;
    assert!(matches!(missing, Err(sqlx::Error::RowNotFound)));
}

#[tokio::test]
async fn raw_and_prepared_statements_work_on_the_pool() {
    let pool = pool_with_numbers().await;
    let two = sqlx::raw_sql("SELECT 1; SELECT n FROM numbers LIMIT 3").fetch_many(&pool);
    let rows = two.try_filter(|item| std::future::ready(item.is_right())).count().await;
    assert_eq!(rows, 4);

    let prepared =
        (&pool).prepare(sqlx::SqlStr::from_static("SELECT n FROM numbers WHERE n < $1")).await.unwrap();
    let rows = sqlx::Statement::query(&prepared).bind(5_i64).fetch_all(&pool).await.unwrap();
    assert_eq!(rows.len(), 4);
}

#[tokio::test]
async fn sqlx_migrations_run_on_the_pool() {
    let pool = pool(PoolConfig::default()).await;
    let migrations = tempfile::tempdir().unwrap();
    std::fs::write(migrations.path().join("1_users.sql"), "CREATE TABLE users (id BIGINT PRIMARY KEY)")
        .unwrap();
    let migrator = sqlx::migrate::Migrator::new(migrations.path()).await.unwrap();
    migrator.run(&pool).await.unwrap();
    sqlx::query("SELECT id FROM users").execute(&pool).await.unwrap();
}

#[tokio::test]
async fn a_transaction_commits_and_a_dropped_one_rolls_back() {
    let pool = pool_with_numbers().await;
    let count = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM numbers").fetch_one(&pool).await.unwrap()
    };

    let mut tx = pool.begin().await.unwrap();
    sqlx::query("INSERT INTO numbers VALUES (1001)").execute(&mut *tx).await.unwrap();
    sqlx::query("INSERT INTO numbers VALUES (1002)").execute(pool.timed(&mut tx)).await.unwrap();
    assert_eq!(count().await, 100, "not before the commit");
    tx.commit().await.unwrap();
    assert_eq!(count().await, 102);

    let mut tx = pool.begin().await.unwrap();
    sqlx::query("DELETE FROM numbers").execute(pool.timed(&mut tx)).await.unwrap();
    drop(tx);
    assert_eq!(count().await, 102);
}

#[tokio::test]
async fn each_statement_is_reported_once_in_its_callers_span() {
    let signals = signals();
    let pool = pool_with_numbers().await;
    let request = async {
        sqlx::query("SELECT n AS \"span-a\" FROM numbers LIMIT 5").fetch_all(&pool).await.unwrap();
        let mut tx = pool.begin().await.unwrap();
        sqlx::query("SELECT n AS \"span-b\" FROM numbers LIMIT 2")
            .fetch_all(pool.timed(&mut tx))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let stream = sqlx::query("SELECT n AS \"span-c\" FROM numbers LIMIT 3").fetch(&pool);
        assert_eq!(stream.count().await, 3);
    };
    request.instrument(tracing::info_span!("request")).await;

    for (marker, rows) in [("span-a", 5), ("span-b", 2), ("span-c", 3)] {
        let events = signals.of(telemetry::QUERY_EVENT, marker);
        let [event] = &events[..] else { panic!("{marker}: {events:?}") };
        assert_eq!(event.spans, ["request"]);
        assert_eq!(event.number("db.response.returned_rows"), rows);
        assert!(event.number("elapsed_us") < 10_000_000);
        let anywhere = signals.mentioning(marker);
        assert!(anywhere.iter().all(|event| event.target.starts_with("greenwave_db::")), "{anywhere:?}");
    }
}

#[tokio::test]
async fn a_slow_statement_is_logged_with_its_text_and_its_wait_but_not_its_values() {
    let signals = signals();
    let pool = pool(PoolConfig { max_connections: 1, ..Default::default() }).await;
    let held = pool.acquire().await.unwrap();
    let release = async {
        sleep(Duration::from_millis(300)).await;
        drop(held);
    };
    let slow = sqlx::query(r#"SELECT pg_sleep($1) AS "slow-a", $2::text"#)
        .bind(0.15)
        .bind("hunter2")
        .fetch_one(&pool);
    let (slow, ()) = tokio::join!(slow, release);
    slow.unwrap();
    sqlx::query("SELECT 1 AS \"slow-b\"").execute(&pool).await.unwrap();

    let events =
        signals.eventually(telemetry::SLOW_QUERY_EVENT, |event| event.text().contains("slow-a")).await;
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!(event.text(), r#"SELECT pg_sleep($1) AS "slow-a", $2::text"#);
    assert!(event.number("elapsed_us") >= 150_000);
    assert!(event.number("wait_us") >= 200_000);
    assert_eq!(signals.mentioning("hunter2").len(), 0);
    assert_eq!(signals.of(telemetry::SLOW_QUERY_EVENT, "slow-b").len(), 0);
}

#[tokio::test]
async fn a_statement_that_its_caller_gave_up_is_reported_too() {
    let signals = signals();
    let pool = pool(PoolConfig { slow_query: Duration::from_millis(20), ..Default::default() }).await;
    let given_up = timeout(
        Duration::from_millis(50),
        sqlx::query("SELECT pg_sleep(0.3) AS \"given-up\"").execute(&pool),
    );
    assert!(given_up.await.is_err());
    let events =
        signals.eventually(telemetry::SLOW_QUERY_EVENT, |event| event.text().contains("given-up")).await;
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn the_time_a_caller_takes_between_rows_is_not_the_databases() {
    let signals = signals();
    let pool = pool_with_numbers().await;
    let mut rows = sqlx::query("SELECT n AS \"leisurely\" FROM numbers LIMIT 3").fetch(&pool);
    while rows.try_next().await.unwrap().is_some() {
        sleep(Duration::from_millis(400)).await;
    }
    drop(rows);
    let events = signals.of(telemetry::QUERY_EVENT, "leisurely");
    assert!(events[0].number("elapsed_us") < 1_000_000, "{events:?}");
}

#[tokio::test]
async fn metrics_have_the_names_of_the_readme() {
    let signals = signals();
    let pool = pool(PoolConfig {
        max_connections: 1,
        connection_timeout: Duration::from_millis(100),
        ..Default::default()
    })
    .await;
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    let held = pool.acquire().await.unwrap();
    pool.acquire().await.unwrap_err();
    drop(held);
    let loader = greenwave_db::BatchLoader::new("names", Default::default(), |keys: Vec<u8>| async move {
        Ok::<_, std::io::Error>(keys.into_iter().map(|key| (key, key)).collect())
    });
    loader.load(1).await.unwrap();

    let names = signals.metric_names().into_iter().collect::<Vec<_>>().join("\n");
    expect![[r#"
        counter db.client.connection.timeouts []
        gauge db.client.connection.count [db.client.connection.state]
        gauge db.client.connection.pending_requests []
        histogram db.client.connection.use_time []
        histogram db.client.connection.wait_time []
        histogram db.client.operation.duration [db.system.name]
        histogram greenwave.db.batch.size [loader]"#]]
    .assert_eq(&names);
}

#[tokio::test]
async fn abandoned_statements_never_answer_a_later_one() {
    let pool = pool(PoolConfig { max_connections: 3, ..Default::default() }).await;
    for round in 0..300_i32 {
        let statement = sqlx::query_scalar::<_, i32>("SELECT $1 FROM generate_series(1, 50)").bind(round);
        // From dropped before it is sent to finished.
        let patience = Duration::from_micros(u64::from(round.unsigned_abs()) * 10);
        match timeout(patience, statement.fetch_all(&pool)).await {
            Ok(rows) => assert_eq!(rows.unwrap(), [round; 50]),
            Err(_) => {
                let next = sqlx::query_scalar::<_, i32>("SELECT $1").bind(-round).fetch_one(&pool).await;
                assert_eq!(next.unwrap(), -round);
            }
        }
    }
}

#[tokio::test]
async fn an_abandoned_begin_takes_no_later_statement_into_its_transaction() {
    let url = postgres_database();
    let pool = Pool::connect(&url, PoolConfig { max_connections: 1, ..Default::default() }).await.unwrap();
    let other = Pool::connect(&url, PoolConfig::default()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE marks (n INT)").execute(&pool).await.unwrap();
    let (mut abandoned, mut begun) = (0, 0);
    for round in 0..300_i32 {
        // From dropped before it is sent to begun.
        let mut begin = Box::pin(pool.begin());
        let mut outcome = None;
        for _ in 0..=round {
            outcome = (&mut begin).now_or_never();
            if outcome.is_some() {
                break;
            }
            yield_now().await;
        }
        drop(begin);
        match outcome {
            Some(transaction) => {
                begun += 1;
                transaction.unwrap().rollback().await.unwrap();
            }
            None => abandoned += 1,
        }
        sqlx::query("INSERT INTO marks VALUES ($1)").bind(round).execute(&pool).await.unwrap();
        let seen: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM marks WHERE n = $1)")
            .bind(round)
            .fetch_one(&other)
            .await
            .unwrap();
        assert!(seen, "round {round}: an acknowledged row is in nobody's transaction");
    }
    assert!(abandoned > 0 && begun > 0, "{abandoned} abandoned, {begun} begun");
}
