use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use greenwave_events::{Bus, BusConfig, Event, EventContext, Sqlite, SubscriptionConfig};
use rusqlite::{Connection, Transaction, TransactionBehavior::Immediate};
use tempfile::TempDir;
use tokio::{sync::mpsc::UnboundedSender, time::sleep};

use crate::{
    conformance::Calls,
    harness::{Harness, Heard, OrderCreated, Running, impatient, quick, until, until_done},
};

pub(crate) struct OnSqlite {
    folder: TempDir,
}

impl OnSqlite {
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("events.db")
    }

    fn connection(&self) -> Connection {
        Connection::open(self.folder.path().join("events.db")).unwrap()
    }
}

impl Harness for OnSqlite {
    type Backend = Sqlite;

    const PAST: &'static str = "0";
    const SPREAD: &'static str = "UPDATE greenwave_event_log SET logged_at = logged_at
        - ((SELECT max(position) FROM greenwave_event_log) - position) * 3600000";

    async fn empty() -> Self {
        let database = OnSqlite { folder: tempfile::tempdir().unwrap() };
        database.execute("CREATE TABLE effect (subscription TEXT, order_id INTEGER)").await;
        database
    }

    fn bus(&self) -> Bus<Sqlite> {
        Bus::sqlite(self.folder.path().join("events.db")).unwrap().with_config(quick())
    }

    async fn publish<E: Event>(&self, events: &[E]) {
        let mut connection = self.connection();
        let tx = connection.transaction().unwrap();
        for event in events {
            self.bus().publish(&tx, event).unwrap();
        }
        tx.commit().unwrap();
    }

    async fn publish_and_roll_back(&self, order_id: i64) {
        let mut connection = self.connection();
        let tx = connection.transaction().unwrap();
        self.bus().publish(&tx, &OrderCreated { order_id }).unwrap();
        tx.rollback().unwrap();
    }

    fn subscribe_effect(&self, bus: &Bus<Sqlite>, name: &'static str) {
        bus.subscribe_in_tx(name, move |tx: &Transaction<'_>, order: OrderCreated| {
            tx.execute("INSERT INTO effect VALUES (?1, ?2)", (name, order.order_id))?;
            if order.order_id < 0 { Err("a negative order".into()) } else { Ok(()) }
        });
    }

    fn subscribe_effects(&self, bus: &Bus<Sqlite>, name: &'static str, told: UnboundedSender<i64>) {
        bus.subscribe_batch_in_tx(name, move |tx: &Transaction<'_>, orders: Vec<OrderCreated>| {
            told.send(orders.len() as i64)?;
            for order in &orders {
                tx.execute("INSERT INTO effect VALUES (?1, ?2)", (name, order.order_id))?;
            }
            if orders.iter().any(|order| order.order_id < 0) {
                Err("a negative order".into())
            } else {
                Ok(())
            }
        });
    }

    async fn publish_many(&self, orders: &[OrderCreated]) {
        let mut connection = self.connection();
        let tx = connection.transaction().unwrap();
        assert_eq!(self.bus().publish_many(&tx, orders).unwrap().len(), orders.len());
        tx.commit().unwrap();
    }

    async fn migrate_to_first(&self) {
        let first = include_str!("../../migrations/sqlite/0001_outbox_and_deliveries.sql");
        self.connection().execute_batch(first).unwrap();
    }

    async fn execute(&self, sql: &str) {
        self.connection().execute(sql, []).unwrap();
    }

    async fn count(&self, sql: &str) -> i64 {
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

conformance!(OnSqlite);

#[tokio::test]
async fn an_event_with_an_earlier_position_than_was_relayed_is_not_lost() {
    let database = OnSqlite::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(5..6).await;
    assert_eq!(mail.next().await, 5);

    database
        .execute(
            "INSERT INTO greenwave_event_outbox (position, id, event, version, payload)
             VALUES (-7, '01890000-0000-7000-8000-000000000000', 'order-created', 1, '{\"order_id\": 4}')",
        )
        .await;
    assert_eq!(mail.next().await, 4);
    until_done(&bus).await;
    running.stop().await;
}

#[tokio::test]
async fn a_handler_whose_lease_was_lost_before_its_transaction_has_no_effect() {
    let database = OnSqlite::new().await;
    let bus = database.bus();
    let (calls, stolen) = (Calls::default(), Arc::new(AtomicUsize::new(0)));
    let (handler_calls, handler_stolen) = (calls.clone(), stolen.clone());
    bus.subscribe_in_tx("stock", move |tx: &Transaction<'_>, order: OrderCreated| {
        // A batch fails, so both orders are leased alone. Then the first handler ends the other's lease before that
        // begins.
        match handler_calls.add() {
            0 => return Err("not together".into()),
            1 => {
                let steal = "UPDATE greenwave_event_delivery SET lease_id = NULL, due_at = NULL
                             WHERE lease_id IS NOT NULL";
                handler_stolen.store(tx.execute(steal, [])?, Ordering::SeqCst);
            }
            _ => {}
        }
        tx.execute("INSERT INTO effect VALUES ('stock', ?1)", [order.order_id])?;
        Ok(())
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..2).await;
    until_done(&bus).await;
    running.stop().await;

    assert_eq!(stolen.load(Ordering::SeqCst), 1);
    assert_eq!((calls.count(), database.effects().await), (3, 2));
    assert_eq!(database.count("SELECT count(DISTINCT order_id) FROM effect").await, 2);
}

#[tokio::test]
async fn a_handler_may_publish_in_its_transaction() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct StockTaken {
        order_id: i64,
    }
    impl Event for StockTaken {
        const NAME: &'static str = "stock-taken";
    }

    // No poll comes to help: the chain runs because the bus wakes itself.
    let database = OnSqlite::new().await;
    let mut config = quick();
    config.poll_interval = Duration::from_secs(3600);
    let bus = database.bus().with_config(config);
    let publisher = bus.clone();
    bus.subscribe_in_tx("stock", move |tx: &Transaction<'_>, order: OrderCreated| {
        publisher.publish(tx, &StockTaken { order_id: order.order_id })?;
        Ok(())
    });
    let mut mail = Heard::new();
    let sender = mail.sender();
    bus.subscribe("mail", move |taken: StockTaken| {
        let told = sender.send(taken.order_id);
        async move { told }
    });
    bus.register().await.unwrap();
    database.publish_orders(3..4).await;
    let running = Running::start(&bus);
    assert_eq!(mail.next().await, 3);
    running.stop().await;
}

#[tokio::test]
async fn the_outbox_takes_no_id_that_is_no_uuid() {
    let database = OnSqlite::new().await;
    for bad in ["", "1", "zzzzzzzz-0000-7000-8000-000000000000"] {
        let insert =
            "INSERT INTO greenwave_event_outbox (id, event, version, payload) VALUES (?1, 'e', 1, '{}')";
        assert!(database.connection().execute(insert, [bad]).is_err(), "{bad}");
    }
}

/// SQLite does not wait for this lock by itself: of two processes that opened a new file, one failed.
#[test]
fn a_file_that_is_locked_while_it_is_opened_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let mut other = Connection::open(&path).unwrap();
    let lock = other.transaction_with_behavior(Immediate).unwrap();
    thread::scope(|scope| {
        let opened = scope.spawn(|| Bus::sqlite(&path).map(drop));
        thread::sleep(Duration::from_millis(200));
        lock.rollback().unwrap();
        opened.join().unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_run_waits_for_a_file_that_is_locked_when_it_starts() {
    let database = OnSqlite::new().await;
    let config = BusConfig { statement_timeout: Duration::from_millis(20), ..quick() };
    let bus = database.bus().with_config(config);
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let mut connection = database.connection();
    let lock = connection.transaction_with_behavior(Immediate).unwrap();
    let running = Running::start(&bus);
    // Long enough for the first statement to fail.
    sleep(Duration::from_millis(300)).await;
    assert!(!running.task.is_finished());
    lock.rollback().unwrap();

    let registered = "SELECT count(*) FROM greenwave_event_subscription";
    until("it is registered", || async { database.count(registered).await == 1 }).await;
    database.publish_orders(7..8).await;
    assert_eq!(mail.next().await, 7);
    running.stop().await;
}

/// With its only attempt, one handler is so slow that the others' time is over before they could begin. They once became
/// dead letters without having run.
#[tokio::test]
async fn a_handler_that_could_not_begin_has_made_no_attempt() {
    let database = OnSqlite::new().await;
    let bus = database.bus();
    let once = SubscriptionConfig { max_attempts: 1, timeout: Duration::from_millis(50), ..impatient() };
    let mut begun = Heard::new();
    let (calls, sender, (open, gate)) = (Calls::default(), begun.sender(), mpsc::channel::<()>());
    let gate = std::sync::Mutex::new(gate);
    bus.subscribe_in_tx_with(
        "stock",
        once,
        move |tx: &Transaction<'_>, order: OrderCreated, context: EventContext| {
            assert_eq!(context.attempt, 1);
            tx.execute("INSERT INTO effect VALUES ('stock', ?1)", [order.order_id])?;
            if calls.add() == 0 {
                sender.send(order.order_id)?;
                gate.lock().unwrap().recv()?;
            }
            Ok(())
        },
    );
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..4).await;
    begun.next().await;
    // Ten times their time.
    sleep(Duration::from_millis(500)).await;
    open.send(()).unwrap();
    until_done(&bus).await;
    running.stop().await;
    assert_eq!((database.effects().await, bus.backlog().await.unwrap().dead), (4, 0));
}

/// SQLite's own waiting gets the lock once in seconds, if at all.
#[tokio::test]
async fn a_writer_that_hardly_pauses_does_not_starve_the_bus() {
    let database = OnSqlite::new().await;
    let bus = database.bus();
    database.subscribe_effect(&bus, "stock");
    bus.register().await.unwrap();
    database.publish_orders(0..25).await;
    let (mut connection, stop) = (database.connection(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let writer = thread::spawn(move || {
        connection.busy_timeout(Duration::from_secs(60)).unwrap();
        while !stopped.load(Ordering::Relaxed) {
            let tx = connection.transaction_with_behavior(Immediate).unwrap();
            tx.execute("INSERT INTO effect VALUES ('other', 1)", []).unwrap();
            thread::sleep(Duration::from_millis(2));
            tx.commit().unwrap();
            // The gap that any program has between two transactions.
            thread::sleep(Duration::from_micros(50));
        }
    });
    let running = Running::start(&bus);
    until_done(&bus).await;
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    running.stop().await;
    assert_eq!(database.count("SELECT count(*) FROM effect WHERE subscription = 'stock'").await, 25);
}
