use rusqlite::{ErrorCode, OptionalExtension, Transaction, params};

use crate::{
    Error,
    model::{Customer, Item, Order, Status, Timestamp, User},
    request::{NewOrder, NewUser},
};

/// Inserts a user.
pub(super) fn user(tx: &Transaction<'_>, new: NewUser) -> Result<User, Error> {
    let created_at = Timestamp::now();
    let mut insert = tx.prepare_cached("INSERT INTO users (name, email, created_at) VALUES (?1, ?2, ?3)")?;
    let id = insert.insert(params![new.name, new.email, created_at.to_string()]).map_err(|error| {
        match error.sqlite_error_code() {
            // Names and moments are checked, ids are given by SQLite: only the email can be there already.
            Some(ErrorCode::ConstraintViolation) => Error::EmailInUse,
            _ => error.into(),
        }
    })?;
    Ok(User { id, name: new.name, email: new.email, created_at })
}

/// Inserts an order and its items at the prices of now. An error leaves nothing: the transaction is rolled back.
pub(super) fn order(tx: &Transaction<'_>, new: NewOrder) -> Result<Order, Error> {
    let mut select = tx.prepare_cached("SELECT name, email FROM users WHERE id = ?1")?;
    let customer = select
        .query_row([new.customer_id], |row| {
            Ok(Customer { id: new.customer_id, name: row.get(0)?, email: row.get(1)? })
        })
        .optional()?
        .ok_or(Error::NoSuchCustomer(new.customer_id))?;

    let mut select = tx.prepare_cached("SELECT price_cents FROM products WHERE id = ?1")?;
    let mut items = Vec::with_capacity(new.items.len());
    for item in &new.items {
        let price_cents = select.query_row([item.product_id], |row| row.get(0)).optional()?;
        let price_cents = price_cents.ok_or(Error::NoSuchProduct(item.product_id))?;
        items.push(Item { product_id: item.product_id, quantity: item.quantity, price_cents });
    }
    items.sort_unstable_by_key(|item| item.product_id);
    let total = |item: &Item| i64::from(item.quantity) * i64::from(item.price_cents);
    let total_cents = items.iter().map(total).sum();

    let (status, created_at) = (Status::Pending, Timestamp::now());
    let id = tx
        .prepare_cached(
            "INSERT INTO orders (customer_id, status, total_cents, created_at) VALUES (?1, ?2, ?3, ?4)",
        )?
        .insert(params![customer.id, status.as_str(), total_cents, created_at.to_string()])?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO order_items (order_id, product_id, quantity, price_cents) VALUES (?1, ?2, ?3, ?4)",
    )?;
    for item in &items {
        insert.execute(params![id, item.product_id, item.quantity, item.price_cents])?;
    }
    Ok(Order { id, status, total_cents, created_at, customer, items })
}
