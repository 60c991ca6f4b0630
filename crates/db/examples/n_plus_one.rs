//! One hundred orders with their customers, loaded three ways: a statement per order (N+1), the same but concurrently,
//! and through a batch loader.
//!
//! Run with `cargo run -p greenwave-db --example n_plus_one`. It needs no server; against one, where each statement is
//! a round trip, the difference is larger.

use std::{
    collections::HashMap,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use greenwave_db::{BatchConfig, BatchLoader, PoolConfig, sqlite::Pool};

const ORDERS: i64 = 100;
const CUSTOMERS: i64 = 10_000;
const ROUNDS: usize = 21;

type AnyError = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let directory = tempfile::tempdir()?;
    let pool = Pool::open(directory.path().join("shop.db"), PoolConfig::default())?;
    seed(&pool).await?;
    let statements = Arc::new(AtomicUsize::new(0));
    let customers = customer_loader(&pool, &statements);
    let mut one_by_one = Way::new("N+1, one after the other");
    let mut at_once = Way::new("N+1, all at once");
    let mut batch = Way::new("batch loader");

    // In turns, so that what else the machine does falls on all three alike.
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut names = Vec::new();
        for id in orders(&pool, &statements).await? {
            names.push(customer(&pool, &statements, id).await?);
        }
        one_by_one.record(start, &statements);

        let start = Instant::now();
        let ids = orders(&pool, &statements).await?;
        let same = try_join_all(ids.into_iter().map(|id| customer(&pool, &statements, id))).await?;
        at_once.record(start, &statements);
        assert!(names == same, "both ways load the same names");

        let start = Instant::now();
        let ids = orders(&pool, &statements).await?;
        let same = try_join_all(ids.into_iter().map(|id| customers.load(id))).await?;
        batch.record(start, &statements);
        assert!(names == same, "both ways load the same names");
    }

    println!("{ORDERS} orders, each with its customer (medians of {ROUNDS} rounds):\n");
    let before = one_by_one.print();
    at_once.print();
    let after = batch.print();
    println!("\nThe loader is {:.1} times faster than the loop.", before.as_secs_f64() / after.as_secs_f64());
    Ok(())
}

/// What one way of loading took, round by round.
struct Way {
    name: &'static str,
    statements: Vec<usize>,
    times: Vec<Duration>,
}

impl Way {
    fn new(name: &'static str) -> Self {
        Self { name, statements: Vec::new(), times: Vec::new() }
    }

    fn record(&mut self, start: Instant, statements: &AtomicUsize) {
        self.times.push(start.elapsed());
        self.statements.push(statements.swap(0, Ordering::Relaxed));
    }

    fn print(&mut self) -> Duration {
        self.times.sort_unstable();
        self.statements.sort_unstable();
        let (statements, time) = (self.statements[ROUNDS / 2], self.times[ROUNDS / 2]);
        println!("{:<26} {statements:>4} statements  {time:>9.2?}", self.name);
        time
    }
}

/// Customers of the newest orders.
async fn orders(pool: &Pool, statements: &AtomicUsize) -> Result<Vec<i64>, AnyError> {
    statements.fetch_add(1, Ordering::Relaxed);
    let ids = pool.read(|db| {
        let mut statement = db.prepare_cached("SELECT customer_id FROM orders ORDER BY id DESC LIMIT ?1")?;
        statement.query_map([ORDERS], |row| row.get(0))?.collect()
    });
    Ok(ids.await?)
}

async fn customer(pool: &Pool, statements: &AtomicUsize, id: i64) -> Result<Option<String>, AnyError> {
    statements.fetch_add(1, Ordering::Relaxed);
    let name = pool.read(move |db| {
        db.prepare_cached("SELECT name FROM customers WHERE id = ?1")?.query_one([id], |row| row.get(0))
    });
    Ok(Some(name.await?))
}

fn customer_loader(
    pool: &Pool,
    statements: &Arc<AtomicUsize>,
) -> BatchLoader<i64, String, greenwave_db::Error> {
    let (pool, statements) = (pool.clone(), Arc::clone(statements));
    BatchLoader::new("customers", BatchConfig::default(), move |ids: Vec<i64>| {
        statements.fetch_add(1, Ordering::Relaxed);
        let pool = pool.clone();
        async move {
            pool.read(move |db| {
                // One text for any number of keys, so that it stays prepared.
                let sql = "SELECT id, name FROM customers WHERE id IN (SELECT value FROM json_each(?1))";
                let keys = format!("{ids:?}");
                let mut statement = db.prepare_cached(sql)?;
                let rows = statement.query_map([keys], |row| Ok((row.get(0)?, row.get(1)?)))?;
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
             CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers);",
        )?;
        let mut customer = tx.prepare("INSERT INTO customers VALUES (?1, 'Customer ' || ?1)")?;
        for id in 1..=CUSTOMERS {
            customer.execute([id])?;
        }
        let mut order = tx.prepare("INSERT INTO orders VALUES (?1, ?2)")?;
        for id in 1..=CUSTOMERS {
            order.execute([id, id * 7919 % CUSTOMERS + 1])?;
        }
        Ok(())
    })
    .await
}
