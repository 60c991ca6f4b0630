//! The log: positions, replay, retention and batches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use greenwave_events::{BoxError, BusConfig, Error, Event, EventContext, Start, SubscriptionConfig};
use serde::{Deserialize, Serialize};

use super::Moved;
use crate::harness::{Harness, Heard, OrderCreated, Running, impatient, quick, until, until_done};

pub(crate) async fn a_batch_is_one_call_and_one_transaction<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut batches = Heard::new();
    database.subscribe_effects(&bus, "stock", batches.sender());
    bus.register().await.unwrap();
    database.publish_orders(0..300).await;
    let running = Running::start(&bus);
    until_done(&bus).await;
    running.stop().await;
    assert_eq!((batches.next().await, batches.rest()), (300, 0));
    assert_eq!(database.effects().await, 300);
}

pub(crate) async fn a_batch_that_fails_is_handled_one_by_one<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut batches = Heard::new();
    database.subscribe_effects(&bus, "stock", batches.sender());
    bus.register().await.unwrap();
    database.publish_orders(-1..20).await;
    let running = Running::start(&bus);
    until_done(&bus).await;
    running.stop().await;
    // All together, then each alone, and the one that fails as often as it may.
    assert_eq!((batches.next().await, batches.rest()), (21, 23));
    assert_eq!(database.effects().await, 20);
    let dead = bus.dead_letters(Some("stock"), 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].attempts, dead[0].error.as_str()), (1, 3, "a negative order"));
}

pub(crate) async fn a_replay_delivers_again_from_a_position<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..10).await;
    until_done(&bus).await;
    assert_eq!(mail.next_sorted(10).await, (0..10).collect::<Vec<_>>());

    // Positions have no gaps and begin with 1.
    assert_eq!(bus.replay("mail", Start::Position(8)).await.unwrap(), 8);
    until_done(&bus).await;
    assert_eq!(mail.next_sorted(3).await, [7, 8, 9]);
    bus.replay("mail", Start::Beginning).await.unwrap();
    until_done(&bus).await;
    assert_eq!(mail.next_sorted(10).await, (0..10).collect::<Vec<_>>());
    running.stop().await;

    // And ahead: what was passed over is not delivered.
    database.publish_orders(10..12).await;
    let running = Running::start(&database.bus());
    until("they are in the log", || async { bus.positions().await.unwrap()[0].behind == 2 }).await;
    running.stop().await;
    bus.replay("mail", Start::Now).await.unwrap();
    let running = Running::start(&bus);
    database.publish_orders(12..13).await;
    assert_eq!(mail.next().await, 12);
    running.stop().await;
    assert_eq!(mail.rest(), 0);
    assert!(
        matches!(bus.replay("nobody", Start::Now).await, Err(Error::NoSubscription(name)) if name == "nobody")
    );
}

pub(crate) async fn a_replay_finds_its_place_by_time<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    bus.register().await.unwrap();
    let running = Running::start(&bus);
    database.publish_orders(0..20).await;
    until_done(&bus).await;
    mail.next_sorted(20).await;
    // An hour apart from one another, the last one now.
    database.execute(H::SPREAD).await;
    let hours =
        |hours: u64| Start::Time(std::time::SystemTime::now() - Duration::from_secs(hours * 3600 + 1800));
    for (ago, first) in [(5, 14), (0, 19), (100, 0)] {
        bus.replay("mail", hours(ago)).await.unwrap();
        until_done(&bus).await;
        assert_eq!(mail.next_sorted(20 - first as usize).await, (first..20).collect::<Vec<_>>());
    }
    running.stop().await;
    assert_eq!(mail.rest(), 0);
}

pub(crate) async fn a_new_subscription_may_start_from_the_beginning<H: Harness>() {
    let database = H::new().await;
    let relaying = Running::start(&database.bus());
    database.publish_orders(0..5).await;
    let logged = "SELECT count(*) FROM greenwave_event_log";
    until("they are in the log", || async { database.count(logged).await == 5 }).await;
    relaying.stop().await;

    let bus = database.bus();
    let mut heard = Heard::new();
    let sender = heard.sender();
    let config = SubscriptionConfig { start: Start::Beginning, ..impatient() };
    bus.subscribe_with("search", config, move |order: OrderCreated, context: EventContext| {
        let told = sender.send(order.order_id * 100 + context.position.unwrap() as i64);
        async move { told }
    });
    let running = Running::start(&bus);
    assert_eq!(heard.next_sorted(5).await, [1, 102, 203, 304, 405]);
    running.stop().await;
    // Only a new one: at the next start it goes on where it was.
    let again = Running::start(&bus);
    database.publish_orders(5..6).await;
    assert_eq!(heard.next().await, 506);
    until_done(&bus).await;
    again.stop().await;
    assert_eq!(heard.rest(), 0);
}

pub(crate) async fn old_events_are_deleted_when_every_subscription_has_passed_them<H: Harness>() {
    let database = H::new().await;
    let old = Duration::from_millis(50);
    let bus = database.bus().with_config(BusConfig { retention: old, ..quick() });
    let waiting = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    Heard::new().subscribe(&waiting, "waiting");
    bus.register().await.unwrap();
    waiting.register().await.unwrap();
    let running = Running::start(&bus);
    database.publish_orders(0..10).await;
    mail.next_sorted(10).await;
    tokio::time::sleep(4 * old).await;
    let kept = "SELECT count(*) FROM greenwave_event_log";
    assert_eq!(database.count(kept).await, 10, "a subscription has not come to them");

    waiting.unregister("waiting").await.unwrap();
    until("they are deleted", || async { database.count(kept).await == 0 }).await;
    // Positions go on where they were.
    database.publish_orders(10..11).await;
    assert_eq!(mail.next().await, 10);
    assert_eq!(bus.positions().await.unwrap()[0].position, 11);
    running.stop().await;
}

pub(crate) async fn a_hard_limit_deletes_what_a_subscription_has_not_come_to<H: Harness>() {
    let database = H::new().await;
    let waiting = database.bus();
    let mut heard = Heard::new();
    heard.subscribe(&waiting, "waiting");
    waiting.register().await.unwrap();
    let old = Duration::from_millis(50);
    let config = BusConfig { retention: old, max_retention: Some(old), ..quick() };
    let deleting = Running::start(&database.bus().with_config(config));
    database.publish_orders(0..10).await;
    let kept =
        "SELECT (SELECT count(*) FROM greenwave_event_log) + (SELECT count(*) FROM greenwave_event_outbox)";
    until("they are deleted", || async { database.count(kept).await == 0 }).await;
    deleting.stop().await;
    let running = Running::start(&waiting);
    database.publish_orders(10..11).await;
    assert_eq!(heard.next().await, 10);
    running.stop().await;
    assert_eq!(heard.rest(), 0);
}

#[derive(Debug, Deserialize, Serialize)]
struct Renamed {
    number: i64,
}

impl Event for Renamed {
    const NAME: &'static str = "order-created";
    const VERSION: u32 = 2;

    fn upcast(version: u32, payload: serde_json::Value) -> Result<Renamed, BoxError> {
        match version {
            1 => Ok(Renamed { number: serde_json::from_value::<OrderCreated>(payload)?.order_id }),
            other => Err(format!("no version {other} was ever published").into()),
        }
    }
}

pub(crate) async fn an_event_of_an_older_version_is_upcast<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    let sender = heard.sender();
    bus.subscribe("mail", move |event: Renamed| {
        let told = sender.send(event.number);
        async move { told }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(4..5).await;
    database.publish(&[Renamed { number: 5 }]).await;
    assert_eq!(heard.next_sorted(2).await, [4, 5]);
    running.stop().await;
}

pub(crate) async fn all_dead_letters_of_a_subscription_are_delivered_again<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let healed = Arc::new(AtomicBool::new(false));
    let heal = healed.clone();
    bus.subscribe_with(
        "mail",
        SubscriptionConfig { max_attempts: 1, ..impatient() },
        move |_: OrderCreated, _| {
            let healed = healed.load(Ordering::SeqCst);
            async move { if healed { Ok(()) } else { Err("broken") } }
        },
    );
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..5).await;
    until("all are dead", || async { bus.backlog().await.unwrap().dead == 5 }).await;
    heal.store(true, Ordering::SeqCst);
    assert_eq!(bus.redeliver_all("stock").await.unwrap(), 0);
    assert_eq!(bus.redeliver_all("mail").await.unwrap(), 5);
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(bus.backlog().await.unwrap().dead, 0);
}

/// Half a subscription's events have a handler in one process, half in another.
pub(crate) async fn an_event_without_a_handler_here_goes_to_the_process_that_has_one<H: Harness>() {
    let database = H::new().await;
    let (one, other) = (database.bus(), database.bus());
    let mut heard = Heard::new();
    heard.subscribe(&one, "both");
    let sender = heard.sender();
    other.subscribe("both", move |moved: Moved| {
        let told = sender.send(-moved.step);
        async move { told }
    });
    one.register().await.unwrap();
    other.register().await.unwrap();
    database.publish_orders(1..4).await;
    database.publish(&(1..4).map(|step| Moved { parcel: 0, step }).collect::<Vec<_>>()).await;
    let running = [Running::start(&one), Running::start(&other)];
    assert_eq!(heard.next_sorted(6).await, [-3, -2, -1, 1, 2, 3]);
    until_done(&one).await;
    for running in running {
        running.stop().await;
    }
    assert_eq!(heard.rest(), 0);
}

pub(crate) async fn in_process_handlers_hear_of_what_was_committed<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    bus.on(|_: Arc<OrderCreated>| -> std::future::Ready<Result<(), BoxError>> { panic!("at once") });
    bus.on(|_: Arc<OrderCreated>| async { Err::<(), _>("never") });
    let sender = heard.sender();
    bus.on(move |order: Arc<OrderCreated>| {
        let told = sender.send(order.order_id);
        async move { told }
    });
    bus.committed(Moved { parcel: 1, step: 1 });
    bus.committed(OrderCreated { order_id: 7 });
    bus.committed(OrderCreated { order_id: 8 });
    assert_eq!(heard.next_sorted(2).await, [7, 8]);
    assert_eq!(heard.rest(), 0);
}

pub(crate) async fn many_events_are_published_in_one_call_and_in_their_order<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    let sender = heard.sender();
    let one_by_one = SubscriptionConfig { concurrency: 1, ..impatient() };
    bus.subscribe_with("mail", one_by_one, move |order: OrderCreated, _| {
        let told = sender.send(order.order_id);
        async move { told }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    let orders: Vec<OrderCreated> = (0..50).rev().map(|order_id| OrderCreated { order_id }).collect();
    database.publish_many(&orders).await;
    for order_id in (0..50).rev() {
        assert_eq!(heard.next().await, order_id);
    }
    running.stop().await;
}

/// Undelivered deliveries of a release that had no log, one of them leased and one to be tried again, and an event that
/// was still in the outbox.
pub(crate) async fn what_an_older_release_left_is_delivered<H: Harness>() {
    let database = H::empty().await;
    database.migrate_to_first().await;
    let applied = "CREATE TABLE greenwave_event_migration (version bigint PRIMARY KEY, applied_at text)";
    database.execute(applied).await;
    database.execute("INSERT INTO greenwave_event_migration (version) VALUES (1)").await;
    database
        .execute("INSERT INTO greenwave_event_subscription (name, event) VALUES ('mail', 'order-created')")
        .await;
    let id = "'01890000-0000-7000-8000-000000000001'";
    let now = H::PAST;
    for (order, due, lease) in [(1, "NULL", "NULL"), (2, now, "NULL"), (3, now, "77")] {
        let row =
            format!("'mail', 'order-created', {id}, 1, '{{\"order_id\": {order}}}', {now}, {due}, {lease}");
        database
            .execute(&format!(
                "INSERT INTO greenwave_event_delivery
                     (subscription, event, event_id, version, payload, published_at, due_at, lease_id)
                 VALUES ({row})"
            ))
            .await;
    }
    let waiting = format!(
        "INSERT INTO greenwave_event_outbox (id, event, version, payload)
         VALUES ({id}, 'order-created', 1, '{{\"order_id\": 4}}')"
    );
    database.execute(&waiting).await;

    let bus = database.bus();
    bus.migrate().await.unwrap();
    assert_eq!(bus.backlog().await.unwrap().deliveries, 3);
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    assert_eq!(mail.next_sorted(4).await, [1, 2, 3, 4]);
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(mail.rest(), 0);
}

/// A handler that dies with its process in the middle of a batch leaves no effect, and has it once in the end.
pub(crate) async fn a_batch_whose_process_died_has_its_effects_once<H: Harness>() {
    let database = H::new().await;
    let mut batches = Heard::new();
    let dying = database.bus();
    database.subscribe_effects(&dying, "stock", batches.sender());
    dying.register().await.unwrap();
    database.publish_orders(0..200).await;
    for milliseconds in [3, 6, 12, 24] {
        let running = Running::start(&dying);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        running.task.abort();
        let _ = running.task.await;
        database.expire_leases().await;
    }
    let living = database.bus();
    database.subscribe_effects(&living, "stock", batches.sender());
    let running = Running::start(&living);
    until_done(&living).await;
    running.stop().await;
    assert!(batches.next().await > 0);
    assert_eq!(database.effects().await, 200);
    assert_eq!(database.count("SELECT count(DISTINCT order_id) FROM effect").await, 200);
}
