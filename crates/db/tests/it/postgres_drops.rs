//! Callers that go away: whatever they leave behind, the next one never meets it.

use std::time::{Duration, Instant};

use futures_util::{FutureExt, StreamExt};
use greenwave_db::{PoolConfig, postgres::Pool};
use greenwave_test_servers::postgres_database;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use sqlx::{Acquire, Row};
use tokio::time::{sleep, timeout};

/// How long the random test drops futures; a minute is `GREENWAVE_DB_DROPS=60`.
const DROPS_FOR: &str = "GREENWAVE_DB_DROPS";
const SEED: &str = "GREENWAVE_DB_SEED";

async fn pool(max_connections: u32) -> Pool {
    let config =
        PoolConfig { max_connections, connection_timeout: Duration::from_secs(20), ..Default::default() };
    Pool::connect(&postgres_database(), config).await.unwrap()
}

/// Fails if it meets a transaction that began before this statement, or the answer to another question.
async fn answers_its_own_question(pool: &Pool, question: i64) {
    let prepared: i64 = sqlx::query_scalar("SELECT $1::bigint").bind(question).fetch_one(pool).await.unwrap();
    assert_eq!(prepared, question);
    // Not prepared, for only then has a statement on its own the very time of its transaction.
    let text = format!("SELECT {question}::bigint, now() = statement_timestamp()");
    let row = sqlx::raw_sql(sqlx::AssertSqlSafe(text)).fetch_one(pool).await.unwrap();
    assert_eq!(row.get::<i64, _>(0), question);
    assert!(row.get::<bool, _>(1), "a caller found itself in an open transaction");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn futures_dropped_at_random_leave_nothing_behind() {
    let variable = |name| std::env::var(name).ok().and_then(|value: String| value.parse().ok());
    let seconds = variable(DROPS_FOR).unwrap_or(3);
    let seed = variable(SEED).unwrap_or_else(rand::random);
    println!("{SEED}={seed} {DROPS_FOR}={seconds}");
    let pool = pool(4).await;
    sqlx::query("CREATE TABLE written (n BIGINT)").execute(&pool).await.unwrap();
    let until = Instant::now() + Duration::from_secs(seconds);
    let users: Vec<_> = (0..16)
        .map(|user| {
            let (pool, mut random) = (pool.clone(), SmallRng::seed_from_u64(seed ^ user));
            tokio::spawn(async move {
                let (mut dropped, mut question) = (0_u32, user as i64);
                while Instant::now() < until {
                    question += 16;
                    let patience = Duration::from_micros(random.random_range(0..3000));
                    let kind = random.random_range(0..8);
                    let gave_up = timeout(patience, step(&pool, kind, question)).await.is_err();
                    dropped += u32::from(gave_up);
                    answers_its_own_question(&pool, question).await;
                }
                dropped
            })
        })
        .collect();
    let mut dropped = 0;
    for user in users {
        dropped += user.await.unwrap();
    }
    assert!(dropped > 100, "{dropped} dropped: too few to mean anything");
    let odd: i64 = sqlx::query_scalar("SELECT count(*) FROM written").fetch_one(&pool).await.unwrap();
    assert_eq!(odd, 0, "what was never committed was written");
    assert!(pool.size() <= 4, "{pool:?}");
}

/// One of the things that callers do, every answer checked.
async fn step(pool: &Pool, kind: u32, question: i64) {
    match kind {
        0 => answers_its_own_question(pool, question).await,
        1 => {
            let statement = "SELECT $1::bigint FROM generate_series(1, 200)";
            let rows: Vec<i64> = sqlx::query_scalar(statement).bind(question).fetch_all(pool).await.unwrap();
            assert_eq!(rows, [question; 200]);
        }
        2 => {
            let mut rows = sqlx::query_scalar::<_, i64>("SELECT $1::bigint + generate_series(0, 500)")
                .bind(question)
                .fetch(pool);
            for n in 0..3 {
                assert_eq!(rows.next().await.unwrap().unwrap(), question + n);
            }
        }
        3 => {
            let mut tx = pool.begin().await.unwrap();
            sqlx::query("INSERT INTO written VALUES ($1)").bind(question).execute(&mut *tx).await.unwrap();
            let mut savepoint = sqlx::Connection::begin(&mut *tx).await.unwrap();
            sqlx::query("INSERT INTO written VALUES ($1)")
                .bind(question)
                .execute(&mut *savepoint)
                .await
                .unwrap();
            drop(savepoint);
            tx.rollback().await.unwrap();
        }
        4 => {
            let mut tx = Acquire::begin(pool).await.unwrap();
            sqlx::query("INSERT INTO written VALUES ($1)").bind(question).execute(&mut *tx).await.unwrap();
        }
        5 => {
            let mut own = pool.acquire().await.unwrap();
            let n: i64 =
                sqlx::query_scalar("SELECT $1::bigint").bind(question).fetch_one(&mut *own).await.unwrap();
            assert_eq!(n, question);
        }
        6 => {
            // A new statement each time: dropped while it is prepared.
            let text = format!("SELECT {question}::bigint, $1::bigint");
            let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(1_i64).fetch_one(pool).await.unwrap();
            assert_eq!(row.get::<i64, _>(0), question);
        }
        _ => {
            sqlx::query("SELECT pg_sleep(0.2)").execute(pool).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_statement_that_is_dropped_is_cancelled_and_its_connection_used_again() {
    let pool = pool(1).await;
    let pid =
        async || -> i32 { sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await.unwrap() };
    let before = pid().await;
    let start = Instant::now();
    let long = timeout(Duration::from_millis(20), sqlx::query("SELECT pg_sleep(60)").execute(&pool));
    assert!(long.await.is_err());
    assert_eq!(pid().await, before, "the connection was closed instead");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_begin_dropped_at_any_moment_leaves_no_open_transaction() {
    let pool = pool(1).await;
    for polls in 0..6 {
        for _ in 0..20 {
            let mut begin = Box::pin(pool.begin());
            for _ in 0..polls {
                if (&mut begin).now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
                sleep(Duration::from_micros(50)).await;
            }
            drop(begin);
            answers_its_own_question(&pool, polls).await;
        }
    }
}

#[tokio::test]
async fn a_transaction_begun_by_hand_is_not_handed_on() {
    let pool = pool(1).await;
    sqlx::query("BEGIN").execute(&pool).await.unwrap();
    answers_its_own_question(&pool, 1).await;
    sqlx::raw_sql("SELECT 1; START TRANSACTION").execute(&pool).await.unwrap();
    answers_its_own_question(&pool, 2).await;
    let mut own = pool.acquire().await.unwrap();
    sqlx::query("BEGIN").execute(&mut *own).await.unwrap();
    sqlx::query("SELECT 1 / 0").execute(&mut *own).await.unwrap_err();
    drop(own);
    answers_its_own_question(&pool, 3).await;
}

#[tokio::test]
async fn a_forgotten_savepoint_does_not_keep_the_transaction_open() {
    let pool = pool(1).await;
    let mut tx = pool.begin().await.unwrap();
    std::mem::forget(sqlx::Connection::begin(&mut *tx).await.unwrap());
    tx.commit().await.unwrap();
    answers_its_own_question(&pool, 1).await;
}

#[tokio::test]
async fn sqlxs_own_transaction_commits_and_rolls_back() {
    let pool = pool(1).await;
    sqlx::query("CREATE TABLE numbers (n BIGINT)").execute(&pool).await.unwrap();
    for n in 0..3_i64 {
        let mut tx: sqlx::Transaction<'static, sqlx::Postgres> = Acquire::begin(&pool).await.unwrap();
        sqlx::query("INSERT INTO numbers VALUES ($1)").bind(n).execute(&mut *tx).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = Acquire::begin(&pool).await.unwrap();
        sqlx::query("DELETE FROM numbers").execute(&mut *tx).await.unwrap();
        drop(tx);
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM numbers").fetch_one(&pool).await.unwrap();
        assert_eq!(count, n + 1);
        assert!(pool.size() <= 1, "{pool:?}");
    }
}
