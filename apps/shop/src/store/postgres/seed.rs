use std::fmt::Write as _;

use greenwave_db::postgres::Pool;
use sqlx::PgConnection;

use super::{NO_ORDER_INDEX, migrate};
use crate::{
    Error,
    seed::{Meter, Progress, SeedSize},
};

pub(super) const IS_EMPTY: &str = "
    SELECT NOT EXISTS (SELECT FROM users) AND NOT EXISTS (SELECT FROM products) AND NOT EXISTS (SELECT FROM orders)";

/// Foreign keys would be checked row by row; added again afterwards, each is checked in one go.
const DROP_FOREIGN_KEYS: &str = "
    DO $$
    DECLARE
      c record;
    BEGIN
      FOR c IN SELECT conrelid::regclass AS of_table, conname FROM pg_constraint
               WHERE contype = 'f' AND conrelid IN ('orders'::regclass, 'order_items'::regclass) LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.of_table, c.conname);
      END LOOP;
    END $$";

/// The next ids follow on the last that were written.
const SET_SEQUENCES: &str = "
    SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM users), false),
           setval(pg_get_serial_sequence('products', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM products), false),
           setval(pg_get_serial_sequence('orders', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM orders), false)";

/// How much is sent at a time.
const CHUNK: usize = 256 * 1024;

/// Fills an empty database by COPY, in one transaction.
pub(super) async fn run(
    pool: &Pool,
    size: SeedSize,
    progress: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<(), Error> {
    let mut tx = migrate::begin(pool).await?;
    migrate::lock(&mut tx).await?;
    let empty: bool = sqlx::query_scalar(IS_EMPTY).fetch_one(&mut *tx).await?;
    if !empty {
        return Err(Error::NotEmpty);
    }
    sqlx::raw_sql(DROP_FOREIGN_KEYS).execute(&mut *tx).await?;
    sqlx::raw_sql(NO_ORDER_INDEX).execute(&mut *tx).await?;
    copy_all(&mut tx, size, &mut Meter::new(size, progress)).await?;
    migrate::order_index(&mut tx).await?;
    migrate::finish(&mut tx).await?;
    sqlx::query(SET_SEQUENCES).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

async fn copy_all(conn: &mut PgConnection, size: SeedSize, meter: &mut Meter) -> sqlx::Result<()> {
    let users = "COPY users (id, name, email, created_at) FROM STDIN";
    copy(conn, users, 1..=size.users, meter, |text, id| {
        let user = size.user(id);
        let _ = writeln!(text, "{id}\t{}\t{}\t{}", user.name, user.email, user.created_at);
        1
    })
    .await?;
    let products = "COPY products (id, name, price_cents, stock) FROM STDIN";
    copy(conn, products, 1..=size.products, meter, |text, id| {
        let product = size.product(id);
        let _ = writeln!(text, "{id}\t{}\t{}\t{}", product.name, product.price_cents, product.stock);
        1
    })
    .await?;
    let orders = "COPY orders (id, customer_id, status, total_cents, created_at) FROM STDIN";
    copy(conn, orders, 1..=size.orders, meter, |text, id| {
        let o = size.order(id);
        let _ = writeln!(text, "{id}\t{}\t{}\t{}\t{}", o.customer_id, o.status, o.total_cents, o.created_at);
        1
    })
    .await?;
    let items = "COPY order_items (order_id, product_id, quantity, price_cents) FROM STDIN";
    copy(conn, items, 1..=size.orders, meter, |text, id| {
        let order = size.order(id);
        for item in &order.items {
            let _ = writeln!(text, "{id}\t{}\t{}\t{}", item.product_id, item.quantity, item.price_cents);
        }
        order.items.len() as u64
    })
    .await
}

/// Sends what `line` writes of each id, and counts the rows that it says it wrote.
async fn copy(
    conn: &mut PgConnection,
    statement: &str,
    ids: std::ops::RangeInclusive<i64>,
    meter: &mut Meter,
    line: impl Fn(&mut String, i64) -> u64,
) -> sqlx::Result<()> {
    let mut sink = conn.copy_in_raw(statement).await?;
    let mut text = String::with_capacity(CHUNK + 1024);
    let mut rows = 0;
    for id in ids {
        rows += line(&mut text, id);
        if text.len() >= CHUNK {
            sink.send(text.as_bytes()).await?;
            text.clear();
            meter.add(std::mem::take(&mut rows));
        }
    }
    sink.send(text.as_bytes()).await?;
    meter.add(rows);
    sink.finish().await?;
    Ok(())
}
