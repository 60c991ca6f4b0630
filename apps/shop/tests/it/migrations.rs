//! Whatever state a database is in, and however many come at once, it ends up right.

use greenwave_shop::{
    Shop,
    seed::SeedSize,
    store::{Store, StoreConfig},
};

use crate::{
    fixture::{Data, Kind, Running, Works},
    seed::{SCHEMA, seed_sql},
};

/// Tables, columns, keys and indexes of the shop, in one text.
const SHAPE: &str = "
    SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
      SELECT format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default) AS line
      FROM information_schema.columns
      WHERE table_name IN ('users', 'products', 'orders', 'order_items', 'notifications', 'emails')
      UNION ALL
      SELECT format('%s: %s', conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
      WHERE conrelid IN ('users'::regclass, 'products'::regclass, 'orders'::regclass, 'order_items'::regclass,
                         'notifications'::regclass, 'emails'::regclass)
      UNION ALL
      SELECT indexdef FROM pg_indexes
      WHERE tablename IN ('users', 'products', 'orders', 'order_items', 'notifications', 'emails')) lines";

/// What does not depend on whether anything was there before: when keys were made, and by what name.
async fn prepared(size: SeedSize) -> Data {
    let data = Data::empty(Kind::Postgres).await;
    data.db.execute(&format!("BEGIN; {SCHEMA}; {}; COMMIT", seed_sql(size))).await;
    data
}

const TINY: SeedSize = SeedSize { users: 300, products: 60, orders: 400 };

#[tokio::test]
async fn a_prepared_database_is_taken_as_it_is() {
    let data = prepared(TINY).await;
    let before = data.db.text(SHAPE).await;
    let shop = Running::start(&data.config(), Works::Everything).await;
    assert_eq!(shop.client.get("/orders/400").await, data.db.order(400).await);
    shop.stop().await;
    assert_eq!(data.db.text(SHAPE).await, before);
}

#[tokio::test]
async fn an_empty_database_becomes_like_a_prepared_one() {
    let data = Data::empty(Kind::Postgres).await;
    Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
    assert_eq!(data.db.text(SHAPE).await, prepared(TINY).await.db.text(SHAPE).await);
}

#[tokio::test]
async fn a_database_with_the_bare_schema_gets_its_keys() {
    let data = Data::empty(Kind::Postgres).await;
    data.db.execute(SCHEMA).await;
    Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
    assert_eq!(data.db.text(SHAPE).await, prepared(TINY).await.db.text(SHAPE).await);
}

#[tokio::test]
async fn a_seeded_database_is_like_a_prepared_one() {
    let data = Data::seeded(Kind::Postgres).await;
    assert_eq!(data.db.text(SHAPE).await, prepared(TINY).await.db.text(SHAPE).await);
}

#[tokio::test]
async fn a_loaded_database_without_statistics_gets_them() {
    let data = prepared(TINY).await;
    let known = "SELECT count(DISTINCT tablename) FROM pg_stats
                 WHERE tablename IN ('users', 'products', 'orders', 'order_items')";
    data.db.execute("ALTER TABLE orders SET (autovacuum_enabled = off)").await;
    Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
    assert_eq!(data.db.int(known).await, 4);
}

async fn many_may_open_one_database_at_once(kind: Kind) {
    let data = Data::empty(kind).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let config = data.config();
        tasks.spawn(async move { Shop::open(&config).await.map(drop) });
    }
    while let Some(opened) = tasks.join_next().await {
        opened.unwrap().unwrap();
    }
    // And once more, when all is there.
    let shop = Running::start(&data.config(), Works::Everything).await;
    shop.client.get("/health").await;
    shop.stop().await;
    let filled = if kind == Kind::Sqlite { SeedSize::SMALL.users } else { 0 };
    assert_eq!(data.db.int("SELECT count(*) FROM users").await, filled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_open_one_postgres_database_at_once() {
    many_may_open_one_database_at_once(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_open_one_sqlite_database_at_once_and_it_is_filled_once() {
    many_may_open_one_database_at_once(Kind::Sqlite).await;
}

#[tokio::test]
async fn an_sqlite_database_with_rows_is_not_filled() {
    let data = Data::empty(Kind::Sqlite).await;
    let store = Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
    store.seed(TINY, |_| {}).await.unwrap();
    drop(store);
    Shop::open(&data.config()).await.unwrap();
    assert_eq!(data.db.int("SELECT count(*) FROM users").await, TINY.users);
}
