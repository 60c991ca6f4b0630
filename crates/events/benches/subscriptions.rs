//! Three durable subscriptions on one event: `cargo bench -p greenwave-events --bench subscriptions`.
//!
//! Events wait in the outbox of a PostgreSQL; one process relays them to the log and hands each to three subscriptions
//! whose handlers do nothing. The kinds of handlers take turns, round after round; what is printed are ratios to the
//! first kind.
//!
//! `DATABASE_URL` names a database to use, whose tables of events are dropped; without it, a private server is started,
//! which does not sync to disk.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_events::{BoxError, Bus, Event, Postgres};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const NAMES: [&str; 3] = ["stock", "mail", "search"];
const TABLES: [&str; 9] =
    ["outbox", "head", "log", "cursor", "range", "delivery", "dead", "subscription", "migration"];

#[derive(Deserialize, Serialize)]
struct OrderCreated {
    order_id: u64,
    customer: String,
}

impl Event for OrderCreated {
    const NAME: &'static str = "order-created";
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    AtLeastOnce,
    InTx,
    BatchInTx,
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let (rounds, events) = if trial { (1, 500) } else { (5, 50_000) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compare(rounds, events));
}

async fn compare(rounds: usize, events: u64) {
    let url = std::env::var("DATABASE_URL").unwrap_or_else(|_| greenwave_test_servers::postgres_database());
    let pool =
        PgPoolOptions::new().max_connections(10).test_before_acquire(false).connect(&url).await.unwrap();
    let kinds = [Kind::AtLeastOnce, Kind::InTx, Kind::BatchInTx];
    let mut ratios: Vec<Vec<f64>> = vec![Vec::new(); kinds.len()];
    for _ in 0..rounds {
        let mut first = None;
        for (kind, ratios) in kinds.into_iter().zip(&mut ratios) {
            let rate = events as f64 / round(&pool, kind, events).await.as_secs_f64();
            ratios.push(rate / *first.get_or_insert(rate));
        }
    }
    println!("events a second to three subscriptions, {events} events, median of {rounds} rounds");
    for (kind, ratios) in kinds.into_iter().zip(&mut ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("{kind:?}: {:.2} times the first", ratios[ratios.len() / 2]);
    }
}

/// How long the relay and the three subscriptions take for events that are in the outbox.
async fn round(pool: &PgPool, kind: Kind, events: u64) -> Duration {
    for table in TABLES {
        let drop = format!("DROP TABLE IF EXISTS greenwave_event_{table}");
        sqlx::query(AssertSqlSafe(drop)).execute(pool).await.unwrap();
    }
    sqlx::query("DROP SEQUENCE IF EXISTS greenwave_event_lease").execute(pool).await.unwrap();
    let bus = Bus::postgres(pool.clone());
    bus.migrate().await.unwrap();
    let handled = Arc::new(AtomicU64::new(0));
    for name in NAMES {
        subscribe(&bus, kind, name, &handled);
    }
    bus.register().await.unwrap();
    let all: Vec<OrderCreated> = (0..events)
        .map(|order_id| OrderCreated { order_id, customer: format!("customer {order_id}") })
        .collect();
    for some in all.chunks(1000) {
        let mut connection = pool.acquire().await.unwrap();
        bus.publish_many(&mut connection, some).await.unwrap();
    }
    let cancel = CancellationToken::new();
    let began = Instant::now();
    let running = tokio::spawn({
        let (bus, cancel) = (bus.clone(), cancel.clone());
        async move { bus.run(cancel).await }
    });
    while handled.load(Ordering::Relaxed) < events * NAMES.len() as u64 {
        sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    cancel.cancel();
    running.await.unwrap().unwrap();
    let left = bus.backlog().await.unwrap();
    assert_eq!((left.outbox, left.deliveries, left.dead), (0, 0, 0));
    took
}

fn subscribe(bus: &Bus<Postgres>, kind: Kind, name: &str, handled: &Arc<AtomicU64>) {
    let handled = Arc::clone(handled);
    match kind {
        Kind::AtLeastOnce => bus.subscribe(name, move |_: OrderCreated| {
            handled.fetch_add(1, Ordering::Relaxed);
            async { Ok::<(), BoxError>(()) }
        }),
        Kind::InTx => bus.subscribe_in_tx(name, move |_: &mut PgConnection, _: OrderCreated| {
            handled.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(()) })
        }),
        Kind::BatchInTx => {
            bus.subscribe_batch_in_tx(name, move |_: &mut PgConnection, orders: Vec<OrderCreated>| {
                handled.fetch_add(orders.len() as u64, Ordering::Relaxed);
                Box::pin(async { Ok(()) })
            });
        }
    }
}
