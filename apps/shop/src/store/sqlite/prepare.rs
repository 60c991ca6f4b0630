//! Tables and first rows, through a connection of its own: it waits longer for others than a request may, and its
//! statements are nobody's request.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{NO_ORDER_INDEX, ORDER_INDEX};
use crate::{
    Error,
    seed::{Meter, Progress, SeedSize},
    store::WAITING,
};

/// How long to wait for others who prepare or fill the file.
const PATIENCE: Duration = Duration::from_secs(60);

/// How soon it notices that nobody waits for it any more.
const LOOK_UP: Duration = Duration::from_millis(100);

const MIGRATIONS: &[(i64, &str)] = &[(1, include_str!("../../../migrations/sqlite/0001_tables.sql"))];

/// Runs this in one transaction that lets nobody else write.
///
/// *Cancel safety:* dropped while it waits for others, it changes nothing, and its thread ends soon: the end of the process
/// waits for that.
pub(super) async fn run<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let path = path.to_owned();
    let left = CancellationToken::new();
    let _leaving = left.clone().drop_guard();
    let done = spawn_blocking(move || {
        let db = Connection::open(path)?;
        db.busy_timeout(LOOK_UP)?;
        // What is written here fits together; checking each row of a bulk load would double its time.
        db.pragma_update(None, "foreign_keys", false)?;
        let tx = begin(&db, &left)?;
        let done = work(&tx)?;
        tx.commit()?;
        Ok(done)
    });
    done.await.unwrap_or_else(|error| Err(Error::Database(error.into())))
}

fn begin<'db>(db: &'db Connection, left: &CancellationToken) -> rusqlite::Result<Transaction<'db>> {
    let end = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        match Transaction::new_unchecked(db, TransactionBehavior::Immediate) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && !left.is_cancelled()
                    && Instant::now() < end =>
            {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!("{WAITING}");
                }
            }
            begun => return begun,
        }
    }
}

/// Creates what is missing.
pub(super) fn tables(db: &Connection, naive: bool) -> rusqlite::Result<()> {
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS shop_migrations (
           version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT",
    )?;
    let version: i64 =
        db.query_one("SELECT coalesce(max(version), 0) FROM shop_migrations", (), |row| row.get(0))?;
    for &(number, sql) in MIGRATIONS.iter().filter(|&&(number, _)| number > version) {
        db.execute_batch(sql)?;
        db.execute("INSERT INTO shop_migrations (version) VALUES (?1)", [number])?;
    }
    db.execute_batch(if naive { NO_ORDER_INDEX } else { ORDER_INDEX })
}

pub(super) fn is_empty(db: &Connection) -> rusqlite::Result<bool> {
    const IS_EMPTY: &str = "SELECT NOT EXISTS (SELECT 1 FROM users)
        AND NOT EXISTS (SELECT 1 FROM products) AND NOT EXISTS (SELECT 1 FROM orders)";
    db.query_one(IS_EMPTY, (), |row| row.get(0))
}

/// Writes the data set into empty tables.
pub(super) fn fill(
    db: &Connection,
    size: SeedSize,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> rusqlite::Result<()> {
    let mut meter = Meter::new(size, progress);
    db.execute_batch(NO_ORDER_INDEX)?;
    fill_users_and_products(db, size, &mut meter)?;
    fill_orders(db, size, &mut meter)?;
    db.execute_batch(ORDER_INDEX)?;
    db.execute_batch("ANALYZE")
}

/// Who watches is told each time so many rows are there.
const STEP: i64 = 1000;

fn fill_users_and_products(db: &Connection, size: SeedSize, meter: &mut Meter) -> rusqlite::Result<()> {
    let mut insert = db.prepare("INSERT INTO users (id, name, email, created_at) VALUES (?1, ?2, ?3, ?4)")?;
    for id in 1..=size.users {
        let user = size.user(id);
        insert.execute(params![id, user.name, user.email, user.created_at.to_string()])?;
        if id % STEP == 0 {
            meter.add(STEP.unsigned_abs());
        }
    }
    let mut insert =
        db.prepare("INSERT INTO products (id, name, price_cents, stock) VALUES (?1, ?2, ?3, ?4)")?;
    for id in 1..=size.products {
        let product = size.product(id);
        insert.execute(params![id, product.name, product.price_cents, product.stock])?;
    }
    meter.add((size.users % STEP + size.products).unsigned_abs());
    Ok(())
}

fn fill_orders(db: &Connection, size: SeedSize, meter: &mut Meter) -> rusqlite::Result<()> {
    let mut insert_order = db.prepare(
        "INSERT INTO orders (id, customer_id, status, total_cents, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let mut insert_item = db.prepare(
        "INSERT INTO order_items (order_id, product_id, quantity, price_cents) VALUES (?1, ?2, ?3, ?4)",
    )?;
    let mut rows = 0;
    for id in 1..=size.orders {
        let order = size.order(id);
        let status = order.status.as_str();
        insert_order.execute(params![
            id,
            order.customer_id,
            status,
            order.total_cents,
            order.created_at.to_string()
        ])?;
        for item in &order.items {
            insert_item.execute(params![id, item.product_id, item.quantity, item.price_cents])?;
        }
        rows += 1 + order.items.len() as u64;
        if id % STEP == 0 {
            meter.add(std::mem::take(&mut rows));
        }
    }
    meter.add(rows);
    Ok(())
}
