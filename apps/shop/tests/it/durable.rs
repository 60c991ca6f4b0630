//! What was acknowledged has its effects, once, whatever happens to the process.

use std::time::Duration;

use greenwave_db::PoolConfig;
use greenwave_shop::{
    Config,
    store::{Store, StoreConfig},
};
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::fixture::{Data, Kind, Running, SIZE, Works, eventually, eventually_within};

const NOTIFIED: &str = "SELECT count(*) FROM notifications";
const SENT: &str = "SELECT count(*) FROM emails";
const SOLD: &str = "SELECT sum(1000000 - stock) FROM products";

async fn effects_survive_a_stop(kind: Kind) {
    let data = Data::seeded(kind).await;
    let shop = Running::start(&data.config(), Works::ApiOnly).await;
    for n in 0..10 {
        let items = json!([{"product_id": 1 + n, "quantity": 1}, {"product_id": 100, "quantity": 2}]);
        shop.client.post("/orders", &json!({"customer_id": 1 + n, "items": items})).await;
    }
    shop.client.post("/users", &json!({"name": "Ada", "email": "ada@example.org"})).await;
    shop.stop().await;
    assert_eq!((data.db.int(NOTIFIED).await, data.db.int(SENT).await), (0, 0), "nobody worked yet");

    let shop = Running::start(&data.config(), Works::Everything).await;
    eventually("effects", (10, 1, 30), async || {
        (data.db.int(NOTIFIED).await, data.db.int(SENT).await, data.db.int(SOLD).await)
    })
    .await;
    shop.stop().await;

    // And again: there is nothing left to do.
    let shop = Running::start(&data.config(), Works::Everything).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    shop.stop().await;
    assert_eq!(data.db.int(SOLD).await, 30);
}

#[tokio::test]
async fn on_sqlite_effects_survive_a_stop() {
    effects_survive_a_stop(Kind::Sqlite).await;
}

#[tokio::test]
async fn on_postgres_effects_survive_a_stop() {
    effects_survive_a_stop(Kind::Postgres).await;
}

/// Workers are dropped in the middle of what they do, as a killed process is; what they held comes again.
async fn effects_happen_once_although_workers_die(kind: Kind) {
    const ORDERS: i64 = 200;
    let data = Data::seeded(kind).await;
    // All come at once; on a busy machine the last of them wait for long.
    let pool = PoolConfig { connection_timeout: Duration::from_secs(30), ..PoolConfig::default() };
    let shop = Running::start(&Config { pool, ..data.config() }, Works::ApiOnly).await;
    let mut requests = JoinSet::new();
    for n in 0..ORDERS {
        let client = shop.client.clone();
        let items =
            json!([{"product_id": 1 + n % SIZE.products, "quantity": 1}, {"product_id": 200, "quantity": 1}]);
        let customer = 1 + n;
        requests.spawn(async move {
            if n % 4 == 0 {
                let new = json!({"name": "N", "email": format!("{n}@example.org")});
                client.post("/users", &new).await;
            }
            // Order 200 of the round names product 200 alone.
            let items =
                if n % SIZE.products == 199 { json!([{"product_id": 200, "quantity": 2}]) } else { items };
            client.post("/orders", &json!({"customer_id": customer, "items": items})).await
        });
    }
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }

    for milliseconds in [5, 20, 40, 80] {
        let store = Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
        let work = tokio::spawn(async move { store.run_effects(CancellationToken::new()).await });
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        work.abort();
        let _ = work.await;
    }
    let last = Running::start(&data.config(), Works::Everything).await;
    let (other, db) = (Running::start(&data.config(), Works::Everything).await, &data.db);
    // What the dead held is taken again after their leases, at the latest.
    eventually_within(Duration::from_secs(30), "effects", (ORDERS, ORDERS / 4, 2 * ORDERS), async || {
        (db.int(NOTIFIED).await, db.int(SENT).await, db.int(SOLD).await)
    })
    .await;
    for shop in [shop, last, other] {
        shop.stop().await;
    }
    assert_eq!((db.int(NOTIFIED).await, db.int(SOLD).await), (ORDERS, 2 * ORDERS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_sqlite_effects_happen_once_although_workers_die() {
    effects_happen_once_although_workers_die(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_postgres_effects_happen_once_although_workers_die() {
    effects_happen_once_although_workers_die(Kind::Postgres).await;
}

// A client that hung up between BEGIN and its answer used to give back a connection with an open transaction, in which
// the next request's writes then stood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_hang_up_leave_no_open_transaction() {
    let data = Data::seeded(Kind::Postgres).await;
    let shop = Running::start(&data.config(), Works::Everything).await;
    let body = json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1}]}).to_string();
    let request =
        format!("POST /orders HTTP/1.1\r\nhost: shop\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    // As many at once as the pool has connections, so that none tidies up after another.
    for burst in 0..20 {
        let mut clients = JoinSet::new();
        for n in 0..20 {
            let (address, request) = (shop.client.address().to_owned(), request.clone());
            clients.spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_micros(burst * 500 + n * 100)).await;
            });
        }
        clients.join_all().await;
        eventually("open transactions", 0, || data.db.int(open)).await;
    }
    let made = data.db.int("SELECT count(*) FROM orders").await - SIZE.orders;
    assert!(made > 0, "no client was late");
    shop.stop().await;
    let shop = Running::start(&data.config(), Works::Everything).await;
    let missing = "SELECT count(*) - (SELECT count(*) FROM notifications) FROM orders WHERE id > 5000";
    eventually("missing notifications", 0, || data.db.int(missing)).await;
    shop.stop().await;
}
