use std::collections::HashMap;

use chrono::{DateTime, Utc};
use greenwave_db::postgres::Pool;
use sqlx::{Row, postgres::PgRow};

use crate::{
    model::{Customer, Item, Order, Product, Status, User},
    store::rows::Orders,
};

/// Users by id, in one statement.
pub(super) async fn users(pool: &Pool, ids: Vec<i64>) -> sqlx::Result<HashMap<i64, User>> {
    let rows = sqlx::query("SELECT id, name, email, created_at FROM users WHERE id = ANY($1)")
        .bind(ids)
        .fetch_all(pool)
        .await?;
    let user = |row: &PgRow| {
        let id = row.try_get(0)?;
        let created_at = row.try_get::<DateTime<Utc>, _>(3)?.into();
        Ok((id, User { id, name: row.try_get(1)?, email: row.try_get(2)?, created_at }))
    };
    rows.iter().map(user).collect()
}

/// Products by id, in one statement.
pub(super) async fn products(pool: &Pool, ids: Vec<i64>) -> sqlx::Result<HashMap<i64, Product>> {
    let rows = sqlx::query("SELECT id, name, price_cents, stock FROM products WHERE id = ANY($1)")
        .bind(ids)
        .fetch_all(pool)
        .await?;
    let product = |row: &PgRow| {
        let id = row.try_get(0)?;
        let (name, price_cents, stock) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        Ok((id, Product { id, name, price_cents, stock }))
    };
    rows.iter().map(product).collect()
}

/// Orders by id with customers and items, in one statement.
pub(super) async fn orders(pool: &Pool, ids: Vec<i64>) -> sqlx::Result<HashMap<i64, Order>> {
    const ORDERS: &str = "\
        SELECT o.id, o.status, o.total_cents, o.created_at, u.id, u.name, u.email, \
               i.product_id, i.quantity, i.price_cents \
        FROM orders o \
        JOIN users u ON u.id = o.customer_id \
        LEFT JOIN order_items i ON i.order_id = o.id \
        WHERE o.id = ANY($1) \
        ORDER BY o.id, i.product_id";
    let rows = sqlx::query(ORDERS).bind(ids).fetch_all(pool).await?;
    Ok(assemble(rows)?.into_iter().map(|order| (order.id, order)).collect())
}

/// The list in one statement. With a status the index gives it in order; without, the index gives the customer's
/// orders, which are few, and they are sorted.
pub(super) async fn order_list(
    pool: &Pool,
    customer: i64,
    status: Option<Status>,
) -> sqlx::Result<Vec<Order>> {
    // Two texts, not `$2 IS NULL OR …`: that would hide the status from the index.
    macro_rules! list {
        ($and_status:literal) => {
            concat!(
                "SELECT o.id, o.status, o.total_cents, o.created_at, u.id, u.name, u.email, \
                        i.product_id, i.quantity, i.price_cents \
                 FROM (SELECT id, customer_id, status, total_cents, created_at \
                       FROM orders WHERE customer_id = $1",
                $and_status,
                " ORDER BY created_at DESC, id DESC LIMIT 20) o \
                 JOIN users u ON u.id = o.customer_id \
                 LEFT JOIN order_items i ON i.order_id = o.id \
                 ORDER BY o.created_at DESC, o.id DESC, i.product_id"
            )
        };
    }
    let query = match status {
        None => sqlx::query(list!("")).bind(customer),
        Some(status) => sqlx::query(list!(" AND status = $2")).bind(customer).bind(status.as_str()),
    };
    assemble(query.fetch_all(pool).await?)
}

fn assemble(rows: Vec<PgRow>) -> sqlx::Result<Vec<Order>> {
    let mut orders = Orders::default();
    for row in rows {
        let id = row.try_get(0)?;
        orders.push(id, || order(&row), item(&row, 7)?)?;
    }
    Ok(orders.finish())
}

/// An order from `id, status, total_cents, created_at` and its customer's `id, name, email`, without items.
pub(super) fn order(row: &PgRow) -> sqlx::Result<Order> {
    Ok(Order {
        id: row.try_get(0)?,
        status: row.try_get::<&str, _>(1)?.parse().map_err(decode)?,
        total_cents: row.try_get(2)?,
        created_at: row.try_get::<DateTime<Utc>, _>(3)?.into(),
        customer: Customer { id: row.try_get(4)?, name: row.try_get(5)?, email: row.try_get(6)? },
        items: Vec::new(),
    })
}

/// An item from `product_id, quantity, price_cents`, the first of them at `at`.
pub(super) fn item(row: &PgRow, at: usize) -> sqlx::Result<Option<Item>> {
    let Some(product_id) = row.try_get(at)? else { return Ok(None) };
    Ok(Some(Item { product_id, quantity: row.try_get(at + 1)?, price_cents: row.try_get(at + 2)? }))
}

pub(super) fn decode<E: std::error::Error + Send + Sync + 'static>(error: E) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}
