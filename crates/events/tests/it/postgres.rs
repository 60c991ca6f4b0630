use std::time::Duration;

use greenwave_events::{BoxError, Bus, BusConfig, Event, Postgres, SubscriptionConfig};
use greenwave_test_servers::Server;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::{
    sync::mpsc::UnboundedSender,
    time::{sleep, timeout},
};

use crate::{
    conformance::Calls,
    harness::{Gate, Harness, Heard, OrderCreated, Running, quick, until, until_done},
};

pub(crate) struct OnPostgres {
    url: String,
    pub(crate) pool: PgPool,
}

fn pool(url: &str) -> PgPool {
    PgPoolOptions::new()
        .max_connections(10)
        .acquire_timeout(Duration::from_secs(2))
        .connect_lazy(url)
        .unwrap()
}

impl Harness for OnPostgres {
    type Backend = Postgres;

    const PAST: &'static str = "now() - interval '1 hour'";
    const SPREAD: &'static str = "UPDATE greenwave_event_log SET logged_at = logged_at
        - ((SELECT last FROM greenwave_event_head) - position) * interval '1 hour'";

    async fn empty() -> Self {
        let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
        let database = OnPostgres { pool: pool(&url), url };
        database.execute("CREATE TABLE effect (subscription text, order_id bigint)").await;
        database
    }

    fn bus(&self) -> Bus<Postgres> {
        Bus::postgres(pool(&self.url)).with_config(quick())
    }

    async fn publish<E: Event>(&self, events: &[E]) {
        let mut tx = self.pool.begin().await.unwrap();
        for event in events {
            self.bus().publish(&mut tx, event).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn publish_and_roll_back(&self, order_id: i64) {
        let mut tx = self.pool.begin().await.unwrap();
        self.bus().publish(&mut tx, &OrderCreated { order_id }).await.unwrap();
        tx.rollback().await.unwrap();
    }

    fn subscribe_effect(&self, bus: &Bus<Postgres>, name: &'static str) {
        bus.subscribe_in_tx(name, move |tx: &mut PgConnection, order: OrderCreated| {
            Box::pin(async move {
                insert_effect(tx, name, order.order_id).await?;
                if order.order_id < 0 { Err("a negative order".into()) } else { Ok(()) }
            })
        });
    }

    fn subscribe_effects(&self, bus: &Bus<Postgres>, name: &'static str, told: UnboundedSender<i64>) {
        bus.subscribe_batch_in_tx(name, move |tx: &mut PgConnection, orders: Vec<OrderCreated>| {
            let told = told.clone();
            Box::pin(async move {
                told.send(orders.len() as i64)?;
                for order in &orders {
                    insert_effect(&mut *tx, name, order.order_id).await?;
                }
                if orders.iter().any(|order| order.order_id < 0) {
                    Err("a negative order".into())
                } else {
                    Ok(())
                }
            })
        });
    }

    async fn publish_many(&self, orders: &[OrderCreated]) {
        let mut tx = self.pool.begin().await.unwrap();
        let ids = self.bus().publish_many(&mut tx, orders).await.unwrap();
        assert_eq!(ids.len(), orders.len());
        tx.commit().await.unwrap();
    }

    async fn migrate_to_first(&self) {
        sqlx::raw_sql(include_str!("../../migrations/postgres/0001_outbox_and_deliveries.sql"))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    async fn execute(&self, sql: &str) {
        sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await.unwrap();
    }

    async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }
}

async fn insert_effect(tx: &mut PgConnection, name: &str, order_id: i64) -> Result<(), BoxError> {
    sqlx::query("INSERT INTO effect VALUES ($1, $2)").bind(name).bind(order_id).execute(tx).await?;
    Ok(())
}

conformance!(OnPostgres);

#[tokio::test]
async fn a_transaction_that_commits_late_loses_no_event() {
    let database = OnPostgres::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    // Ids are taken in the order 0, 1, 2, 3; commits come in the order 1, 3, 2, 0.
    let mut open = Vec::new();
    for order_id in 0..4 {
        let mut tx = database.pool.begin().await.unwrap();
        bus.publish(&mut tx, &OrderCreated { order_id }).await.unwrap();
        open.push(Some(tx));
    }
    for order_id in [1, 3, 2, 0] {
        open[order_id].take().unwrap().commit().await.unwrap();
        bus.wake();
        assert_eq!(mail.next().await, order_id as i64);
    }
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(mail.rest(), 0);
}

#[tokio::test]
async fn many_writers_that_commit_in_any_order_lose_no_event() {
    let database = OnPostgres::new().await;
    let buses = [database.bus(), database.bus()];
    for bus in &buses {
        database.subscribe_effect(bus, "stock");
    }
    let running = buses.each_ref().map(Running::start);
    buses[0].register().await.unwrap();

    let writers = (0..8).map(|writer| {
        let (bus, pool) = (buses[0].clone(), database.pool.clone());
        tokio::spawn(async move {
            for order_id in writer * 40..(writer + 1) * 40 {
                let mut tx = pool.begin().await.unwrap();
                bus.publish(&mut tx, &OrderCreated { order_id }).await.unwrap();
                // Others take later ids meanwhile, and commit first.
                sqlx::query("SELECT pg_sleep(random() * 0.01)").execute(&mut *tx).await.unwrap();
                tx.commit().await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    until_done(&buses[0]).await;
    for running in running {
        running.stop().await;
    }
    // Positions are without gaps, and each writer's events are in the order in which they were committed.
    let positions = "SELECT max(position) + count(*) FROM greenwave_event_log";
    assert_eq!(database.count(positions).await, 640);
    let overtaken = "SELECT count(*) FROM greenwave_event_log a JOIN greenwave_event_log b ON
        (a.payload->>'order_id')::int / 40 = (b.payload->>'order_id')::int / 40
        AND (a.payload->>'order_id')::int < (b.payload->>'order_id')::int AND a.position > b.position";
    assert_eq!(database.count(overtaken).await, 0);
    assert_eq!(database.effects().await, 320);
    assert_eq!(database.count("SELECT count(DISTINCT order_id) FROM effect").await, 320);
}

#[tokio::test]
async fn a_handler_in_a_transaction_that_was_overtaken_is_rolled_back() {
    let database = OnPostgres::new().await;
    let bus = database.bus();
    let mut attempts = Heard::new();
    let (calls, gate, sender) = (Calls::default(), Gate::closed(), attempts.sender());
    let (handler_calls, handler_gate) = (calls.clone(), gate.clone());
    bus.subscribe_in_tx("stock", move |tx: &mut PgConnection, order: OrderCreated| {
        let (calls, gate, sender) = (handler_calls.clone(), handler_gate.clone(), sender.clone());
        Box::pin(async move {
            insert_effect(tx, "stock", order.order_id).await?;
            let before = calls.add();
            sender.send(before.into())?;
            if before == 0 {
                gate.pass().await;
            }
            Ok(())
        })
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    assert_eq!(attempts.next().await, 0);

    database.expire_leases().await;
    assert_eq!(attempts.next().await, 1);
    until_done(&bus).await;
    assert_eq!(database.effects().await, 1);

    gate.let_pass(1);
    running.stop().await;
    assert_eq!((calls.count(), database.effects().await), (2, 1));
    assert_eq!(bus.backlog().await.unwrap().dead, 0);
}

#[tokio::test]
async fn what_a_handler_published_is_relayed_although_another_committed_meanwhile() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct StockTaken {
        order_id: i64,
    }
    impl Event for StockTaken {
        const NAME: &'static str = "stock-taken";
    }

    // No poll comes to help.
    let database = OnPostgres::new().await;
    let bus = database.bus().with_config(BusConfig { poll_interval: Duration::from_secs(3600), ..quick() });
    let mut published = Heard::new();
    let (publisher, gate, sender) = (bus.clone(), Gate::closed(), published.sender());
    let handler_gate = gate.clone();
    bus.subscribe_in_tx("stock", move |tx: &mut PgConnection, order: OrderCreated| {
        let (publisher, gate, sender) = (publisher.clone(), handler_gate.clone(), sender.clone());
        Box::pin(async move {
            if order.order_id == 0 {
                publisher.publish(tx, &StockTaken { order_id: 0 }).await?;
                sender.send(0)?;
                gate.pass().await;
            }
            Ok(())
        })
    });
    let mut mail = Heard::new();
    let sender = mail.sender();
    bus.subscribe("mail", move |taken: StockTaken| {
        let told = sender.send(taken.order_id);
        async move { told }
    });
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    let running = Running::start(&bus);
    assert_eq!(published.next().await, 0);

    // A handler that publishes nothing commits between the publication and its commit.
    database.publish_orders(1..2).await;
    bus.wake();
    until("the other is committed", || async { bus.backlog().await.unwrap().deliveries == 1 }).await;
    gate.let_pass(1);
    assert_eq!(mail.next().await, 0);
    running.stop().await;
}

/// A server of the test's own, which answers.
async fn own_server() -> Server {
    tokio::task::spawn_blocking(Server::postgres).await.unwrap()
}

/// sqlx does not roll back a transaction whose `BEGIN` was dropped before its answer, and gave the application's pool a
/// connection on which nothing was ever committed.
#[tokio::test]
async fn a_begin_that_is_dropped_leaves_no_transaction_in_the_pool() {
    let server = own_server().await;
    // Otherwise the pool's own question to the frozen server would come before the `BEGIN`.
    let one = PgPoolOptions::new().max_connections(1).test_before_acquire(false);
    let shared = one.connect(&server.url()).await.unwrap();
    sqlx::query("CREATE TABLE note (id bigint)").execute(&shared).await.unwrap();
    let bus = Bus::postgres(shared.clone());
    until("the connection is back in the pool", || async { shared.num_idle() == 1 }).await;

    server.pause();
    assert!(timeout(Duration::from_millis(200), bus.migrate()).await.is_err());
    server.resume();

    sqlx::query("INSERT INTO note VALUES (1)").execute(&shared).await.unwrap();
    let seen: i64 =
        sqlx::query_scalar("SELECT count(*) FROM note").fetch_one(&pool(&server.url())).await.unwrap();
    assert_eq!(seen, 1);
}

#[tokio::test]
async fn a_run_waits_for_a_database_that_is_away_when_it_starts() {
    let mut server = own_server().await;
    let database = OnPostgres { pool: pool(&server.url()), url: server.url() };
    let config = BusConfig { statement_timeout: Duration::from_millis(100), ..quick() };
    let bus = database.bus().with_config(config);
    bus.migrate().await.unwrap();
    let server = tokio::task::spawn_blocking(move || {
        server.kill();
        server
    });
    let mut server = server.await.unwrap();
    assert!(bus.register().await.is_err());

    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let (running, stopped) = (Running::start(&bus), Running::start(&database.bus()));
    // Long enough for the first statement to fail.
    sleep(Duration::from_millis(500)).await;
    assert!(!running.task.is_finished());
    stopped.stop().await;
    let server = tokio::task::spawn_blocking(move || {
        server.start();
        server
    });
    let _server = server.await.unwrap();
    let registered = "SELECT count(*) FROM greenwave_event_subscription";
    until("it is registered", || async { database.count(registered).await == 1 }).await;
    database.publish_orders(7..8).await;
    assert_eq!(mail.next().await, 7);
    running.stop().await;
}

#[tokio::test]
async fn the_bus_outlives_its_database() {
    let mut server = own_server().await;
    let database = OnPostgres { pool: pool(&server.url()), url: server.url() };
    database.execute("CREATE TABLE effect (subscription text, order_id bigint)").await;
    // A claim whose answer was lost with the connection comes again when its lease has run out.
    let mut config = BusConfig { lease: Duration::from_secs(2), ..quick() };
    config.subscription.max_attempts = 100;
    let bus = database.bus().with_config(config);
    bus.migrate().await.unwrap();
    database.subscribe_effect(&bus, "stock");
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..100).await;
    until("some are handled", || async { database.effects().await > 0 }).await;

    let server = tokio::task::spawn_blocking(move || {
        server.kill();
        // Long enough for several rounds to fail.
        std::thread::sleep(Duration::from_millis(500));
        server.start();
        server
    });
    let _server = server.await.unwrap();
    let answers = || async { sqlx::query("SELECT 1").execute(&database.pool).await.is_ok() };
    until("the database is back", answers).await;
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(database.effects().await, 100);
    assert_eq!(database.count("SELECT count(DISTINCT order_id) FROM effect").await, 100);
}

/// What waited and could be given back only at the end, because the database refused it before.
#[tokio::test]
async fn a_stop_loses_nothing_that_it_could_not_set_aside() {
    let database = OnPostgres::new().await;
    let config = BusConfig { grace: Duration::from_millis(300), ..quick() };
    let bus = database.bus().with_config(config);
    let mut heard = Heard::new();
    let sender = heard.sender();
    let one_by_one = SubscriptionConfig { concurrency: 1, ..quick().subscription };
    bus.subscribe_with("mail", one_by_one, move |order: OrderCreated, _| {
        sender.send(order.order_id).unwrap();
        std::future::pending::<Result<(), BoxError>>()
    });
    bus.register().await.unwrap();
    database.publish_orders(0..3).await;
    let running = Running::start(&bus);
    assert_eq!(heard.next().await, 0);
    for sql in [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON greenwave_event_range EXECUTE FUNCTION refuse()",
    ] {
        database.execute(sql).await;
    }
    running.stop().await;
    assert_eq!(bus.backlog().await.unwrap().deliveries, 3);
}
