//! An N+1 that is found, and what is left of it once it is cured: twenty orders with their customers.
//!
//! Run with `cargo run -p greenwave-db --example query_stats`. It needs no server.

use std::{collections::HashMap, error::Error};

use futures_util::future::try_join_all;
use greenwave_db::{
    BatchConfig, BatchLoader, PoolConfig,
    query_stats::{self, Scope},
    sqlite::Pool,
};

const ORDERS: i64 = 20;

type AnyError = Box<dyn Error>;

// One thread, so that which keys meet in a batch is the same each time.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), AnyError> {
    let directory = tempfile::tempdir()?;
    let pool = Pool::open(directory.path().join("shop.db"), PoolConfig::default())?;
    seed(&pool).await?;
    pool.query_stats().reset();

    // In a service, a middleware gives each request its scope.
    let (names, seen) = query_stats::watch(Scope::new("/orders").run(one_by_one(&pool))).await;
    println!("{} statements:", seen.count());
    for found in pool.query_stats().n_plus_one() {
        println!("  {found}");
    }
    assert_eq!(seen.n_plus_one().len(), 1, "a test would fail with `seen.assert_no_n_plus_one()`");

    let customers = customer_loader(&pool);
    let cured = async {
        let ids = customer_ids(&pool).await?;
        Ok::<_, AnyError>(try_join_all(ids.into_iter().map(|id| customers.load(id))).await?)
    };
    let (same, seen) = query_stats::watch(Scope::new("/orders").run(cured)).await;
    println!("\n{} statements, cured:", seen.count());
    for statement in seen.statements() {
        println!("  {} × {}\n    from {}", statement.calls, statement.text, statement.site);
    }
    seen.assert_no_n_plus_one();
    assert!(seen.count() < 10 && names? == same?, "the same names, with few statements");

    println!("\nAll that was counted:\n{}", serde_json::to_string_pretty(&pool.query_stats().snapshot())?);
    Ok(())
}

async fn one_by_one(pool: &Pool) -> Result<Vec<Option<String>>, AnyError> {
    let mut names = Vec::new();
    for id in customer_ids(pool).await? {
        let name = pool.read(move |db| {
            let mut statement = db.prepare_cached("SELECT name FROM customers WHERE id = ?1")?;
            statement.query_one([id], |row| row.get(0))
        });
        names.push(Some(name.await?));
    }
    Ok(names)
}

async fn customer_ids(pool: &Pool) -> Result<Vec<i64>, greenwave_db::Error> {
    pool.read(|db| {
        let mut statement = db.prepare_cached("SELECT customer_id FROM orders ORDER BY id LIMIT ?1")?;
        statement.query_map([ORDERS], |row| row.get(0))?.collect()
    })
    .await
}

fn customer_loader(pool: &Pool) -> BatchLoader<i64, String, greenwave_db::Error> {
    let pool = pool.clone();
    BatchLoader::new("customers", BatchConfig::default(), move |ids: Vec<i64>| {
        let pool = pool.clone();
        async move {
            pool.read(move |db| {
                let sql = "SELECT id, name FROM customers WHERE id IN (SELECT value FROM json_each(?1))";
                let mut statement = db.prepare_cached(sql)?;
                let rows = statement.query_map([format!("{ids:?}")], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect::<rusqlite::Result<HashMap<i64, String>>>()
            })
            .await
        }
    })
}

async fn seed(pool: &Pool) -> Result<(), greenwave_db::Error> {
    pool.write(|tx| {
        tx.execute_batch(
            "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
             CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers);
             WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 100)
             INSERT INTO customers SELECT id, 'Customer ' || id FROM ids;
             INSERT INTO orders SELECT id, id * 37 % 100 + 1 FROM customers;",
        )?;
        Ok(())
    })
    .await
}
