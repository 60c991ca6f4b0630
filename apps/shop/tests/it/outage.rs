//! A database or a Redis that is away is weather: an answer says so, and all is well when it is back.

use std::time::Duration;

use greenwave_db::PoolConfig;
use greenwave_shop::{
    Config,
    seed::SeedSize,
    store::{Store, StoreConfig},
};
use greenwave_test_servers::Server;
use hyper::Method;
use serde_json::json;

use crate::{
    database::Database,
    fixture::{Data, Kind, Running, Works, eventually_within},
};

const TINY: SeedSize = SeedSize { users: 100, products: 50, orders: 100 };

async fn server(start: fn() -> Server) -> Server {
    tokio::task::spawn_blocking(start).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_postgres_is_away_answers_say_so() {
    let mut postgres = server(Server::postgres).await;
    // Each request below waits this long.
    let pool = PoolConfig { connection_timeout: Duration::from_millis(500), ..PoolConfig::default() };
    let config = Config { database: postgres.url().parse().unwrap(), pool, ..Config::default() };
    let store = Store::open_at(&config.database, StoreConfig::default()).await.unwrap();
    store.seed(TINY, |_| {}).await.unwrap();
    let shop = Running::start(&config, Works::Everything).await;
    let order = json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1}]}).to_string();
    let cached = shop.client.get("/users/7").await;

    postgres.kill();
    for (method, path, body) in [
        (Method::GET, "/orders/1", ""),
        (Method::GET, "/orders?customer_id=1", ""),
        (Method::GET, "/users/8", ""),
        (Method::GET, "/products/8", ""),
        (Method::POST, "/orders", &order),
        (Method::POST, "/users", r#"{"name": "A", "email": "a@b.c"}"#),
    ] {
        shop.client.fails(method.clone(), path, body, 503, "unavailable").await;
        let (_, value) = shop.client.call(method, path, body.as_bytes()).await;
        let message = value["message"].as_str().unwrap().to_lowercase();
        assert!(!message.contains("select") && !message.contains("127.0.0.1"), "{message}");
    }
    // What needs no database goes on.
    assert_eq!(shop.client.get("/users/7").await, cached);
    assert_eq!(shop.client.get("/health").await, json!({"status": "ok"}));

    let postgres = tokio::task::spawn_blocking(move || {
        postgres.start();
        postgres
    })
    .await
    .unwrap();
    eventually_within(Duration::from_secs(20), "an answer", 201, async || {
        shop.client.call(Method::POST, "/orders", order.as_bytes()).await.0
    })
    .await;
    let db = crate::database::Database::Postgres(crate::fixture::pool(&postgres.url()));
    let made = db.int("SELECT count(*) FROM orders").await - TINY.orders;
    eventually_within(Duration::from_secs(20), "effects", made, async || {
        db.int("SELECT count(*) FROM notifications").await
    })
    .await;
    shop.stop().await;
}

// A lock held elsewhere used to pin every connection for as long as it was held, and with them all other requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_locked_elsewhere_holds_up_its_own_requests_only() {
    let data = Data::seeded(Kind::Postgres).await;
    let shop = Running::start(&data.config(), Works::Everything).await;
    let Database::Postgres(pool) = &data.db else { panic!() };
    let mut other = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE orders").execute(&mut *other).await.unwrap();

    let order = json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1}]}).to_string();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (client, order) = (shop.client.clone(), order.clone());
        requests.spawn(async move {
            client.fails(Method::POST, "/orders", &order, 503, "unavailable").await;
        });
    }
    tokio::time::timeout(Duration::from_secs(30), requests.join_all()).await.unwrap();
    // While the lock is still held.
    let user = json!({"name": "Ada", "email": "ada@example.org"});
    shop.client.post("/users", &user).await;
    other.rollback().await.unwrap();
    shop.client.post("/orders", &serde_json::from_str(&order).unwrap()).await;
    eventually_within(Duration::from_secs(10), "effects of one order", 1, async || {
        data.db.int("SELECT count(*) FROM notifications").await
    })
    .await;
    shop.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_the_database_answers() {
    let mut redis = server(Server::redis).await;
    let data = crate::fixture::Data::seeded(crate::fixture::Kind::Sqlite).await;
    let config = Config { redis_url: Some(redis.url()), ..data.config() };
    let shop = Running::start(&config, Works::ApiOnly).await;
    shop.client.get("/users/1").await;
    redis.kill();
    for id in 1..=20 {
        assert_eq!(shop.client.get(&format!("/users/{id}")).await, data.db.user(id).await);
    }
    shop.stop().await;

    // It may be away at the start too.
    let shop = Running::start(&config, Works::ApiOnly).await;
    assert_eq!(shop.client.get("/users/21").await, data.db.user(21).await);
    shop.stop().await;
}
