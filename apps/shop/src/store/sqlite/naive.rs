//! The list as one writes it first: the orders, and then for each its customer and its items.

use rusqlite::{Connection, Row};

use super::reads;
use crate::model::{Customer, Order, Status};

pub(super) fn order_list(
    db: &Connection,
    customer: i64,
    status: Option<Status>,
) -> rusqlite::Result<Vec<Order>> {
    let order = |row: &Row<'_>| {
        Ok(Order {
            id: row.get(0)?,
            status: row.get(1)?,
            total_cents: row.get(2)?,
            created_at: row.get(3)?,
            customer: Customer { id: row.get(4)?, name: String::new(), email: String::new() },
            items: Vec::new(),
        })
    };
    let mut orders: Vec<Order> = match status {
        None => db
            .prepare_cached(
                "SELECT id, status, total_cents, created_at, customer_id FROM orders WHERE customer_id = ?1 \
                 ORDER BY created_at DESC, id DESC LIMIT 20",
            )?
            .query_map([customer], order)?
            .collect::<rusqlite::Result<_>>()?,
        Some(status) => db
            .prepare_cached(
                "SELECT id, status, total_cents, created_at, customer_id FROM orders \
                 WHERE customer_id = ?1 AND status = ?2 ORDER BY created_at DESC, id DESC LIMIT 20",
            )?
            .query_map((customer, status.as_str()), order)?
            .collect::<rusqlite::Result<_>>()?,
    };
    let mut customer = db.prepare_cached("SELECT name, email FROM users WHERE id = ?1")?;
    let mut items = db.prepare_cached(
        "SELECT product_id, quantity, price_cents FROM order_items WHERE order_id = ?1 ORDER BY product_id",
    )?;
    for order in &mut orders {
        (order.customer.name, order.customer.email) =
            customer.query_row([order.customer.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let rows = items.query_map([order.id], |row| reads::item(row, 0))?;
        order.items = rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?;
    }
    Ok(orders)
}
