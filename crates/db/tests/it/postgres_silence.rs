//! Statements that never return, and networks that go silent.

use std::time::{Duration, Instant};

use expect_test::expect;
use futures_util::{StreamExt, TryStreamExt};
use greenwave_db::{Error, PoolConfig, postgres::Pool};
use greenwave_test_servers::postgres_database;
use sqlx::{Acquire, AssertSqlSafe, Executor, SqlSafeStr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{sleep, timeout},
};

use crate::signals::Names;

const LIMIT: Duration = Duration::from_millis(300);
/// Within which an error is in time on a busy machine.
const IN_TIME: Duration = Duration::from_secs(4);

fn config() -> PoolConfig {
    PoolConfig {
        max_connections: 2,
        connection_timeout: Duration::from_secs(1),
        max_statement: LIMIT,
        ..Default::default()
    }
}

/// A way to the server that can fall silent, without a word to either end.
struct Wire {
    url: String,
    silent: watch::Sender<bool>,
}

impl Wire {
    async fn to(url: &str) -> Self {
        let (base, database) = url.rsplit_once('/').unwrap();
        let (user, server) = base.rsplit_once('@').unwrap();
        let (listener, server) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), server.to_owned());
        let url = format!("{user}@{}/{database}", listener.local_addr().unwrap());
        let (silent, heard) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (client, client_out) = client.into_split();
                let (back, server_out) = TcpStream::connect(&server).await.unwrap().into_split();
                tokio::spawn(carry(client, server_out, heard.clone()));
                tokio::spawn(carry(back, client_out, heard.clone()));
            }
        });
        Self { url, silent }
    }

    async fn pool(config: PoolConfig) -> (Self, Pool) {
        let wire = Self::to(&postgres_database()).await;
        let pool = Pool::connect(&wire.url, config).await.unwrap();
        (wire, pool)
    }

    fn fall_silent(&self) {
        self.silent.send_replace(true);
    }

    fn speak(&self) {
        self.silent.send_replace(false);
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut silent: watch::Receiver<bool>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if silent.wait_for(|silent| !silent).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn echo(pool: &Pool, n: i64) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT $1::bigint").bind(n).fetch_one(pool).await
}

async fn recovers(pool: &Pool) {
    let start = Instant::now();
    let mut n = 1000;
    loop {
        n += 1;
        match echo(pool, n).await {
            Ok(answer) => break assert_eq!(answer, n),
            Err(_) => assert!(start.elapsed() < Duration::from_secs(10), "the pool did not recover"),
        }
    }
    for n in 0..50 {
        assert_eq!(echo(pool, n).await.unwrap(), n);
    }
}

#[track_caller]
fn is_too_long(error: &sqlx::Error) {
    assert!(matches!(Error::in_sqlx(error), Some(Error::TooLong { limit: LIMIT })), "{error:?}");
}

#[tokio::test]
async fn a_statement_that_never_returns_is_given_up_and_cancelled_on_the_server() {
    let url = postgres_database();
    let pool = Pool::connect(&url, PoolConfig { max_connections: 1, ..config() }).await.unwrap();
    let pid =
        async || -> i32 { sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await.unwrap() };
    let before = pid().await;
    let endless = || sqlx::query("SELECT pg_sleep(600)");
    for kind in 0..4 {
        let start = Instant::now();
        let error = match kind {
            0 => endless().execute(&pool).await.unwrap_err(),
            1 => endless().fetch_all(&pool).await.unwrap_err(),
            2 => endless().fetch_one(&pool).await.unwrap_err(),
            _ => endless().fetch(&pool).next().await.unwrap().unwrap_err(),
        };
        is_too_long(&error);
        assert!(start.elapsed() >= LIMIT && start.elapsed() < IN_TIME, "{:?}", start.elapsed());
        expect!["error communicating with database: the PostgreSQL statement was given up because it ran for longer than `max_statement` (300ms): give it an index, let it touch fewer rows, or raise the limit; if all statements end so, check the network"]
            .assert_eq(&error.to_string());
        assert_eq!(pid().await, before, "the connection was closed instead");
    }
}

#[tokio::test]
async fn a_transactions_statement_that_never_returns_is_given_up_and_nothing_of_it_stays() {
    let pool =
        Pool::connect(&postgres_database(), PoolConfig { max_connections: 1, ..config() }).await.unwrap();
    sqlx::query("CREATE TABLE written (n BIGINT)").execute(&pool).await.unwrap();
    for by_hand in [false, true] {
        let mut tx = pool.begin().await.unwrap();
        sqlx::query("INSERT INTO written VALUES (1)").execute(pool.timed(&mut tx)).await.unwrap();
        let endless = sqlx::query("SELECT pg_sleep(600)").execute(pool.timed(&mut tx)).await;
        is_too_long(&endless.unwrap_err());
        if by_hand {
            let start = Instant::now();
            is_too_long(&tx.rollback().await.unwrap_err());
            assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
        } else {
            drop(tx);
        }
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM written").fetch_one(&pool).await.unwrap();
        assert_eq!(left, 0);
    }
}

#[tokio::test]
async fn the_time_between_rows_is_the_callers_own() {
    let pool = Pool::connect(&postgres_database(), config()).await.unwrap();
    let mut rows = sqlx::query_scalar::<_, i64>("SELECT generate_series(1, 4)::bigint").fetch(&pool);
    let mut sum = 0;
    while let Some(n) = rows.try_next().await.unwrap() {
        sum += n;
        sleep(LIMIT / 2).await;
    }
    assert_eq!(sum, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_falls_silent_under_statements_fails_them_in_time() {
    let (wire, pool) = Wire::pool(config()).await;
    let start = Instant::now();
    let under_way = sqlx::query("SELECT pg_sleep(0.1)").execute(&pool);
    let falls_silent = async {
        sleep(Duration::from_millis(50)).await;
        wire.fall_silent();
    };
    let (under_way, ()) = tokio::join!(under_way, falls_silent);
    is_too_long(&under_way.unwrap_err());
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());

    // Nor can anything new get through.
    let start = Instant::now();
    assert!(Error::in_sqlx(&echo(&pool, 1).await.unwrap_err()).is_some());
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    wire.speak();
    recovers(&pool).await;
    assert!(pool.size() <= 2, "{pool:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_falls_silent_under_a_transaction_ends_it_in_time() {
    let (wire, pool) = Wire::pool(config()).await;
    sqlx::query("CREATE TABLE written (n BIGINT)").execute(&pool).await.unwrap();
    let mut ours = pool.begin().await.unwrap();
    let mut sqlxs = Acquire::begin(&pool).await.unwrap();
    sqlx::query("INSERT INTO written VALUES (1)").execute(pool.timed(&mut ours)).await.unwrap();
    wire.fall_silent();
    let start = Instant::now();
    is_too_long(&sqlx::query("SELECT 1").execute(pool.timed(&mut sqlxs)).await.unwrap_err());
    is_too_long(&ours.commit().await.unwrap_err());
    drop(sqlxs);
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    wire.speak();
    recovers(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_falls_silent_under_a_preparation_ends_it_in_time() {
    let (wire, pool) = Wire::pool(config()).await;
    let mut tx = pool.begin().await.unwrap();
    wire.fall_silent();
    let start = Instant::now();
    let sql = || AssertSqlSafe("SELECT 1").into_sql_str();
    let prepared = timeout(IN_TIME, pool.timed(&mut tx).prepare(sql())).await.unwrap();
    is_too_long(&prepared.err().unwrap());
    let described = timeout(IN_TIME, pool.timed(&mut tx).describe(sql())).await.unwrap();
    is_too_long(&described.err().unwrap());
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    drop(tx);
    wire.speak();
    recovers(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_fell_silent_is_noticed_on_an_idle_connection() {
    let (wire, pool) = Wire::pool(PoolConfig { ping_after: Duration::from_millis(50), ..config() }).await;
    echo(&pool, 1).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    wire.fall_silent();
    let start = Instant::now();
    let error = echo(&pool, 2).await.unwrap_err();
    assert!(matches!(Error::in_sqlx(&error), Some(Error::Unreachable { .. })), "{error:?}");
    assert!(start.elapsed() < IN_TIME, "{:?}", start.elapsed());
    wire.speak();
    recovers(&pool).await;
}

#[tokio::test]
async fn the_wait_for_a_transaction_of_sqlxs_own_type_is_reported_and_so_is_its_timeout() {
    let wire = Wire::to(&postgres_database()).await;
    let pool = Pool::connect_lazy(&wire.url, config()).unwrap();
    let names = Names::default();
    let _recorder = metrics::set_default_local_recorder(&names);
    let (wait, timeout) =
        ("histogram db.client.connection.wait_time", "counter db.client.connection.timeouts");
    let held = Acquire::begin(&pool).await.unwrap();
    assert!(names.has(wait) && !names.has(timeout));
    wire.fall_silent();
    assert!(Error::in_sqlx(&Acquire::begin(&pool).await.unwrap_err()).is_some());
    assert!(names.has(timeout));
    wire.speak();
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_silent_from_the_start_is_named_and_used_once_it_speaks() {
    let wire = Wire::to(&postgres_database()).await;
    wire.fall_silent();
    let start = Instant::now();
    let error = Pool::connect(&wire.url, config()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let pool = Pool::connect_lazy(&wire.url, config()).unwrap();
    let error = echo(&pool, 1).await.unwrap_err();
    assert!(matches!(Error::in_sqlx(&error), Some(Error::Unreachable { .. })), "{error:?}");
    assert!(start.elapsed() < 2 * IN_TIME, "{:?}", start.elapsed());
    wire.speak();
    recovers(&pool).await;
}
