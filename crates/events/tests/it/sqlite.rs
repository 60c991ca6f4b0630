use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use greenwave_events::{Bus, Event, Sqlite};
use rusqlite::{Connection, Transaction};
use tempfile::TempDir;

use crate::{
    conformance::Calls,
    harness::{Harness, Heard, OrderCreated, Running, quick, until_done},
};

pub(crate) struct OnSqlite {
    folder: TempDir,
}

impl OnSqlite {
    fn connection(&self) -> Connection {
        Connection::open(self.folder.path().join("events.db")).unwrap()
    }
}

impl Harness for OnSqlite {
    type Backend = Sqlite;

    const PAST: &'static str = "0";

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
        // Both orders are leased. The first handler ends the other's lease before that begins.
        if handler_calls.add() == 0 {
            let steal = "UPDATE greenwave_event_delivery SET lease_id = NULL, due_at = NULL
                         WHERE lease_id IS NOT NULL";
            handler_stolen.store(tx.execute(steal, [])?, Ordering::SeqCst);
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
    assert_eq!((calls.count(), database.effects().await), (2, 2));
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
    config.poll_interval = std::time::Duration::from_secs(3600);
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
