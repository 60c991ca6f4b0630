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

/// A customer's newest orders of one status: the index has them in order.
macro_rules! of_status {
    ($status:literal) => {
        concat!(
            "SELECT id, customer_id, status, total_cents, created_at \
             FROM orders WHERE customer_id = $1 AND status = ",
            $status
        )
    };
    ($status:literal, newest) => {
        concat!("(", of_status!($status), " ORDER BY created_at DESC, id DESC LIMIT 20)")
    };
}

const LIST_OF_STATUS: &str = list!(of_status!("$2"));

/// The newest of all are among the newest of each status, so it costs the same however many orders the customer has.
const LIST: &str = list!(concat!(
    "SELECT * FROM (",
    of_status!("'pending'", newest),
    " UNION ALL ",
    of_status!("'confirmed'", newest),
    " UNION ALL ",
    of_status!("'shipped'", newest),
    ") newest"
));

/// The list in one statement.
pub(super) async fn order_list(
    pool: &Pool,
    customer: i64,
    status: Option<Status>,
) -> sqlx::Result<Vec<Order>> {
    let query = match status {
        None => sqlx::query(LIST).bind(customer),
        Some(status) => sqlx::query(LIST_OF_STATUS).bind(customer).bind(status.as_str()),
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

#[cfg(test)]
mod tests {
    use greenwave_db::PoolConfig;
    use serde_json::Value;

    use super::*;
    use crate::{
        seed::SeedSize,
        store::postgres::{migrate, seed, with_settings},
    };

    const INDEX: &str = "orders_customer_status_created";

    /// How many scans of orders there are in a plan, and how many of those end after 20 rows that the index has in order.
    fn scans(plan: &Value) -> (usize, usize) {
        let children = plan["Plans"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut counts = (usize::from(plan["Relation Name"] == "orders"), 0);
        if plan["Node Type"] == "Limit" && children.len() == 1 && children[0]["Index Name"] == INDEX {
            counts.1 += usize::from(children[0]["Node Type"] == "Index Scan");
        }
        for (all, limited) in children.iter().map(scans) {
            counts = (counts.0 + all, counts.1 + limited);
        }
        counts
    }

    #[tokio::test]
    async fn lists_take_what_they_need_from_the_composite_index() {
        let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
        let pool = Pool::connect(&with_settings(&url, false), PoolConfig::default()).await.unwrap();
        migrate::run(&pool, false).await.unwrap();
        seed::run(&pool, SeedSize::SMALL, |_| {}).await.unwrap();
        let mut conn = pool.acquire().await.unwrap();
        for (list, searches, arguments) in
            [(LIST, Status::ALL.len(), "(7)"), (LIST_OF_STATUS, 1, "(7, 'pending')")]
        {
            for mode in ["force_custom_plan", "force_generic_plan"] {
                let prepare = format!(
                    "SET plan_cache_mode = {mode}; DEALLOCATE ALL; PREPARE list (bigint, text) AS {list}"
                );
                // The list of all takes one argument.
                let prepare = if arguments.contains(',') { prepare } else { prepare.replace(", text)", ")") };
                sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut *conn).await.unwrap();
                let explain = sqlx::AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) EXECUTE list {arguments}"));
                let row = sqlx::raw_sql(explain).fetch_one(&mut *conn).await.unwrap();
                let text = row.try_get_unchecked::<String, _>(0).unwrap();
                let plan: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(scans(&plan[0]["Plan"]), (searches, searches), "{mode}: {text}");
            }
        }
        for status in Status::ALL {
            assert!(LIST.contains(&format!("status = '{status}'")), "{status}");
        }
    }
}
