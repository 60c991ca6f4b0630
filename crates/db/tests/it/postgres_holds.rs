//! Who waits, who holds, and for how long connections live.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use greenwave_db::{Error, PoolConfig, postgres::Pool, telemetry};
use greenwave_test_servers::{Server, postgres_database};
use tokio::time::{sleep, timeout};

use crate::signals::signals;

async fn pool(config: PoolConfig) -> Pool {
    Pool::connect(&postgres_database(), config).await.unwrap()
}

async fn pid(pool: &Pool) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(pool).await.unwrap()
}

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "it did not happen");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_exhausted_pool_names_the_statement_that_holds_it_and_counts_the_waiting() {
    let pool = pool(PoolConfig {
        max_connections: 1,
        connection_timeout: Duration::from_millis(200),
        ..Default::default()
    })
    .await;
    let holder = sqlx::query("SELECT pg_sleep(1.5) AS \"holder\"").execute(&pool);
    let waiting = async {
        sleep(Duration::from_millis(50)).await;
        join_all((0..3).map(|_| sqlx::query("SELECT 1").execute(&pool))).await
    };
    let (held, waited) = tokio::join!(holder, waiting);
    held.unwrap();
    let mut counts = Vec::new();
    for error in waited {
        let error = error.unwrap_err();
        let Some(Error::Exhausted { waiting, longest_held, .. }) = Error::in_sqlx(&error) else {
            panic!("{error:?}")
        };
        counts.push(*waiting);
        assert_eq!(longest_held[0].site, "`SELECT pg_sleep($1) AS \"holder\"`");
        assert!(longest_held[0].held >= Duration::from_millis(200), "{longest_held:?}");
    }
    assert_eq!(counts.iter().max(), Some(&3));
}

#[tokio::test]
async fn callers_are_served_in_the_order_in_which_they_came() {
    let pool = pool(PoolConfig { max_connections: 1, ..Default::default() }).await;
    let held = pool.acquire().await.unwrap();
    let served = std::sync::Mutex::new(Vec::new());
    let callers = join_all((0..20).map(|n| {
        let (pool, served) = (&pool, &served);
        async move {
            let _connection = pool.acquire().await.unwrap();
            served.lock().unwrap().push(n);
        }
    }));
    let release = async {
        sleep(Duration::from_millis(50)).await;
        drop(held);
    };
    tokio::join!(callers, release);
    assert_eq!(*served.lock().unwrap(), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn one_that_holds_for_long_is_named_once() {
    let signals = signals();
    let pool = pool(PoolConfig { max_hold: Duration::from_millis(50), ..Default::default() }).await;
    sqlx::query("SELECT pg_sleep(0.3) AS \"long-hold\"").execute(&pool).await.unwrap();
    let warnings = signals.mentioning("long-hold");
    let warnings: Vec<_> =
        warnings.iter().filter(|event| event.target == telemetry::LONG_HOLD_EVENT).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let tx = pool.begin().await.unwrap();
    sleep(Duration::from_millis(200)).await;
    drop(tx);
    let place = signals.mentioning("postgres_holds.rs");
    assert!(place.iter().any(|event| event.target == telemetry::LONG_HOLD_EVENT), "{place:?}");
}

#[tokio::test]
async fn the_idle_are_closed_but_for_the_fewest_to_keep() {
    let pool = pool(PoolConfig {
        max_connections: 5,
        min_idle: 2,
        idle_timeout: Duration::from_millis(100),
        ..Default::default()
    })
    .await;
    until(|| pool.num_idle() == 2).await;
    let held = join_all((0..5).map(|_| pool.acquire())).await;
    drop(held);
    until(|| pool.num_idle() == 5).await;
    until(|| pool.num_idle() == 2).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(pool.num_idle(), 2);
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_lifetime() {
    let pool = pool(PoolConfig { max_lifetime: Duration::from_millis(100), ..Default::default() }).await;
    let first = pid(&pool).await;
    sleep(Duration::from_millis(150)).await;
    assert_ne!(pid(&pool).await, first);
}

#[tokio::test]
async fn closing_waits_for_what_is_in_use_and_sends_the_waiting_away() {
    let pool = pool(PoolConfig { max_connections: 1, ..Default::default() }).await;
    let held = pool.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(drop) }
    });
    sleep(Duration::from_millis(20)).await;
    let closing = pool.close();
    tokio::pin!(closing);
    assert!(timeout(Duration::from_millis(100), &mut closing).await.is_err());
    assert!(matches!(waiting.await.unwrap(), Err(sqlx::Error::PoolClosed)));
    drop(held);
    closing.await;
    assert_eq!(pool.size(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_is_not_stormed() {
    let mut server = Server::postgres();
    let config =
        PoolConfig { max_connections: 40, connection_timeout: Duration::from_secs(20), ..Default::default() };
    let pool = Pool::connect(&server.url(), config).await.unwrap();
    server.kill();
    let callers: Vec<_> = (0..40)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { sqlx::query("SELECT pg_sleep(0.05)").execute(&pool).await.map(drop) })
        })
        .collect();
    sleep(Duration::from_millis(300)).await;
    server.start();
    let mut failed = 0;
    for caller in callers {
        failed += u32::from(caller.await.unwrap().is_err());
    }
    // The one that found its connection broken.
    assert!(failed <= 1, "{failed} failed although the server came back in time");
}

#[tokio::test]
async fn a_server_that_does_not_answer_gets_few_connections_however_many_wait() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://shop@{}/shop", listener.local_addr().unwrap());
    let config = PoolConfig {
        max_connections: 40,
        connection_timeout: Duration::from_millis(500),
        ..Default::default()
    };
    let pool = Pool::connect_lazy(&url, config).unwrap();
    let callers = join_all((0..40).map(|_| sqlx::query("SELECT 1").execute(&pool)));
    let mut open = Vec::new();
    let count = async {
        let until = tokio::time::Instant::now() + Duration::from_millis(400);
        while let Ok(accepted) = tokio::time::timeout_at(until, listener.accept()).await {
            open.push(accepted.unwrap());
        }
    };
    let (answers, ()) = tokio::join!(callers, count);
    assert_eq!(open.len(), 4);
    for error in answers {
        let error = error.unwrap_err();
        assert!(matches!(Error::in_sqlx(&error), Some(Error::Unreachable { .. })), "{error:?}");
    }
}
