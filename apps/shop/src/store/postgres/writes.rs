use chrono::{DateTime, Utc};
use greenwave_events::Event;
use sqlx::{Executor, Postgres, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{
    Error,
    effects::{OrderCreated, Sold},
    model::{Customer, Item, Order, Status, User},
    request::{NewOrder, NewUser},
};

/// Inserts a user.
pub(super) async fn user(conn: impl Executor<'_, Database = Postgres>, new: NewUser) -> Result<User, Error> {
    const INSERT: &str = "\
        INSERT INTO users (name, email) VALUES ($1, $2) ON CONFLICT (email) DO NOTHING RETURNING id, created_at";
    let row = sqlx::query(INSERT).bind(&new.name).bind(&new.email).fetch_optional(conn).await?;
    let row = row.ok_or(Error::EmailInUse)?;
    let created_at = row.try_get::<DateTime<Utc>, _>(1)?.into();
    Ok(User { id: row.try_get(0)?, name: new.name, email: new.email, created_at })
}

/// The statement that inserts an order; `$more` are further parts of it, which see the order as `made`.
macro_rules! insert_order {
    ($more:literal) => {
        concat!(
            "WITH customer AS (SELECT id, name, email FROM users WHERE id = $1), \
             priced AS ( \
                 SELECT w.product_id, w.quantity, p.price_cents \
                 FROM unnest($2::bigint[], $3::integer[]) AS w (product_id, quantity) \
                 JOIN products p ON p.id = w.product_id), \
             made AS ( \
                 INSERT INTO orders (customer_id, status, total_cents) \
                 SELECT c.id, 'pending', (SELECT sum(quantity::bigint * price_cents)::bigint FROM priced) \
                 FROM customer c \
                 WHERE (SELECT count(*) FROM priced) = cardinality($2::bigint[]) \
                 RETURNING id, total_cents, created_at), \
             lines AS ( \
                 INSERT INTO order_items (order_id, product_id, quantity, price_cents) \
                 SELECT m.id, p.product_id, p.quantity, p.price_cents FROM made m, priced p)",
            $more,
            " SELECT c.name, c.email, m.id, m.total_cents, m.created_at, \
                 (SELECT array_agg(product_id) FROM priced), (SELECT array_agg(price_cents) FROM priced) \
             FROM (SELECT) one LEFT JOIN customer c ON true LEFT JOIN made m ON true"
        )
    };
}

/// Inserts an order and its items, and reads customer and prices, in one statement. Where the customer or a product
/// is missing, nothing is inserted.
pub(super) async fn order(
    conn: impl Executor<'_, Database = Postgres>,
    new: &NewOrder,
) -> Result<Order, Error> {
    let (products, quantities) = wanted(new);
    let query = sqlx::query(insert_order!("")).bind(new.customer_id).bind(products).bind(quantities);
    made(new, &query.fetch_one(conn).await?)
}

/// As [`order`], and publishes in the same statement that it was made: one round trip, which is a transaction by itself.
pub(super) async fn order_and_event(
    conn: impl Executor<'_, Database = Postgres>,
    new: &NewOrder,
) -> Result<Order, Error> {
    // What `Bus::publish` writes, with the id that the order gets here.
    const INSERT: &str = insert_order!(
        ", published AS ( \
               INSERT INTO greenwave_event_outbox (id, event, version, payload) \
               SELECT $4, $5, $6, json_build_object('order_id', m.id, 'sold', $7::json) FROM made m)"
    );
    let (products, quantities) = wanted(new);
    let sold = serde_json::to_string(&Sold::of(new)).map_err(|error| Error::Database(error.into()))?;
    let query = sqlx::query(INSERT)
        .bind(new.customer_id)
        .bind(products)
        .bind(quantities)
        .bind(Uuid::now_v7())
        .bind(OrderCreated::NAME)
        .bind(i64::from(OrderCreated::VERSION))
        .bind(sold);
    made(new, &query.fetch_one(conn).await?)
}

fn wanted(new: &NewOrder) -> (Vec<i64>, Vec<i32>) {
    new.items.iter().map(|item| (item.product_id, item.quantity)).unzip()
}

fn made(new: &NewOrder, row: &PgRow) -> Result<Order, Error> {
    let Some(name) = row.try_get(0)? else { return Err(Error::NoSuchCustomer(new.customer_id)) };
    let products: Vec<i64> = row.try_get::<Option<_>, _>(5)?.unwrap_or_default();
    let prices: Vec<i32> = row.try_get::<Option<_>, _>(6)?.unwrap_or_default();
    let price =
        |id| products.iter().zip(&prices).find(|(product, _)| **product == id).map(|(_, price)| *price);
    let mut items = Vec::with_capacity(new.items.len());
    for item in &new.items {
        let price_cents = price(item.product_id).ok_or(Error::NoSuchProduct(item.product_id))?;
        items.push(Item { product_id: item.product_id, quantity: item.quantity, price_cents });
    }
    items.sort_unstable_by_key(|item| item.product_id);
    Ok(Order {
        id: row.try_get(2)?,
        status: Status::Pending,
        total_cents: row.try_get(3)?,
        created_at: row.try_get::<DateTime<Utc>, _>(4)?.into(),
        customer: Customer { id: new.customer_id, name, email: row.try_get(1)? },
        items,
    })
}
