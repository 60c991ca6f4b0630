//! Events from JetStream, whoever published them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream;
use greenwave_events::{
    BoxError, Error, Event,
    jetstream::{ConsumeConfig, Consumer, JetStream, JetStreamConfig, Received},
};
use greenwave_test_servers::Server;
use serde_json::json;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{Harness, OrderCreated, PATIENCE, Running, until},
    sqlite::OnSqlite,
};

/// A stream of a test's own.
struct Stream {
    jetstream: JetStream,
    context: jetstream::Context,
    name: &'static str,
}

impl Stream {
    async fn new(name: &'static str) -> Stream {
        let url = tokio::task::spawn_blocking(greenwave_test_servers::nats_url).await.unwrap();
        Stream::on(&url, name).await
    }

    async fn on(url: &str, name: &'static str) -> Stream {
        let config = JetStreamConfig {
            stream: name.to_owned(),
            subject_prefix: name.to_owned(),
            source: "/shop".to_owned(),
            ack_timeout: Duration::from_secs(1),
            ..Default::default()
        };
        let jetstream = JetStream::connect(url, config).await.unwrap();
        let client = async_nats::connect(url).await.unwrap();
        let context = jetstream::new(client);
        let stream = jetstream::stream::Config {
            name: name.to_owned(),
            subjects: vec![format!("{name}.>")],
            ..Default::default()
        };
        context.get_or_create_stream(stream).await.unwrap();
        Stream { jetstream, context, name }
    }

    /// Publishes as some other program would.
    async fn publish(&self, event: &str, body: String) {
        let subject = format!("{}.{event}", self.name);
        self.context.publish(subject, body.into()).await.unwrap().await.unwrap();
    }

    async fn publish_order(&self, order_id: i64) {
        self.publish(OrderCreated::NAME, order(order_id)).await;
    }

    fn consumer(&self, name: &str) -> Consumer {
        self.jetstream.consume(name).with_config(quick())
    }
}

fn order(order_id: i64) -> String {
    let event = json!({
        "specversion": "1.0", "id": format!("order {order_id}"), "source": "/elsewhere",
        "type": OrderCreated::NAME, "data": {"order_id": order_id},
    });
    event.to_string()
}

fn quick() -> ConsumeConfig {
    ConsumeConfig {
        from_the_start: true,
        max_attempts: 3,
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        lease: Duration::from_secs(2),
        ..Default::default()
    }
}

struct Consuming {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Consuming {
    fn start(consumer: Consumer) -> Consuming {
        let cancel = CancellationToken::new();
        Consuming { task: tokio::spawn(consumer.run(cancel.clone())), cancel }
    }

    async fn stop(self) {
        self.cancel.cancel();
        timeout(PATIENCE, self.task).await.expect("the consumer stops").unwrap().unwrap();
    }
}

/// A consumer that tells, and succeeds.
fn listener(consumer: Consumer) -> (Consuming, UnboundedReceiver<(i64, Received)>) {
    let (told, heard) = unbounded_channel();
    let consumer = consumer.handle(move |order: OrderCreated, received: Received| {
        let told = told.send((order.order_id, received)).map_err(|error| BoxError::from(error.to_string()));
        async move { told }
    });
    (Consuming::start(consumer), heard)
}

async fn next<T>(heard: &mut UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, heard.recv()).await.expect("a handler is called").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_from_one_services_database_to_anothers_handler() {
    let stream = Stream::new("service").await;
    let database = OnSqlite::new().await;
    let bus = database.bus();
    stream.jetstream.forward(&bus, "to-nats", [OrderCreated::NAME]).unwrap();
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(7..8).await;
    bus.wake();

    let (consuming, mut heard) = listener(stream.consumer("mail"));
    let (order, received) = next(&mut heard).await;
    assert_eq!((order, received.source.as_str(), received.version, received.attempt), (7, "/shop", 1, 1));
    assert_eq!((received.event.as_str(), &*received.subscription), (OrderCreated::NAME, "mail"));
    assert!(received.time.is_some() && received.id.len() == 36);
    consuming.stop().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_gets_every_event_and_processes_of_one_name_share_them() {
    let stream = Stream::new("shares").await;
    let (first, mut heard) = listener(stream.consumer("mail"));
    let (second, mut also) = listener(stream.consumer("mail"));
    let (other, mut others) = listener(stream.consumer("stock"));
    for order in 0..100 {
        stream.publish_order(order).await;
    }
    for _ in 0..100 {
        next(&mut others).await;
    }
    let mut orders = Vec::new();
    while orders.len() < 100 {
        tokio::select! {
            (order, _) = next(&mut heard) => orders.push(order),
            (order, _) = next(&mut also) => orders.push(order),
        }
    }
    orders.sort_unstable();
    assert_eq!(orders, (0..100).collect::<Vec<_>>());
    for consuming in [first, second, other] {
        consuming.stop().await;
    }
    assert!(heard.try_recv().is_err() && also.try_recv().is_err() && others.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_comes_again_is_dead_and_can_be_redelivered() {
    let stream = Stream::new("failing").await;
    let (told, mut heard) = unbounded_channel();
    let broken = Arc::new(AtomicU32::new(1));
    let is_broken = Arc::clone(&broken);
    let consumer = stream.consumer("mail").handle(move |order: OrderCreated, received: Received| {
        told.send((order.order_id, received.attempt)).unwrap();
        let broken = is_broken.load(Ordering::Relaxed) == 1;
        async move { if broken { Err("no luck") } else { Ok(()) } }
    });
    let consuming = Consuming::start(consumer);
    stream.publish_order(4).await;
    for attempt in 1..=3 {
        assert_eq!(next(&mut heard).await, (4, attempt));
    }
    until("there is a dead letter", || async { !stream.jetstream.dead_letters(9).await.unwrap().is_empty() })
        .await;
    let dead = stream.jetstream.dead_letters(9).await.unwrap().remove(0);
    assert_eq!((dead.subscription.as_str(), dead.attempts, dead.error.as_str()), ("mail", 3, "no luck"));
    assert_eq!(dead.message, order(4));

    broken.store(0, Ordering::Relaxed);
    let (other, mut others) = listener(stream.consumer("stock"));
    next(&mut others).await;
    stream.jetstream.redeliver(dead.sequence).await.unwrap();
    assert_eq!(next(&mut heard).await, (4, 1));
    until("no dead letter is left", || async { stream.jetstream.dead_letters(9).await.unwrap().is_empty() })
        .await;
    let again = stream.jetstream.redeliver(dead.sequence).await;
    assert!(matches!(again, Err(Error::NoDeadLetter(_))), "{again:?}");
    consuming.stop().await;
    other.stop().await;
    assert!(others.try_recv().is_err(), "it was redelivered to its own consumer only");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_of_ours_is_a_dead_letter_or_passed_over() {
    let stream = Stream::new("strange").await;
    stream.publish(OrderCreated::NAME, "Dear diary".to_owned()).await;
    stream.publish(OrderCreated::NAME, order(1).replace("\"order_id\"", "\"number\"")).await;
    stream.publish("other", order(2).replace(OrderCreated::NAME, "other")).await;
    stream.publish_order(3).await;
    let (consuming, mut heard) = listener(stream.consumer("mail"));
    assert_eq!(next(&mut heard).await.0, 3);
    until("there are two dead letters", || async {
        stream.jetstream.dead_letters(9).await.unwrap().len() == 2
    })
    .await;
    let mut errors: Vec<String> =
        stream.jetstream.dead_letters(9).await.unwrap().into_iter().map(|dead| dead.error).collect();
    errors.sort();
    assert!(errors[0].starts_with("the data of version 1 does not decode"), "{errors:?}");
    assert!(errors[1].starts_with("the message is no CloudEvent"), "{errors:?}");
    consuming.stop().await;
    assert!(heard.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordered_consumer_waits_for_an_event_that_fails() {
    let stream = Stream::new("ordered").await;
    for order in 0..5 {
        stream.publish_order(order).await;
    }
    let (told, mut heard) = unbounded_channel();
    let consumer = |told: tokio::sync::mpsc::UnboundedSender<(i64, u32)>| {
        let config = ConsumeConfig { ordered: true, ..quick() };
        stream.jetstream.consume("mail").with_config(config).handle(
            move |order: OrderCreated, received: Received| {
                told.send((order.order_id, received.attempt)).unwrap();
                let fails = order.order_id == 1 && received.attempt < 3;
                async move { if fails { Err("not yet") } else { Ok(()) } }
            },
        )
    };
    let consuming = [Consuming::start(consumer(told.clone())), Consuming::start(consumer(told))];
    for expected in [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), (3, 1), (4, 1)] {
        assert_eq!(next(&mut heard).await, expected);
    }
    for consuming in consuming {
        consuming.stop().await;
    }
}

/// Handles orders in a transaction of the caller's on SQLite, with the inbox; fails after its commit where asked.
fn in_database(
    consumer: Consumer,
    database: &OnSqlite,
    fails: impl Fn(&Received) -> bool + Send + Sync + 'static,
) -> Consumer {
    let (bus, path) = (database.bus(), database.path());
    let fails = Arc::new(fails);
    consumer.handle(move |order: OrderCreated, received: Received| {
        let (bus, path, fails) = (bus.clone(), path.clone(), Arc::clone(&fails));
        async move {
            tokio::task::spawn_blocking(move || {
                let mut connection = rusqlite::Connection::open(path)?;
                connection.busy_timeout(PATIENCE)?;
                let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
                if bus.accept(&tx, &received)? {
                    let effect = "INSERT INTO effect (subscription, order_id) VALUES ('mail', ?1)";
                    tx.execute(effect, [order.order_id])?;
                }
                tx.commit()?;
                if fails(&received) {
                    return Err(BoxError::from("after the commit"));
                }
                Ok(())
            })
            .await?
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_makes_the_effects_of_copies_and_of_repeated_attempts_once() {
    let stream = Stream::new("once").await;
    let database = OnSqlite::new().await;
    for order in [1, 2, 1, 2, 1] {
        stream.publish_order(order).await;
    }
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let consumer = in_database(stream.consumer("mail"), &database, move |received| {
        counted.fetch_add(1, Ordering::Relaxed);
        received.attempt == 1
    });
    let consuming = Consuming::start(consumer);
    until("all were tried twice", || async { calls.load(Ordering::Relaxed) == 10 }).await;
    consuming.stop().await;
    assert_eq!(database.effects().await, 2);
    assert_eq!(database.count("SELECT count(*) FROM greenwave_event_inbox").await, 2);
}

/// Two copies at once, each in a transaction of its own: one waits for the other, and takes over if that rolls back.
#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_at_once_one_is_accepted_on_postgres() {
    let stream = Stream::new("copies").await;
    let database = crate::postgres::OnPostgres::new().await;
    let (bus, pool) = (database.bus(), database.pool.clone());
    for order in (0..50).flat_map(|order| [order, order, order]) {
        stream.publish_order(order).await;
    }
    let ended = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&ended);
    let config = ConsumeConfig { max_attempts: 100, ..quick() };
    let consumer = stream.jetstream.consume("mail").with_config(config).handle(
        move |order: OrderCreated, received: Received| {
            let (bus, pool, count) = (bus.clone(), pool.clone(), Arc::clone(&count));
            async move {
                let mut tx = pool.begin().await?;
                if bus.accept(&mut tx, &received).await? {
                    sqlx::query("INSERT INTO effect (subscription, order_id) VALUES ('mail', $1)")
                        .bind(order.order_id)
                        .execute(&mut *tx)
                        .await?;
                    // The first attempts roll back, and have noted nothing.
                    if received.attempt == 1 {
                        return Err("before the commit".into());
                    }
                }
                tx.commit().await?;
                count.fetch_add(1, Ordering::Relaxed);
                Ok::<(), BoxError>(())
            }
        },
    );
    let consuming = Consuming::start(consumer);
    until("all copies are handled", || async { ended.load(Ordering::Relaxed) == 150 }).await;
    consuming.stop().await;
    assert_eq!(database.effects().await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_forgets_what_is_over_its_time() {
    let stream = Stream::new("forgets").await;
    let database = OnSqlite::new().await;
    database
        .execute(
            "INSERT INTO greenwave_event_inbox (source, id, subscription, received_at)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
             SELECT '/old', i, 'mail', 1 FROM n",
        )
        .await;
    // Another consumer may remember for longer.
    database.execute("INSERT INTO greenwave_event_inbox VALUES ('/kept', '1', 'invoices', 0)").await;
    let consuming = Consuming::start(in_database(stream.consumer("mail"), &database, |_| false));
    let old = "SELECT count(*) FROM greenwave_event_inbox WHERE source = '/old'";
    let mut order = 0;
    until("the old are forgotten", || {
        order += 1;
        let (stream, database) = (&stream, &database);
        async move {
            stream.publish_order(order).await;
            database.count(old).await == 0
        }
    })
    .await;
    consuming.stop().await;
    let new = database.count("SELECT count(*) FROM greenwave_event_inbox WHERE subscription = 'mail'").await;
    assert_eq!(new, database.effects().await, "what is within its time stays");
    let others = database.count("SELECT count(*) FROM greenwave_event_inbox WHERE source = '/kept'").await;
    assert_eq!(others, 1, "what another consumer remembers stays");
}

/// Kills and starts the server in the middle of it: every event is handled, and its effect is made once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_server_is_killed_while_events_are_consumed() {
    const EVENTS: i64 = 1500;
    let mut server = tokio::task::spawn_blocking(Server::nats).await.unwrap();
    let stream = Stream::on(&server.url(), "killed").await;
    let (here, there) = (OnSqlite::new().await, OnSqlite::new().await);
    let bus = here.bus();
    stream.jetstream.forward(&bus, "to-nats", [OrderCreated::NAME]).unwrap();
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    let config = ConsumeConfig { max_attempts: 1000, ..quick() };
    let consumer = in_database(stream.jetstream.consume("mail").with_config(config), &there, |_| false);
    let consuming = Consuming::start(consumer);
    for round in 0..3 {
        here.publish_orders(round * 500..(round + 1) * 500).await;
        bus.wake();
        until("some have come", || async { there.effects().await > round * 300 }).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start();
            server
        })
        .await
        .unwrap();
    }
    until("all have come", || async { there.effects().await >= EVENTS }).await;
    consuming.stop().await;
    running.stop().await;
    assert_eq!(there.effects().await, EVENTS);
    assert_eq!(there.count("SELECT count(DISTINCT order_id) FROM effect").await, EVENTS);
    assert!(stream.jetstream.dead_letters(9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_consumer_that_cannot_work_says_so() {
    let stream = Stream::new("refuses").await;
    let run = |consumer: Consumer| consumer.run(CancellationToken::new());
    let handler = |_: OrderCreated, _: Received| async { Ok::<(), BoxError>(()) };
    let refused = run(stream.consumer("a.b").handle(handler)).await;
    assert!(matches!(refused, Err(Error::JetStream { .. })), "{refused:?}");
    let refused = run(stream.consumer("mail").handle(handler).handle(handler)).await;
    assert!(matches!(refused, Err(Error::DuplicateHandler { .. })), "{refused:?}");
    let config = ConsumeConfig { max_attempts: 0, ..quick() };
    let refused = run(stream.jetstream.consume("mail").with_config(config)).await.unwrap_err();
    assert_eq!(refused.to_string(), "`max_attempts` of the subscription `mail` must be at least 1");
    let defaults = serde_json::to_value(ConsumeConfig::default()).unwrap();
    let known: BTreeMap<String, serde_json::Value> = serde_json::from_value(defaults).unwrap();
    assert_eq!(known["remembered"], "7days");
}
