//! An event to three durable subscriptions, and three jobs instead, on one PostgreSQL:
//! `DATABASE_URL=postgres://… cargo run --release -p greenwave-lab --example events_and_jobs`.
//!
//! For the events, the clock runs from the outbox to the last handler. For the jobs, it runs from rows that are in the
//! queue already: what three inserts cost more than one is not counted. Handlers do nothing. Both take turns, each in a
//! database of its own, which is made and dropped again; what is printed is the median of the rounds' ratios.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use greenwave_events::{BoxError, Bus, Event};
use greenwave_jobs::{Job, Queue, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const EVENTS: u64 = 50_000;
const ROUNDS: usize = 5;
const HANDLERS: [&str; 3] = ["stock", "mail", "search"];

#[derive(Deserialize, Serialize)]
struct OrderCreated {
    order_id: u64,
    customer: String,
}

impl OrderCreated {
    fn all() -> Vec<OrderCreated> {
        let order = |order_id| OrderCreated { order_id, customer: format!("customer {order_id}") };
        (0..EVENTS).map(order).collect()
    }
}

impl Event for OrderCreated {
    const NAME: &'static str = "order-created";
}

impl Job for OrderCreated {
    const NAME: &'static str = "order-created";
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("set DATABASE_URL to a PostgreSQL server")?;
    let server = PgPool::connect(&url).await?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let mut took = Vec::new();
        for what in ["events", "jobs"] {
            let name = format!("greenwave_lab_{what}_{round}_{:08x}", rand::random::<u32>());
            sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&server).await?;
            let options = PgConnectOptions::from_str(&url)?.database(&name);
            let pool = PgPoolOptions::new().max_connections(10).test_before_acquire(false);
            let pool = pool.connect_with(options).await?;
            let measured = if what == "events" { events(&pool).await } else { jobs(&pool).await };
            pool.close().await;
            let drop = format!("DROP DATABASE {name} WITH (FORCE)");
            sqlx::query(AssertSqlSafe(drop)).execute(&server).await?;
            took.push(measured?.as_secs_f64());
        }
        ratios.push(took[1] / took[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "{EVENTS} events to three subscriptions: {:.2} times as fast as three jobs each ({:.2} to {:.2})",
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1]
    );
    Ok(())
}

async fn events(pool: &PgPool) -> anyhow::Result<Duration> {
    let bus = Bus::postgres(pool.clone());
    bus.migrate().await?;
    let handled = Arc::new(AtomicU64::new(0));
    for name in HANDLERS {
        let handled = Arc::clone(&handled);
        bus.subscribe(name, move |_: OrderCreated| {
            handled.fetch_add(1, Ordering::Relaxed);
            async { Ok::<(), BoxError>(()) }
        });
    }
    bus.register().await?;
    let mut connection = pool.acquire().await?;
    for some in OrderCreated::all().chunks(1000) {
        bus.publish_many(&mut connection, some).await?;
    }
    drop(connection);
    let cancel = CancellationToken::new();
    let began = Instant::now();
    let stop = cancel.clone();
    let running = tokio::spawn(async move { bus.run(stop).await });
    wait(&handled).await;
    let took = began.elapsed();
    cancel.cancel();
    running.await??;
    Ok(took)
}

async fn jobs(pool: &PgPool) -> anyhow::Result<Duration> {
    let queue = Queue::postgres(pool.clone());
    queue.migrate().await?;
    for some in OrderCreated::all().chunks(1000) {
        for _ in HANDLERS {
            queue.push_many(some).await?;
        }
    }
    let handled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&handled);
    let worker = Worker::new(queue, WorkerConfig::default()).handle(move |_: OrderCreated, _| {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok::<(), BoxError>(()) }
    });
    let cancel = CancellationToken::new();
    let began = Instant::now();
    let stop = cancel.clone();
    let running = tokio::spawn(async move { worker.run(stop).await });
    wait(&handled).await;
    let took = began.elapsed();
    cancel.cancel();
    running.await??;
    Ok(took)
}

async fn wait(handled: &AtomicU64) {
    while handled.load(Ordering::Relaxed) < EVENTS * HANDLERS.len() as u64 {
        sleep(Duration::from_millis(1)).await;
    }
}
