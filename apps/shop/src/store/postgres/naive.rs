//! The list as one writes it first: the orders, and then for each its customer and its items.

use chrono::{DateTime, Utc};
use greenwave_db::postgres::Pool;
use sqlx::Row;

use super::reads;
use crate::model::{Customer, Order, Status};

pub(super) async fn order_list(
    pool: &Pool,
    customer: i64,
    status: Option<Status>,
) -> sqlx::Result<Vec<Order>> {
    let query = match status {
        None => sqlx::query(
            "SELECT id, status, total_cents, created_at, customer_id FROM orders WHERE customer_id = $1 \
             ORDER BY created_at DESC, id DESC LIMIT 20",
        )
        .bind(customer),
        Some(status) => sqlx::query(
            "SELECT id, status, total_cents, created_at, customer_id FROM orders \
             WHERE customer_id = $1 AND status = $2 ORDER BY created_at DESC, id DESC LIMIT 20",
        )
        .bind(customer)
        .bind(status.as_str()),
    };
    let mut orders = Vec::new();
    for row in query.fetch_all(pool).await? {
        let id: i64 = row.try_get(0)?;
        let customer_id: i64 = row.try_get(4)?;
        let customer = sqlx::query("SELECT name, email FROM users WHERE id = $1")
            .bind(customer_id)
            .fetch_one(pool)
            .await?;
        let items = sqlx::query(
            "SELECT product_id, quantity, price_cents FROM order_items WHERE order_id = $1 ORDER BY product_id",
        )
        .bind(id)
        .fetch_all(pool)
        .await?;
        let items = items.iter().filter_map(|row| reads::item(row, 0).transpose());
        orders.push(Order {
            id,
            status: row.try_get::<&str, _>(1)?.parse().map_err(reads::decode)?,
            total_cents: row.try_get(2)?,
            created_at: row.try_get::<DateTime<Utc>, _>(3)?.into(),
            customer: Customer { id: customer_id, name: customer.try_get(0)?, email: customer.try_get(1)? },
            items: items.collect::<sqlx::Result<_>>()?,
        });
    }
    Ok(orders)
}
