//! What holds for a bus in any database.

mod lifecycle;
mod log;
mod order;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use greenwave_events::{BoxError, Error, EventContext, SubscriptionConfig};
use tokio::sync::Barrier;

pub(crate) use self::{lifecycle::*, log::*, order::*};

use crate::harness::{Harness, Heard, OldOrderCreated, OrderCreated, Running, impatient, until, until_done};

/// Instantiates every case for a harness.
macro_rules! conformance {
    ($harness:ty) => {
        conformance! { $harness:
            a_committed_event_reaches_every_subscription_once
            a_rolled_back_event_reaches_nobody
            a_failing_subscription_does_not_hold_up_another
            a_failing_delivery_becomes_a_dead_letter_and_can_be_redelivered
            a_payload_that_does_not_decode_becomes_a_dead_letter_at_once
            a_panic_is_a_failed_attempt
            a_handler_that_takes_too_long_is_a_failed_attempt
            a_handler_that_fails_in_its_transaction_leaves_no_effect
            events_wait_for_a_registered_subscriber_that_is_down
            deliveries_stay_for_the_process_that_has_their_handler
            a_new_subscription_hears_of_what_is_published_from_then_on
            two_buses_share_the_work_without_double_effects
            a_late_completion_does_not_complete_the_next_attempt
            a_crash_in_every_attempt_ends_in_a_dead_letter
            a_delivery_that_never_began_has_had_no_attempt
            a_lease_is_renewed_while_its_handler_runs
            a_stop_waits_for_what_runs_and_gives_back_the_rest
            a_stop_gives_back_what_outlasts_the_grace
            waking_the_bus_spares_the_poll
            a_handler_may_be_added_while_the_bus_runs
            an_unregistered_subscription_is_gone_with_its_deliveries
            a_second_handler_for_the_same_is_refused
            settings_that_cannot_work_are_refused
            a_handler_with_bad_settings_does_not_disturb_a_bus_that_runs
            several_processes_may_migrate_at_once
            a_run_without_tables_is_an_error
            a_batch_is_one_call_and_one_transaction
            a_batch_that_fails_is_handled_one_by_one
            a_replay_delivers_again_from_a_position
            a_replay_finds_its_place_by_time
            a_new_subscription_may_start_from_the_beginning
            old_events_are_deleted_when_every_subscription_has_passed_them
            a_hard_limit_deletes_what_a_subscription_has_not_come_to
            events_of_one_key_are_handled_in_order_in_the_whole_fleet
            a_retry_holds_up_its_key_and_no_other
            order_outlives_the_process_that_kept_it
            what_waits_in_order_stays_behind_what_was_lost_before_it
            a_key_may_be_long
            an_event_of_an_older_version_is_upcast
            all_dead_letters_of_a_subscription_are_delivered_again
            an_event_without_a_handler_here_goes_to_the_process_that_has_one
            in_process_handlers_hear_of_what_was_committed
            a_batch_whose_process_died_has_its_effects_once
            what_an_older_release_left_is_delivered
            many_events_are_published_in_one_call_and_in_their_order
        }
    };
    ($harness:ty: $($case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                crate::conformance::$case::<$harness>().await;
            }
        )*
    };
}

pub(crate) async fn a_committed_event_reaches_every_subscription_once<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    let mut search = Heard::new();
    mail.subscribe(&bus, "mail");
    search.subscribe(&bus, "search");
    database.subscribe_effect(&bus, "stock");
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    database.publish_orders(0..50).await;
    until_done(&bus).await;

    running.stop().await;
    let orders: Vec<i64> = (0..50).collect();
    assert_eq!(mail.next_sorted(50).await, orders);
    assert_eq!(search.next_sorted(50).await, orders);
    assert_eq!((mail.rest(), search.rest()), (0, 0));
    assert_eq!(database.effects().await, 50);
    assert_eq!(database.count("SELECT count(DISTINCT order_id) FROM effect").await, 50);
}

pub(crate) async fn a_rolled_back_event_reaches_nobody<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    database.publish_and_roll_back(1).await;
    database.publish_orders(2..3).await;
    assert_eq!(mail.next().await, 2);
    until_done(&bus).await;

    running.stop().await;
    assert_eq!(mail.rest(), 0);
}

pub(crate) async fn a_failing_subscription_does_not_hold_up_another<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let endless = SubscriptionConfig { max_attempts: u32::MAX, concurrency: 1, ..impatient() };
    bus.subscribe_with("broken", endless, |_: OrderCreated, _| async { Err("always") });
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    for order in 0..5 {
        database.publish_orders(order..order + 1).await;
        assert_eq!(mail.next().await, order);
    }

    running.stop().await;
    let positions = bus.positions().await.unwrap();
    let retrying: Vec<_> = positions.iter().map(|lag| (lag.subscription.as_str(), lag.retrying)).collect();
    assert_eq!(retrying, [("broken", 5), ("mail", 0)]);
}

pub(crate) async fn a_failing_delivery_becomes_a_dead_letter_and_can_be_redelivered<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut attempts = Heard::new();
    let (sender, healed) = (attempts.sender(), Arc::new(AtomicBool::new(false)));
    let heal = healed.clone();
    bus.subscribe_with("mail", impatient(), move |_: OrderCreated, context: EventContext| {
        sender.send(context.attempt.into()).unwrap();
        let healed = healed.load(Ordering::Relaxed);
        async move { if healed { Ok(()) } else { Err("no route to the mail server") } }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(7..8).await;

    until("there is a dead letter", || async { bus.backlog().await.unwrap().dead == 1 }).await;
    assert_eq!(attempts.next_sorted(3).await, [1, 2, 3]);
    let dead = bus.dead_letters(Some("mail"), 10).await.unwrap();
    assert_eq!((dead[0].attempts, dead[0].event.as_str()), (3, "order-created"));
    assert_eq!(dead[0].error, "no route to the mail server");
    let errors: Vec<_> = dead[0].errors.iter().map(|e| (e.attempt, e.error.as_str(), e.at > 0)).collect();
    assert_eq!(errors, [1, 2, 3].map(|attempt| (attempt, "no route to the mail server", true)));
    assert_eq!(dead[0].payload, r#"{"order_id":7}"#);
    assert!(bus.dead_letters(Some("stock"), 10).await.unwrap().is_empty());

    heal.store(true, Ordering::Relaxed);
    bus.redeliver(dead[0].id).await.unwrap();
    until_done(&bus).await;
    assert_eq!(attempts.next().await, 1);
    assert!(matches!(bus.redeliver(dead[0].id).await, Err(Error::NoDeadLetter(_))));
    running.stop().await;
    assert_eq!((attempts.rest(), bus.backlog().await.unwrap().dead), (0, 0));
}

pub(crate) async fn a_payload_that_does_not_decode_becomes_a_dead_letter_at_once<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    bus.register().await.unwrap();

    database.publish(&[OldOrderCreated { number: "A7".to_owned() }]).await;
    database.publish_orders(1..2).await;
    until_done(&bus).await;

    running.stop().await;
    assert_eq!(mail.next_sorted(1).await, [1]);
    let dead = bus.dead_letters(None, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].attempts), (1, 1));
    assert!(dead[0].error.contains("missing field `order_id`"), "{}", dead[0].error);
}

pub(crate) async fn a_panic_is_a_failed_attempt<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    let sender = mail.sender();
    bus.subscribe_with("mail", impatient(), move |order: OrderCreated, context: EventContext| {
        let sender = sender.clone();
        async move {
            assert!(context.attempt > 1, "the first attempt is bad luck");
            sender.send(order.order_id)
        }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(1..2).await;
    assert_eq!(mail.next().await, 1);
    until_done(&bus).await;
    running.stop().await;
}

pub(crate) async fn a_handler_that_takes_too_long_is_a_failed_attempt<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let config = SubscriptionConfig { timeout: Duration::from_millis(20), max_attempts: 1, ..impatient() };
    bus.subscribe_with("mail", config, |_: OrderCreated, _| std::future::pending::<Result<(), BoxError>>());
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(1..2).await;
    until("there is a dead letter", || async { bus.backlog().await.unwrap().dead == 1 }).await;
    running.stop().await;
    assert_eq!(bus.dead_letters(None, 1).await.unwrap()[0].error, "the handler did not end within 20ms");
}

pub(crate) async fn a_handler_that_fails_in_its_transaction_leaves_no_effect<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    database.subscribe_effect(&bus, "stock");
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(-1..1).await;
    until("there is a dead letter", || async { bus.backlog().await.unwrap().dead == 1 }).await;
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(database.count("SELECT count(*) FROM effect WHERE order_id < 0").await, 0);
    assert_eq!(database.effects().await, 1);
}

pub(crate) async fn events_wait_for_a_registered_subscriber_that_is_down<H: Harness>() {
    let database = H::new().await;
    let publisher = database.bus();
    let mut mail = Heard::new();
    let bus = database.bus();
    mail.subscribe(&bus, "mail");
    bus.register().await.unwrap();
    drop(bus);

    let relaying = Running::start(&publisher);
    database.publish_orders(0..3).await;
    until("the outbox is empty", || async { publisher.backlog().await.unwrap().outbox == 0 }).await;
    relaying.stop().await;

    let bus = database.bus();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    assert_eq!(mail.next_sorted(3).await, [0, 1, 2]);
    until_done(&bus).await;
    running.stop().await;
}

pub(crate) async fn deliveries_stay_for_the_process_that_has_their_handler<H: Harness>() {
    let database = H::new().await;
    let (one, other) = (database.bus(), database.bus());
    let (mut mail, mut search) = (Heard::new(), Heard::new());
    mail.subscribe(&one, "mail");
    search.subscribe(&other, "search");
    other.register().await.unwrap();
    let running = Running::start(&one);
    one.register().await.unwrap();

    database.publish_orders(0..1).await;
    mail.next().await;
    until("one delivery is left", || async { one.backlog().await.unwrap().deliveries == 1 }).await;
    // Ten polls of a bus that could take what is not its own.
    database.publish_orders(1..10).await;
    mail.next_sorted(9).await;
    let positions = one.positions().await.unwrap();
    let taken: Vec<_> = positions.iter().map(|lag| (lag.subscription.as_str(), lag.position)).collect();
    assert_eq!(taken, [("mail", 10), ("search", 0)]);

    let other_running = Running::start(&other);
    assert_eq!(search.next_sorted(10).await, (0..10).collect::<Vec<_>>());
    until_done(&one).await;
    running.stop().await;
    other_running.stop().await;
}

pub(crate) async fn a_new_subscription_hears_of_what_is_published_from_then_on<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let running = Running::start(&bus);
    database.publish_orders(0..3).await;
    let logged = "SELECT count(*) FROM greenwave_event_log";
    until("they are in the log", || async { database.count(logged).await == 3 }).await;

    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    bus.register().await.unwrap();
    database.publish_orders(3..4).await;
    assert_eq!(mail.next().await, 3);
    running.stop().await;
    assert_eq!(mail.rest(), 0);
}

pub(crate) async fn two_buses_share_the_work_without_double_effects<H: Harness>() {
    let database = H::new().await;
    let mut mail = Heard::new();
    let both = Arc::new(Barrier::new(2));
    let buses = [database.bus(), database.bus()].map(|bus| {
        let (sender, both, first) = (mail.sender(), both.clone(), Arc::new(AtomicBool::new(true)));
        let one_by_one = SubscriptionConfig { concurrency: 1, max_claimed: 1, ..impatient() };
        bus.subscribe_with("mail", one_by_one, move |order: OrderCreated, _| {
            let (sender, both) = (sender.clone(), both.clone());
            let first = first.swap(false, Ordering::Relaxed);
            async move {
                // Each bus has one handler, so the barrier opens only when both have got work.
                if first {
                    both.wait().await;
                }
                sender.send(order.order_id)
            }
        });
        database.subscribe_effect(&bus, "stock");
        bus
    });
    let running = buses.each_ref().map(Running::start);
    buses[0].register().await.unwrap();

    database.publish_orders(0..200).await;
    until_done(&buses[0]).await;

    for running in running {
        running.stop().await;
    }
    assert_eq!(mail.next_sorted(200).await, (0..200).collect::<Vec<_>>());
    assert_eq!(mail.rest(), 0);
    assert_eq!(database.effects().await, 200);
    assert_eq!(database.count("SELECT count(DISTINCT order_id) FROM effect").await, 200);
}

/// For handlers that count their calls.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<AtomicU32>);

impl Calls {
    /// How many there were before this one.
    pub(crate) fn add(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}
