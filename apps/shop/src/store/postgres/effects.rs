use greenwave_events::{BoxError, Bus};
use greenwave_jobs::{Queue, Worker, WorkerConfig};
use sqlx::{Executor, PgConnection, PgPool, Postgres};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    effects::{NOTIFICATIONS, ORDER_CREATED, OrderCreated, STOCK, SendWelcomeEmail, WELCOME, handle_events},
    store::{HANDLER_GRACE, LEASE},
};

/// The event's two handlers; what each does is committed together with the note that it is done.
pub(super) fn subscribe(events: &Bus<greenwave_events::Postgres>) {
    events.subscribe_in_tx(STOCK, |tx: &mut PgConnection, event: OrderCreated| {
        Box::pin(async move { lower_stock(tx, &event).await.map_err(BoxError::from) })
    });
    events.subscribe_in_tx(NOTIFICATIONS, |tx: &mut PgConnection, event: OrderCreated| {
        Box::pin(async move { notify(tx, &event).await.map_err(BoxError::from) })
    });
}

/// Relays and handles events and works on jobs, until cancelled.
pub(super) async fn run(
    events: &Bus<greenwave_events::Postgres>,
    jobs: &Queue<greenwave_jobs::Postgres>,
    pool: &PgPool,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let pool = pool.clone();
    let config = WorkerConfig { grace: HANDLER_GRACE, lease: LEASE, ..WorkerConfig::default() };
    let worker = Worker::new(jobs.clone(), config).handle(move |job: SendWelcomeEmail, _| {
        let pool = pool.clone();
        async move {
            let mut conn = pool.acquire().await?;
            send_welcome_email(&mut *conn, &job).await?;
            Ok::<(), BoxError>(())
        }
    });
    tokio::try_join!(handle_events(events, &cancel), async {
        worker.run(cancel.clone()).await.map_err(Error::from)
    },)?;
    Ok(())
}

/// Lowers the stock of what was sold, in one statement.
pub(super) async fn lower_stock(
    conn: impl Executor<'_, Database = Postgres>,
    event: &OrderCreated,
) -> sqlx::Result<()> {
    // Rows change in the order of the arrays, which is that of their ids: two orders of the same products wait for one
    // another, and never each for the other. (To lock them first in a CTE would not help: the update then comes back
    // to the rows' older versions, on which others wait for it.)
    const LOWER: &str = "\
        UPDATE products p SET stock = p.stock - sold.quantity \
        FROM unnest($1::bigint[], $2::integer[]) AS sold (product_id, quantity) WHERE p.id = sold.product_id";
    let sold: (Vec<i64>, Vec<i32>) = event.sold.iter().map(|sold| (sold.product_id, sold.quantity)).unzip();
    sqlx::query(LOWER).bind(sold.0).bind(sold.1).execute(conn).await?;
    Ok(())
}

/// Writes the notification of an order, unless it is there.
pub(super) async fn notify(
    conn: impl Executor<'_, Database = Postgres>,
    event: &OrderCreated,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO notifications (order_id, kind) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(event.order_id)
        .bind(ORDER_CREATED)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes the email to a new user, unless it is there.
pub(super) async fn send_welcome_email(
    conn: impl Executor<'_, Database = Postgres>,
    job: &SendWelcomeEmail,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO emails (user_id, kind, address) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(job.user_id)
        .bind(WELCOME)
        .bind(&job.address)
        .execute(conn)
        .await?;
    Ok(())
}
