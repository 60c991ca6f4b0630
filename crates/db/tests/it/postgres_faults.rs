//! Bad days.

use std::{net::TcpListener, time::Duration};

use expect_test::expect;
use greenwave_db::{Error, PoolConfig, postgres::Pool};
use greenwave_test_servers::{Server, postgres_database};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::chain;

fn impatient(max_connections: u32) -> PoolConfig {
    PoolConfig { max_connections, connection_timeout: Duration::from_millis(200), ..Default::default() }
}

/// A port of this machine where nothing listens.
fn dead_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn an_exhausted_pool_fails_within_its_timeout_and_says_what_to_do() {
    let pool = Pool::connect(&postgres_database(), impatient(1)).await.unwrap();
    let tx = pool.begin().await.unwrap();

    let start = Instant::now();
    let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(matches!(Error::in_sqlx(&error), Some(Error::Exhausted { in_use: 1, max_connections: 1, .. })));
    let text = error.to_string();
    let (head, rest) = text.split_once("held longest by ").unwrap();
    let (holder, tail) = rest.split_once(" for ").unwrap();
    let (_ms, tail) = tail.split_once(' ').unwrap();
    expect!["error communicating with database: no database connection became free within 200ms (1 of 1 in use, 1 waiting; "]
        .assert_eq(head);
    assert!(holder.contains("postgres_faults.rs:"), "{holder}");
    expect!["ms): raise `max_connections`, or hold connections for less time"].assert_eq(tail);
    assert!(pool.begin().await.is_err());

    tx.rollback().await.unwrap();
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_the_password() {
    let port = dead_port();
    let url = format!("postgres://shop:hunter2@127.0.0.1:{port}/shop");
    let error = Pool::connect(&url, impatient(1)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let text = chain(&error);
    assert!(text.starts_with(&format!("cannot reach PostgreSQL at 127.0.0.1:{port}/shop: check")), "{text}");
    assert!(text.contains("Connection refused"), "{text}");

    let pool = Pool::connect_lazy(&url, impatient(1)).unwrap();
    let later = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    assert!(matches!(Error::in_sqlx(&later), Some(Error::Unreachable { .. })), "{later:?}");
    for shown in [text, format!("{error:?}{later:?}{pool:?}"), chain(&later)] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_is_told_from_one_that_is_away() {
    let url = postgres_database();
    let missing = format!("{url}_missing");
    let error = Pool::connect(&missing, impatient(1)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(chain(&error).contains("does not exist"), "{}", chain(&error));
    // A statement says the same as `connect`.
    let pool = Pool::connect_lazy(&missing, impatient(1)).unwrap();
    let later = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    assert!(matches!(Error::in_sqlx(&later), Some(Error::Refused { .. })), "{later:?}");
    let pool = Pool::connect_lazy("postgres:///shop?host=/no/such/socket", impatient(1)).unwrap();
    let later = pool.begin().await.unwrap_err();
    assert!(matches!(Error::in_sqlx(&later), Some(Error::Unreachable { .. })), "{later:?}");
}

#[tokio::test]
async fn an_unknown_parameter_is_refused_without_its_value_being_told() {
    let signals = crate::signals::signals();
    let open = |url: &str| Pool::connect_lazy(url, PoolConfig::default());
    let error = open("postgres://shop@localhost/shop?sslmode=disable&sslpassword=hunter3").unwrap_err();
    expect!["the database URL has an unknown parameter `sslpassword`: correct its name, or leave it out"]
        .assert_eq(&chain(&error));
    for url in [
        "postgres://shop@localhost/shop?ssl%70assword=hunter3",
        "postgres://shop@localhost/shop?password=a&hunter3",
    ] {
        let shown = format!("{:?}", open(url).unwrap_err());
        assert!(!shown.contains("hunter3"), "{shown}");
    }
    assert!(signals.mentioning("hunter3").is_empty());
    for url in [
        "postgres://shop@localhost/shop?",
        "postgres://shop@localhost/shop?sslmode=disable&options=-c%20statement_timeout%3D5s&",
        "postgres://shop@localhost/shop?options[search_path]=a&options%5Bjit%5D=off&application_name=x",
    ] {
        open(url).unwrap();
    }
}

#[tokio::test]
async fn a_bad_url_is_refused_without_being_printed() {
    let urls = [
        "",
        "shop",
        "mysql://shop:hunter2@localhost/shop",
        "postgres://shop:hunter2@localhost:notaport/shop",
        "postgres://shop:54/hunter2@localhost/shop", // unescaped slash: "54" would be the port
        "postgres://shop:54?hunter2@localhost/shop",
        "postgres://shop:hunter2@localhost/shop?sslmode=perhaps",
    ];
    for url in urls {
        let error = Pool::connect_lazy(url, PoolConfig::default()).unwrap_err();
        assert!(matches!(error, Error::Url(_)), "{url}: {error:?}");
        let shown = format!("{error:?} {}", chain(&error));
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn knobs_that_cannot_work_are_refused() {
    let url = "postgres://localhost/shop";
    let zero = Duration::ZERO;
    for config in [
        PoolConfig { max_connections: 0, ..Default::default() },
        PoolConfig { idle_timeout: zero, ..Default::default() },
        PoolConfig { connection_timeout: zero, ..Default::default() },
    ] {
        assert!(matches!(Pool::connect_lazy(url, config), Err(Error::Config { .. })));
    }
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let pool = Pool::connect_lazy("postgres://localhost/shop", PoolConfig::default());
    assert!(matches!(pool, Err(Error::NoRuntime)));
}

#[tokio::test]
async fn a_closed_pool_refuses() {
    let pool = Pool::connect(&postgres_database(), PoolConfig::default()).await.unwrap();
    pool.close().await;
    assert!(matches!(sqlx::query("SELECT 1").execute(&pool).await, Err(sqlx::Error::PoolClosed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_breaks_at_most_one_statement_of_an_idle_pool() {
    let mut server = Server::postgres();
    let pool = Pool::connect(&server.url(), PoolConfig::default()).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(pool.acquire().await.unwrap());
    }
    drop(held);
    while pool.num_idle() < 8 {
        sleep(Duration::from_millis(5)).await;
    }
    server.kill();
    server.start();
    let mut failures = 0;
    for _ in 0..20 {
        failures += u32::from(sqlx::query("SELECT 1").execute(&pool).await.is_err());
    }
    assert!(failures <= 1, "{failures} statements failed although the server was back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_killed_under_use_is_used_again_once_it_is_back() {
    let mut server = Server::postgres();
    let config = PoolConfig { connection_timeout: Duration::from_millis(500), ..Default::default() };
    let pool = Pool::connect(&server.url(), config).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    let users: Vec<_> = (0..8_i64)
        .map(|user| {
            let (pool, stopped) = (pool.clone(), stopped.clone());
            tokio::spawn(async move {
                let (mut answered, mut failed, mut n) = (0, 0, user);
                while !*stopped.borrow() {
                    n += 8;
                    match sqlx::query_scalar::<_, i64>("SELECT $1").bind(n).fetch_one(&pool).await {
                        Ok(row) => {
                            assert_eq!(row, n);
                            answered += 1;
                        }
                        Err(_) => failed += 1,
                    }
                    sleep(Duration::from_millis(1)).await;
                }
                (answered, failed)
            })
        })
        .collect();

    sleep(Duration::from_millis(100)).await;
    server.kill();
    let error = loop {
        // The first errors may be those of statements that were under way.
        let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
        if Error::in_sqlx(&error).is_some() {
            break error;
        }
    };
    assert!(matches!(Error::in_sqlx(&error), Some(Error::Unreachable { .. })), "{error:?}");
    server.start();
    let back = Instant::now();
    while sqlx::query("SELECT 1").execute(&pool).await.is_err() {
        assert!(back.elapsed() < Duration::from_secs(10), "the pool did not recover");
    }
    for _ in 0..100 {
        sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    }
    stop.send(true).unwrap();
    for user in users {
        let (answered, failed) = user.await.unwrap();
        assert!(answered > 0 && failed > 0, "{answered} answered, {failed} failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_gone_silent_is_noticed_on_an_idle_connection() {
    let server = Server::postgres();
    let pool = Pool::connect(&server.url(), PoolConfig::default()).await.unwrap();
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    sleep(Duration::from_millis(1100)).await;
    server.pause();
    let start = Instant::now();
    let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(matches!(Error::in_sqlx(&error), Some(Error::Unreachable { .. })), "{error:?}");
    server.resume();
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
}

#[tokio::test]
async fn a_server_without_room_is_named_in_time_and_used_once_it_has_some() {
    let url = postgres_database();
    let admin = Pool::connect(&url, PoolConfig::default()).await.unwrap();
    let role = format!("crowded_{}", std::process::id());
    let limit = async |limit: &str| {
        let statement = format!("ALTER ROLE {role} CONNECTION LIMIT {limit}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&admin).await.unwrap();
    };
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE ROLE {role} LOGIN"))).execute(&admin).await.unwrap();
    limit("0").await;
    let url = url.replace("//postgres@", &format!("//{role}@"));
    let pool = Pool::connect_lazy(&url, impatient(2)).unwrap();
    let start = Instant::now();
    let error = sqlx::query("SELECT 1").execute(&pool).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(matches!(Error::in_sqlx(&error), Some(Error::Refused { .. })), "{error:?}");
    assert!(chain(&error).contains("too many connections"), "{}", chain(&error));
    limit("-1").await;
    sqlx::query("SELECT 1").execute(&pool).await.unwrap();
}

#[test]
fn a_pool_whose_runtime_ends_sends_away_who_waits_elsewhere() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (its_own, other) = (runtime(), runtime());
    let config =
        PoolConfig { max_connections: 1, connection_timeout: Duration::from_secs(60), ..Default::default() };
    let pool = its_own.block_on(async { Pool::connect(&postgres_database(), config).await }).unwrap();
    let held = its_own.block_on(pool.acquire()).unwrap();
    let waiting = other.spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(drop) }
    });
    // It waits already, or has yet to ask: the answer is the same.
    drop(its_own);
    assert!(matches!(other.block_on(waiting).unwrap(), Err(sqlx::Error::PoolClosed)));
    drop(held);
    assert_eq!(pool.size(), 0);
}
