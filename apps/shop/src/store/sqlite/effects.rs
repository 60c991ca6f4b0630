use greenwave_db::sqlite::Pool;
use greenwave_events::{BoxError, Bus};
use greenwave_jobs::{Queue, Worker, WorkerConfig};
use rusqlite::{Connection, Transaction, params};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    effects::{NOTIFICATIONS, ORDER_CREATED, OrderCreated, STOCK, SendWelcomeEmail, WELCOME},
    model::Timestamp,
    store::{HANDLER_GRACE, LEASE},
};

/// The event's two handlers; what each does is committed together with the note that it is done.
pub(super) fn subscribe(events: &Bus<greenwave_events::Sqlite>) {
    events.subscribe_in_tx(STOCK, |tx: &Transaction<'_>, event: OrderCreated| {
        lower_stock(tx, &event).map_err(BoxError::from)
    });
    events.subscribe_in_tx(NOTIFICATIONS, |tx: &Transaction<'_>, event: OrderCreated| {
        notify(tx, &event).map_err(BoxError::from)
    });
}

/// Relays and handles events and works on jobs, until cancelled.
pub(super) async fn run(
    events: &Bus<greenwave_events::Sqlite>,
    jobs: &Queue<greenwave_jobs::Sqlite>,
    pool: &Pool,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let pool = pool.clone();
    let config = WorkerConfig { grace: HANDLER_GRACE, lease: LEASE, ..WorkerConfig::default() };
    let worker = Worker::new(jobs.clone(), config).handle(move |job: SendWelcomeEmail, _| {
        let pool = pool.clone();
        async move {
            pool.write(move |tx| send_welcome_email(tx, &job).map_err(greenwave_db::Error::from)).await?;
            Ok::<(), BoxError>(())
        }
    });
    let events = async { events.run(cancel.clone()).await.map_err(Error::from) };
    let jobs = async { worker.run(cancel.clone()).await.map_err(Error::from) };
    tokio::try_join!(events, jobs)?;
    Ok(())
}

/// Lowers the stock of what was sold.
pub(super) fn lower_stock(db: &Connection, event: &OrderCreated) -> rusqlite::Result<()> {
    let mut update = db.prepare_cached("UPDATE products SET stock = stock - ?2 WHERE id = ?1")?;
    for sold in &event.sold {
        update.execute(params![sold.product_id, sold.quantity])?;
    }
    Ok(())
}

/// Writes the notification of an order, unless it is there.
pub(super) fn notify(db: &Connection, event: &OrderCreated) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO notifications (order_id, kind, created_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
    )?
    .execute(params![event.order_id, ORDER_CREATED, Timestamp::now().to_string()])?;
    Ok(())
}

/// Writes the email to a new user, unless it is there.
pub(super) fn send_welcome_email(db: &Connection, job: &SendWelcomeEmail) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO emails (user_id, kind, address, created_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
    )?
    .execute(params![job.user_id, WELCOME, job.address, Timestamp::now().to_string()])?;
    Ok(())
}
