//! The log: positions, replay, retention, batches and order.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use greenwave_events::{BoxError, BusConfig, Error, Event, EventContext, Start, SubscriptionConfig};
use serde::{Deserialize, Serialize};

use crate::harness::{Gate, Harness, Heard, OrderCreated, Running, impatient, quick, until, until_done};

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

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Moved {
    pub(crate) parcel: i64,
    pub(crate) step: i64,
}

impl Event for Moved {
    const NAME: &'static str = "moved";

    fn key(&self) -> Option<String> {
        Some(self.parcel.to_string())
    }
}

/// Three processes, handlers that fail at random, and one of the processes dies.
pub(crate) async fn events_of_one_key_are_handled_in_order_in_the_whole_fleet<H: Harness>() {
    const PARCELS: i64 = 10;
    const STEPS: i64 = 30;
    let database = H::new().await;
    let seen: Arc<Mutex<HashMap<i64, Vec<i64>>>> = Arc::default();
    let running_now: Arc<Mutex<HashMap<i64, u32>>> = Arc::default();
    let buses = [database.bus(), database.bus(), database.bus()].map(|bus| {
        let (seen, running_now) = (seen.clone(), running_now.clone());
        let config = SubscriptionConfig { ordered: true, max_attempts: 1000, max_claimed: 40, ..impatient() };
        bus.subscribe_with("tracking", config, move |moved: Moved, context: EventContext| {
            let (seen, running_now) = (seen.clone(), running_now.clone());
            async move {
                *running_now.lock().unwrap().entry(moved.parcel).or_default() += 1;
                tokio::task::yield_now().await;
                let together = {
                    let mut running = running_now.lock().unwrap();
                    let together = running[&moved.parcel];
                    *running.get_mut(&moved.parcel).unwrap() -= 1;
                    together
                };
                assert_eq!(together, 1, "two events of a parcel at once");
                if context.attempt == 1 && (moved.parcel + moved.step) % 7 == 0 {
                    return Err("a bad day");
                }
                seen.lock().unwrap().entry(moved.parcel).or_default().push(moved.step);
                Ok(())
            }
        });
        bus
    });
    buses[0].register().await.unwrap();
    let running = buses.each_ref().map(Running::start);
    for step in 0..STEPS {
        let moves: Vec<Moved> = (0..PARCELS).map(|parcel| Moved { parcel, step }).collect();
        database.publish(&moves).await;
        buses[step as usize % 3].wake();
    }
    until_done(&buses[0]).await;
    for running in running {
        running.stop().await;
    }
    let seen = seen.lock().unwrap().clone();
    for parcel in 0..PARCELS {
        assert_eq!(seen[&parcel], (0..STEPS).collect::<Vec<_>>(), "parcel {parcel}");
    }
    assert!(buses[0].dead_letters(None, 1).await.unwrap().is_empty());
}

pub(crate) async fn a_retry_holds_up_its_key_and_no_other<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    let (sender, healed) = (heard.sender(), Arc::new(AtomicBool::new(false)));
    let heal = healed.clone();
    let config = SubscriptionConfig { ordered: true, max_attempts: u32::MAX, ..impatient() };
    bus.subscribe_with("tracking", config, move |moved: Moved, _| {
        let broken = moved.parcel == 0 && moved.step == 0 && !healed.load(Ordering::SeqCst);
        let told = if broken { Err(BoxError::from("broken")) } else { Ok(()) };
        if !broken {
            sender.send(moved.parcel * 100 + moved.step).unwrap();
        }
        async move { told }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    for step in 0..3 {
        database.publish(&[Moved { parcel: 0, step }, Moved { parcel: 1, step }]).await;
        assert_eq!(heard.next().await, 100 + step);
    }
    assert_eq!(heard.rest(), 0);
    heal.store(true, Ordering::SeqCst);
    for step in 0..3 {
        assert_eq!(heard.next().await, step);
    }
    until_done(&bus).await;
    running.stop().await;
}

/// What a killed process held of a key comes before what another process takes of it.
pub(crate) async fn order_outlives_the_process_that_kept_it<H: Harness>() {
    let database = H::new().await;
    let mut heard = Heard::new();
    let ordered = SubscriptionConfig { ordered: true, ..impatient() };
    let dying = database.bus();
    let (sender, gate) = (heard.sender(), Gate::closed());
    dying.subscribe_with("tracking", ordered.clone(), move |moved: Moved, _| {
        sender.send(moved.step).unwrap();
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok::<(), BoxError>(())
        }
    });
    dying.register().await.unwrap();
    let running = Running::start(&dying);
    database.publish(&[Moved { parcel: 0, step: 0 }, Moved { parcel: 0, step: 1 }]).await;
    assert_eq!(heard.next().await, 0);
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());

    let living = database.bus();
    let sender = heard.sender();
    living.subscribe_with("tracking", ordered, move |moved: Moved, _| {
        let told = sender.send(moved.step);
        async move { told }
    });
    let running = Running::start(&living);
    database.publish(&[Moved { parcel: 0, step: 2 }, Moved { parcel: 0, step: 3 }]).await;
    until("they are in the log", || async {
        let positions = living.positions().await.unwrap();
        positions[0].behind == 2 && living.backlog().await.unwrap().outbox == 0
    })
    .await;
    assert_eq!(heard.rest(), 0, "nobody may go on while the first one's lease lasts");
    database.expire_leases().await;
    for step in 0..4 {
        assert_eq!(heard.next().await, step);
    }
    until_done(&living).await;
    running.stop().await;
}

/// The first range's lease is lost while the second one's lasts.
pub(crate) async fn what_waits_in_order_stays_behind_what_was_lost_before_it<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    let (sender, gate) = (heard.sender(), Gate::closed());
    let handler_gate = gate.clone();
    let ordered = SubscriptionConfig { ordered: true, ..impatient() };
    bus.subscribe_with("tracking", ordered, move |moved: Moved, _| {
        sender.send(moved.step).unwrap();
        let gate = handler_gate.clone();
        async move {
            gate.pass().await;
            Ok::<(), BoxError>(())
        }
    });
    bus.register().await.unwrap();
    let running = Running::start(&bus);
    database.publish(&[Moved { parcel: 0, step: 0 }]).await;
    assert_eq!(heard.next().await, 0);
    database.publish(&[Moved { parcel: 0, step: 1 }]).await;
    let ranges = "SELECT count(*) FROM greenwave_event_range";
    until("the second range is taken", || async { database.count(ranges).await == 2 }).await;

    let past = H::PAST;
    database.execute(&format!("UPDATE greenwave_event_range SET lease_until = {past} WHERE first = 1")).await;
    until("the first range is lost", || async { database.count(ranges).await == 1 }).await;
    gate.let_pass(3);
    assert_eq!([heard.next().await, heard.next().await], [0, 1], "the first again, then the second");
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(heard.rest(), 0);
}

#[derive(Debug, Deserialize, Serialize)]
struct Long;

impl Event for Long {
    const NAME: &'static str = "long";

    /// Longer than an entry of an index may be, and hard to compress.
    fn key(&self) -> Option<String> {
        Some((1..1000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect())
    }
}

pub(crate) async fn a_key_may_be_long<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    let sender = heard.sender();
    let ordered = SubscriptionConfig { ordered: true, ..impatient() };
    bus.subscribe_with("tracking", ordered, move |_: Long, context: EventContext| {
        sender.send(context.attempt.into()).unwrap();
        async move { if context.attempt == 1 { Err("a bad day") } else { Ok(()) } }
    });
    bus.register().await.unwrap();
    let running = Running::start(&bus);
    database.publish(&[Long]).await;
    assert_eq!([heard.next().await, heard.next().await], [1, 2]);
    until_done(&bus).await;
    running.stop().await;
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
