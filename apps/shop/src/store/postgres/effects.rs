use greenwave_events::{BoxError, Bus};
use greenwave_jobs::{Queue, Worker, WorkerConfig};
use sqlx::{Executor, PgConnection, PgPool, Postgres};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    effects::{NOTIFICATIONS, ORDER_CREATED, OrderCreated, STOCK, SendWelcomeEmail, WELCOME, sold_together},
    store::{HANDLER_GRACE, LEASE},
};

/// The event's two handlers, for all events that wait together: a statement or two for many orders. What each does is
/// committed together with the note that it is done.
pub(super) fn subscribe(events: &Bus<greenwave_events::Postgres>) {
    events.subscribe_batch_in_tx(STOCK, |tx: &mut PgConnection, orders: Vec<OrderCreated>| {
        Box::pin(async move {
            lock_stock(&mut *tx, &orders).await?;
            lower_stock(tx, &orders).await.map_err(BoxError::from)
        })
    });
    events.subscribe_batch_in_tx(NOTIFICATIONS, |tx: &mut PgConnection, orders: Vec<OrderCreated>| {
        Box::pin(async move { notify(tx, &orders).await.map_err(BoxError::from) })
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
    let events = async { events.run(cancel.clone()).await.map_err(Error::from) };
    let jobs = async { worker.run(cancel.clone()).await.map_err(Error::from) };
    tokio::try_join!(events, jobs)?;
    Ok(())
}

/// Locks the rows of what was sold, in the order of their ids. Before [`lower_stock`], in the same transaction: two
/// who lower the same products then wait for one another, and never each for the other.
pub(super) async fn lock_stock(
    conn: impl Executor<'_, Database = Postgres>,
    orders: &[OrderCreated],
) -> sqlx::Result<()> {
    let products: Vec<i64> = sold_together(orders).into_keys().collect();
    sqlx::query("SELECT FROM products WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE")
        .bind(products)
        .execute(conn)
        .await?;
    Ok(())
}

/// Lowers the stock of what was sold, in one statement.
pub(super) async fn lower_stock(
    conn: impl Executor<'_, Database = Postgres>,
    orders: &[OrderCreated],
) -> sqlx::Result<()> {
    // An update takes rows in the order of its plan, whatever that is; hence the locks before it. They are a statement
    // of their own, because this one must see the rows as they are once it holds them: a CTE that locks shares its
    // snapshot with the update, which then comes back to older versions, on which others wait for it.
    const LOWER: &str = "\
        UPDATE products p SET stock = p.stock - sold.quantity \
        FROM unnest($1::bigint[], $2::bigint[]) AS sold (product_id, quantity) WHERE p.id = sold.product_id";
    let (products, quantities): (Vec<i64>, Vec<i64>) = sold_together(orders).into_iter().unzip();
    sqlx::query(LOWER).bind(products).bind(quantities).execute(conn).await?;
    Ok(())
}

/// Writes the notifications of orders, unless they are there.
pub(super) async fn notify(
    conn: impl Executor<'_, Database = Postgres>,
    orders: &[OrderCreated],
) -> sqlx::Result<()> {
    const NOTIFY: &str = "\
        INSERT INTO notifications (order_id, kind) SELECT unnest($1::bigint[]), $2 ON CONFLICT DO NOTHING";
    let orders: Vec<i64> = orders.iter().map(|order| order.order_id).collect();
    sqlx::query(NOTIFY).bind(orders).bind(ORDER_CREATED).execute(conn).await?;
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

#[cfg(test)]
mod tests {
    use greenwave_db::{PoolConfig, postgres::Pool};
    use tokio::task::JoinSet;

    use super::*;
    use crate::{effects::Sold, store::postgres::migrate};

    // With few products the planner hashes what was sold and updates in the order in which it reads the table.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn orders_of_the_same_products_never_wait_each_for_the_other() {
        const HANDLERS: i64 = 32;
        const ROUNDS: i64 = 20;
        let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
        let config = PoolConfig {
            max_connections: 32,
            connection_timeout: std::time::Duration::from_secs(30),
            ..PoolConfig::default()
        };
        let pool = Pool::connect(&url, config).await.unwrap();
        migrate::run(&pool, false).await.unwrap();
        sqlx::raw_sql("INSERT INTO products (id, name, price_cents, stock) VALUES (3, 'c', 1, 0), (2, 'b', 1, 0), (1, 'a', 1, 0)")
            .execute(&pool)
            .await
            .unwrap();
        let mut handlers = JoinSet::new();
        for handler in 0..HANDLERS {
            let pool = pool.clone();
            let products = [&[1, 2, 3][..], &[1, 3], &[1, 2], &[2, 3]][handler as usize % 4];
            let sold = products.iter().map(|&product_id| Sold { product_id, quantity: 1 }).collect();
            let event = [OrderCreated { order_id: handler, sold }];
            handlers.spawn(async move {
                for _ in 0..ROUNDS {
                    let mut tx = pool.begin().await.unwrap();
                    lock_stock(&mut *tx, &event).await.unwrap();
                    lower_stock(&mut *tx, &event).await.unwrap();
                    tx.commit().await.unwrap();
                }
            });
        }
        handlers.join_all().await;
        let stock: i64 =
            sqlx::query_scalar("SELECT sum(stock)::bigint FROM products").fetch_one(&pool).await.unwrap();
        assert_eq!(stock, -HANDLERS / 4 * ROUNDS * (3 + 2 + 2 + 2));
    }
}
