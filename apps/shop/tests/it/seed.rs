//! The data set is the one that SQL makes.

use greenwave_shop::{
    Error,
    seed::{Progress, SeedSize},
    store::{Store, StoreConfig},
};
use sqlx::{PgPool, Row};
use std::sync::{Arc, Mutex};

use crate::{
    database::Database,
    fixture::{Data, Kind, SIZE},
};

pub(crate) const SCHEMA: &str = include_str!("sql/schema.sql");
const SEED: &str = include_str!("sql/seed.sql");

/// All rows of the four tables, as one text each.
const ROWS: &str = "
    SELECT (SELECT string_agg(t::text, ';' ORDER BY id) FROM users t),
           (SELECT string_agg(t::text, ';' ORDER BY id) FROM products t),
           (SELECT string_agg(t::text, ';' ORDER BY id) FROM orders t),
           (SELECT string_agg(t::text, ';' ORDER BY order_id, product_id) FROM order_items t)";

const NEXT_IDS: &str = "
    SELECT nextval(pg_get_serial_sequence('users', 'id')) * 1000000000000
         + nextval(pg_get_serial_sequence('products', 'id')) * 1000000
         + nextval(pg_get_serial_sequence('orders', 'id'))";

pub(crate) fn seed_sql(size: SeedSize) -> String {
    SEED.replace(":users", &size.users.to_string())
        .replace(":products", &size.products.to_string())
        .replace(":orders", &size.orders.to_string())
        .replace(":busy", &(size.users / 100).to_string())
}

fn postgres(data: &Data) -> &PgPool {
    match &data.db {
        Database::Postgres(pool) => pool,
        Database::Sqlite(_) => unreachable!("made as PostgreSQL"),
    }
}

#[tokio::test]
async fn on_postgres_a_seed_writes_the_rows_that_sql_writes() {
    let size = SeedSize { users: 3_000, products: 700, orders: 9_000 };
    let ours = Data::empty(Kind::Postgres).await;
    let store = Store::open_at(&ours.url, StoreConfig::default()).await.unwrap();
    store.seed(size, |_| {}).await.unwrap();
    let theirs = Data::empty(Kind::Postgres).await;
    theirs.db.execute(&format!("BEGIN; {SCHEMA}; {}; COMMIT", seed_sql(size))).await;

    let ours_rows = sqlx::query(ROWS).fetch_one(postgres(&ours)).await.unwrap();
    let theirs_rows = sqlx::query(ROWS).fetch_one(postgres(&theirs)).await.unwrap();
    for (at, table) in ["users", "products", "orders", "order_items"].iter().enumerate() {
        let (ours, theirs): (String, String) = (ours_rows.get(at), theirs_rows.get(at));
        let differs = ours.split(';').zip(theirs.split(';')).find(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "{table}");
        assert_eq!(ours.len(), theirs.len(), "{table}");
    }
    assert_eq!(ours.db.int(NEXT_IDS).await, theirs.db.int(NEXT_IDS).await);
}

#[tokio::test]
async fn at_full_size_the_rows_are_those_of_the_sql() {
    let data = Data::empty(Kind::Postgres).await;
    let ids: Vec<i32> =
        (1..=200).chain((1..=2_000).map(|n| 1 + n * 99_991 % 500_000)).chain([500_000]).collect();
    // The expressions of the seed, of these ids only.
    let of_orders = format!(
        "BEGIN; {SCHEMA}; {}; COMMIT",
        seed_sql(SeedSize::FULL)
            .replace("generate_series(1, 500000) i", "unnest(sample()) i")
            .replace("generate_series(1, 100000) i", "unnest(sample()) i WHERE i <= 100000")
    );
    let array = ids.iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    // A sample of users cannot be referred to by orders; keys are not what is tested here.
    let without_keys =
        of_orders.replace("ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES users (id);", "");
    data.db
        .execute(&format!(
            "CREATE FUNCTION sample() RETURNS integer[] LANGUAGE sql IMMUTABLE AS
             $$ SELECT array_agg(DISTINCT i) FROM unnest(ARRAY[{array}]) i $$"
        ))
        .await;
    data.db.execute(&without_keys).await;

    let size = SeedSize::FULL;
    let select = "SELECT id, customer_id, status, total_cents, created_at FROM orders ORDER BY id";
    let rows = sqlx::query(select).fetch_all(postgres(&data)).await.unwrap();
    assert!(rows.len() > 2_000);
    for row in rows {
        let order = size.order(row.get("id"));
        assert_eq!(order.customer_id, row.get::<i64, _>("customer_id"));
        assert_eq!(order.status.as_str(), row.get::<&str, _>("status"));
        assert_eq!(order.total_cents, row.get::<i64, _>("total_cents"));
        assert_eq!(order.created_at, row.get::<chrono::DateTime<chrono::Utc>, _>("created_at").into());
        let items: Vec<(i64, i32, i32)> = sqlx::query_as(
            "SELECT product_id, quantity, price_cents FROM order_items WHERE order_id = $1 ORDER BY product_id",
        )
        .bind(order.id)
        .fetch_all(postgres(&data))
        .await
        .unwrap();
        let ours: Vec<_> = order.items.iter().map(|i| (i.product_id, i.quantity, i.price_cents)).collect();
        assert_eq!(ours, items, "order {}", order.id);
    }
    for row in sqlx::query("SELECT id FROM users").fetch_all(postgres(&data)).await.unwrap() {
        let user = size.user(row.get("id"));
        assert_eq!(serde_json::to_value(&user).unwrap(), data.db.user(user.id).await);
    }
    for id in 1..=size.products {
        assert_eq!(size.product(id).stock, 1_000_000);
    }
    let prices: Vec<i32> = sqlx::query_scalar("SELECT price_cents FROM products ORDER BY id")
        .fetch_all(postgres(&data))
        .await
        .unwrap();
    assert_eq!(prices, (1..=size.products).map(|id| size.product(id).price_cents).collect::<Vec<_>>());
}

#[tokio::test]
async fn on_sqlite_a_seed_writes_the_same_rows() {
    let data = Data::seeded(Kind::Sqlite).await;
    for id in 1..=SIZE.users {
        assert_eq!(data.db.user(id).await, serde_json::to_value(SIZE.user(id)).unwrap());
    }
    for id in 1..=SIZE.products {
        assert_eq!(data.db.product(id).await, serde_json::to_value(SIZE.product(id)).unwrap());
    }
    for id in (1..=SIZE.orders).step_by(7) {
        let (ours, got) = (SIZE.order(id), data.db.order(id).await);
        assert_eq!(got["customer"]["id"], ours.customer_id);
        assert_eq!(got["status"], ours.status.as_str());
        assert_eq!(got["total_cents"], ours.total_cents);
        assert_eq!(got["created_at"], ours.created_at.to_string());
        assert_eq!(got["items"], serde_json::to_value(&ours.items).unwrap());
    }
    assert_eq!(data.db.int("SELECT count(*) FROM orders").await, SIZE.orders);
    assert_eq!(data.db.text("PRAGMA integrity_check").await, "ok");
    assert_eq!(data.db.int("SELECT count(*) FROM pragma_foreign_key_check").await, 0);
}

async fn only_an_empty_database_is_seeded(kind: Kind) {
    let data = Data::empty(kind).await;
    let store = Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
    assert!(store.is_empty().await.unwrap());

    let heard = Arc::new(Mutex::new(Vec::new()));
    let hear = heard.clone();
    let small = SeedSize { users: 50, products: 20, orders: 100 };
    store.seed(small, move |progress| hear.lock().unwrap().push(progress)).await.unwrap();
    let heard = heard.lock().unwrap().clone();
    assert!(heard.is_sorted_by_key(|Progress { done, .. }| *done));
    assert_eq!(heard.last(), Some(&Progress { done: 470, total: 470 }));

    assert!(!store.is_empty().await.unwrap());
    assert!(matches!(store.seed(small, |_| {}).await, Err(Error::NotEmpty)));
    let wrong = SeedSize { users: 0, products: 1, orders: 1 };
    assert!(matches!(store.seed(wrong, |_| {}).await, Err(Error::SeedSize(_))));
    assert_eq!(data.db.int("SELECT count(*) FROM orders").await, 100);
}

#[tokio::test]
async fn on_sqlite_only_an_empty_database_is_seeded() {
    only_an_empty_database_is_seeded(Kind::Sqlite).await;
}

#[tokio::test]
async fn on_postgres_only_an_empty_database_is_seeded() {
    only_an_empty_database_is_seeded(Kind::Postgres).await;
}
