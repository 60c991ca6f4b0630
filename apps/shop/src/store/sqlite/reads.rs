use rusqlite::{
    Connection, OptionalExtension, Row,
    types::{FromSql, FromSqlError, FromSqlResult, ValueRef},
};

use crate::{
    model::{Customer, Item, Order, Product, Status, Timestamp, User},
    store::rows::Orders,
};

impl FromSql for Timestamp {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Timestamp> {
        Timestamp::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl FromSql for Status {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Status> {
        value.as_str()?.parse().map_err(FromSqlError::other)
    }
}

pub(super) fn user(db: &Connection, id: i64) -> rusqlite::Result<Option<User>> {
    let mut select = db.prepare_cached("SELECT name, email, created_at FROM users WHERE id = ?1")?;
    let user =
        |row: &Row<'_>| Ok(User { id, name: row.get(0)?, email: row.get(1)?, created_at: row.get(2)? });
    select.query_row([id], user).optional()
}

pub(super) fn product(db: &Connection, id: i64) -> rusqlite::Result<Option<Product>> {
    let mut select = db.prepare_cached("SELECT name, price_cents, stock FROM products WHERE id = ?1")?;
    let product =
        |row: &Row<'_>| Ok(Product { id, name: row.get(0)?, price_cents: row.get(1)?, stock: row.get(2)? });
    select.query_row([id], product).optional()
}

pub(super) fn order(db: &Connection, id: i64) -> rusqlite::Result<Option<Order>> {
    let mut select = db.prepare_cached(
        "SELECT o.id, o.status, o.total_cents, o.created_at, u.id, u.name, u.email, \
                i.product_id, i.quantity, i.price_cents \
         FROM orders o \
         JOIN users u ON u.id = o.customer_id \
         LEFT JOIN order_items i ON i.order_id = o.id \
         WHERE o.id = ?1 ORDER BY i.product_id",
    )?;
    Ok(assemble(select.query([id])?)?.pop())
}

/// A customer's newest orders of one status: the index has them in order.
macro_rules! of_status {
    ($status:literal) => {
        concat!(
            "SELECT id, customer_id, status, total_cents, created_at \
             FROM orders WHERE customer_id = ?1 AND status = ",
            $status
        )
    };
    ($status:literal, newest) => {
        concat!("SELECT * FROM (", of_status!($status), " ORDER BY created_at DESC, id DESC LIMIT 20)")
    };
}

const LIST_OF_STATUS: &str = list!(of_status!("?2"));

/// The newest of all are among the newest of each status, so it costs the same however many orders the customer has.
const LIST: &str = list!(concat!(
    "SELECT * FROM (",
    of_status!("'pending'", newest),
    " UNION ALL ",
    of_status!("'confirmed'", newest),
    " UNION ALL ",
    of_status!("'shipped'", newest),
    ")"
));

/// The list in one statement.
pub(super) fn order_list(
    db: &Connection,
    customer: i64,
    status: Option<Status>,
) -> rusqlite::Result<Vec<Order>> {
    match status {
        None => assemble(db.prepare_cached(LIST)?.query([customer])?),
        Some(status) => assemble(db.prepare_cached(LIST_OF_STATUS)?.query((customer, status.as_str()))?),
    }
}

fn assemble(mut rows: rusqlite::Rows<'_>) -> rusqlite::Result<Vec<Order>> {
    let mut orders = Orders::default();
    while let Some(row) = rows.next()? {
        let id = row.get(0)?;
        let order = || -> rusqlite::Result<Order> {
            Ok(Order {
                id,
                status: row.get(1)?,
                total_cents: row.get(2)?,
                created_at: row.get(3)?,
                customer: Customer { id: row.get(4)?, name: row.get(5)?, email: row.get(6)? },
                items: Vec::new(),
            })
        };
        orders.push(id, order, item(row, 7)?)?;
    }
    Ok(orders.finish())
}

/// An item from `product_id, quantity, price_cents`, the first of them at `at`.
pub(super) fn item(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<Item>> {
    let Some(product_id) = row.get(at)? else { return Ok(None) };
    Ok(Some(Item { product_id, quantity: row.get(at + 1)?, price_cents: row.get(at + 2)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ORDER_INDEX;

    #[test]
    fn lists_take_what_they_need_from_the_composite_index() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("../../../migrations/sqlite/0001_tables.sql")).unwrap();
        db.execute_batch(ORDER_INDEX).unwrap();
        for (sql, searches) in [(LIST, Status::ALL.len()), (LIST_OF_STATUS, 1)] {
            let sql = format!("EXPLAIN QUERY PLAN {}", sql.replace("?2", "'pending'").replace("?1", "1"));
            let mut explain = db.prepare(&sql).unwrap();
            let steps = explain.query_map((), |row| Ok((row.get("parent")?, row.get("detail")?))).unwrap();
            let steps = steps.collect::<rusqlite::Result<Vec<(i64, String)>>>().unwrap();
            let plan = steps.iter().map(|(_, step)| step.as_str()).collect::<Vec<_>>().join("\n");
            assert!(!plan.contains("SCAN orders") && !plan.contains("SCAN i"), "{plan}");
            let by_index =
                "SEARCH orders USING INDEX orders_customer_status_created (customer_id=? AND status=?)";
            let found: Vec<i64> =
                steps.iter().filter(|(_, step)| step == by_index).map(|&(parent, _)| parent).collect();
            assert_eq!(found.len(), searches, "{plan}");
            assert_eq!(plan.matches("orders_customer_status_created").count(), searches, "{plan}");
            // Where a search stands, nothing sorts what it finds: it stops at 20.
            let sorts =
                |parent| steps.iter().any(|(beside, step)| *beside == parent && step.contains("TEMP B-TREE"));
            assert!(!found.into_iter().any(sorts), "{plan}");
        }
        for status in Status::ALL {
            assert!(LIST.contains(&format!("status = '{status}'")), "{status}");
        }
    }
}
