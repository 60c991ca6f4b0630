//! What follows a write: an event with two handlers, and a job.
//!
//! Both are stored in the transaction of the write itself, so there is no order without its effects and no effect
//! without its order. The event's handlers take the events of some time together, which makes an effect cheaper than it
//! is inside the request; each batch is committed together with the note that it was handled, so its effects happen
//! once. The job may run twice, and is an insert under a unique key.

use std::collections::BTreeMap;

use greenwave_events::Event;
use greenwave_jobs::Job;
use serde::{Deserialize, Serialize};

use crate::{
    model::{Item, Order, User},
    request::{NewItem, NewOrder},
};

/// The subscription that lowers the stock.
pub(crate) const STOCK: &str = "stock";
/// The subscription that writes the notification.
pub(crate) const NOTIFICATIONS: &str = "notifications";

/// The kind of a notification about a new order.
pub(crate) const ORDER_CREATED: &str = "order_created";
/// The kind of an email to a new user.
pub(crate) const WELCOME: &str = "welcome";

/// An order was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCreated {
    /// Which.
    pub order_id: i64,
    /// What was sold, sorted by product: who locks rows in this order meets no deadlock.
    pub sold: Vec<Sold>,
}

/// So many of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sold {
    /// The product.
    pub product_id: i64,
    /// How many.
    pub quantity: i32,
}

impl Sold {
    /// What an order asks for, sorted by product.
    pub(crate) fn of(new: &NewOrder) -> Vec<Sold> {
        let sold = |item: &NewItem| Sold { product_id: item.product_id, quantity: item.quantity };
        let mut sold: Vec<Sold> = new.items.iter().map(sold).collect();
        sold.sort_unstable_by_key(|sold| sold.product_id);
        sold
    }
}

/// What many orders sold together, by product, in the order of the products.
pub(crate) fn sold_together(orders: &[OrderCreated]) -> BTreeMap<i64, i64> {
    let mut together = BTreeMap::new();
    for sold in orders.iter().flat_map(|order| &order.sold) {
        *together.entry(sold.product_id).or_default() += i64::from(sold.quantity);
    }
    together
}

impl Event for OrderCreated {
    const NAME: &'static str = "order-created";
}

impl From<&Order> for OrderCreated {
    fn from(order: &Order) -> OrderCreated {
        let sold = |item: &Item| Sold { product_id: item.product_id, quantity: item.quantity };
        OrderCreated { order_id: order.id, sold: order.items.iter().map(sold).collect() }
    }
}

/// Greets a new user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendWelcomeEmail {
    /// Whom.
    pub user_id: i64,
    /// Where to.
    pub address: String,
}

impl Job for SendWelcomeEmail {
    const NAME: &'static str = "send-welcome-email";
    const QUEUE: &'static str = "mail";
}

impl From<&User> for SendWelcomeEmail {
    fn from(user: &User) -> SendWelcomeEmail {
        SendWelcomeEmail { user_id: user.id, address: user.email.clone() }
    }
}
