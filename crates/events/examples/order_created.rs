//! An order is created; stock and notification hear of it. Run it with
//! `cargo run -p greenwave-events --example order_created`.

use std::{sync::Arc, time::Duration};

use greenwave_events::{BoxError, Bus, BusConfig, Event, EventContext, SubscriptionConfig};
use rusqlite::{Connection, Transaction};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Serialize, Deserialize)]
struct OrderCreated {
    order_id: i64,
    quantity: i64,
}

impl Event for OrderCreated {
    const NAME: &'static str = "order-created";
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.db");
    let mut shop = Connection::open(&path)?;
    shop.execute_batch(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, quantity INTEGER NOT NULL);
         CREATE TABLE stock (on_hand INTEGER NOT NULL);
         INSERT INTO stock VALUES (100);",
    )?;

    let quick_retries = SubscriptionConfig { retry_min: Duration::from_millis(50), ..Default::default() };
    let events = Bus::sqlite(&path)?
        .with_config(BusConfig { subscription: quick_retries.clone(), ..Default::default() });
    events.migrate().await?;

    // The delivery is completed in this transaction: the stock falls exactly once.
    events.subscribe_in_tx("stock", |tx: &Transaction<'_>, order: OrderCreated| {
        tx.execute("UPDATE stock SET on_hand = on_hand - ?1", [order.quantity])?;
        println!("stock:        took {} for order {}", order.quantity, order.order_id);
        Ok(())
    });
    // The mail server is down at first: stock goes on, and the notification comes again.
    let notified = Arc::new(Notify::new());
    let notify = notified.clone();
    events.subscribe_with(
        "notification",
        quick_retries,
        move |order: OrderCreated, context: EventContext| {
            let notify = notify.clone();
            async move {
                if context.attempt < 3 {
                    println!("notification: attempt {} for order {} fails", context.attempt, order.order_id);
                    return Err("the mail server is down");
                }
                println!("notification: attempt {} for order {} succeeds", context.attempt, order.order_id);
                notify.notify_one();
                Ok(())
            }
        },
    );

    let cancel = CancellationToken::new();
    let bus = events.clone();
    let stop = cancel.clone();
    let running = tokio::spawn(async move { bus.run(stop).await });

    // An order that is rolled back: nobody hears of it.
    let tx = shop.transaction()?;
    events.publish(&tx, &OrderCreated { order_id: 1, quantity: 99 })?;
    tx.rollback()?;
    println!("shop:         order 1 rolled back");

    let tx = shop.transaction()?;
    tx.execute("INSERT INTO orders VALUES (2, 5)", [])?;
    events.publish(&tx, &OrderCreated { order_id: 2, quantity: 5 })?;
    tx.commit()?;
    events.wake();
    println!("shop:         order 2 committed");

    notified.notified().await;
    cancel.cancel();
    running.await??;

    let on_hand: i64 = shop.query_row("SELECT on_hand FROM stock", [], |row| row.get(0))?;
    println!("shop:         {on_hand} on hand, {:?}", events.backlog().await?);
    Ok(())
}
