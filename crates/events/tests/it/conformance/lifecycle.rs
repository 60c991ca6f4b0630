//! Leases, stops and starts.

use std::time::Duration;

use greenwave_events::{BoxError, Bus, BusConfig, Error, EventContext, SubscriptionConfig};

use crate::{
    conformance::Calls,
    harness::{Gate, Harness, Heard, OrderCreated, Running, impatient, quick, until, until_done},
};

pub(crate) async fn a_late_completion_does_not_complete_the_next_attempt<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut heard = Heard::new();
    let (calls, gates) = (Calls::default(), [Gate::closed(), Gate::closed()]);
    let (sender, handler_gates) = (heard.sender(), gates.clone());
    bus.subscribe_with("mail", impatient(), move |order: OrderCreated, _| {
        let (sender, gates) = (sender.clone(), handler_gates.clone());
        let call = if order.order_id == 0 { Some(calls.add()) } else { None };
        async move {
            sender.send(order.order_id)?;
            if let Some(call) = call {
                gates[call as usize].pass().await;
            }
            Ok::<(), BoxError>(())
        }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    assert_eq!(heard.next().await, 0);
    database.expire_leases().await;
    assert_eq!(heard.next().await, 0);

    // The first attempt ends, overtaken. Another event is settled after it, so by then its fate is known.
    gates[0].let_pass(1);
    database.publish_orders(1..2).await;
    assert_eq!(heard.next().await, 1);
    let ranges = "SELECT count(*) FROM greenwave_event_range";
    until("the other event is settled", || async { database.count(ranges).await == 0 }).await;
    let held = "SELECT count(*) FROM greenwave_event_delivery WHERE attempt = 1 AND lease_id IS NOT NULL";
    assert_eq!(database.count(held).await, 1);

    gates[1].let_pass(1);
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(heard.rest(), 0);
}

/// The first process has it with others in a range, where attempts are not counted; from then on they are.
pub(crate) async fn a_crash_in_every_attempt_ends_in_a_dead_letter<H: Harness>() {
    let database = H::new().await;
    let mut attempts = Heard::new();
    for attempt in [1, 1, 2, 3, 0] {
        let bus = database.bus();
        let sender = attempts.sender();
        bus.subscribe_with("mail", impatient(), move |_: OrderCreated, context: EventContext| {
            sender.send(context.attempt.into()).unwrap();
            std::future::pending::<Result<(), BoxError>>()
        });
        bus.register().await.unwrap();
        let running = Running::start(&bus);
        if bus.positions().await.unwrap()[0].position == 0 {
            database.publish_orders(0..1).await;
        }
        if attempt == 0 {
            until("there is a dead letter", || async { bus.backlog().await.unwrap().dead == 1 }).await;
            running.stop().await;
            break;
        }
        assert_eq!(attempts.next().await, attempt);
        // Dropped in mid-handler, as a killed process would leave it.
        running.task.abort();
        assert!(running.task.await.unwrap_err().is_cancelled());
        database.expire_leases().await;
    }
    assert_eq!(attempts.rest(), 0);
    let dead = database.bus().dead_letters(None, 1).await.unwrap();
    assert!(dead[0].error.contains("the process died or lost its lease"), "{}", dead[0].error);
}

/// Four processes die of one event. Others that they had leased beside it never began, and once were buried with it.
pub(crate) async fn a_delivery_that_never_began_has_had_no_attempt<H: Harness>() {
    let database = H::new().await;
    let one_by_one = SubscriptionConfig { concurrency: 1, ..impatient() };
    let mut attempts = Heard::new();
    for attempt in [1, 1, 2, 3, 0] {
        let bus = database.bus();
        let sender = attempts.sender();
        bus.subscribe_with(
            "mail",
            one_by_one.clone(),
            move |order: OrderCreated, context: EventContext| {
                sender.send(context.attempt.into()).unwrap();
                async move { if order.order_id == 0 { std::future::pending().await } else { Ok::<(), Error>(()) } }
            },
        );
        bus.register().await.unwrap();
        let running = Running::start(&bus);
        if bus.positions().await.unwrap()[0].position == 0 {
            database.publish_orders(0..3).await;
        }
        if attempt == 0 {
            until_done(&bus).await;
            running.stop().await;
            break;
        }
        assert_eq!(attempts.next().await, attempt);
        running.task.abort();
        assert!(running.task.await.unwrap_err().is_cancelled());
        database.expire_leases().await;
    }
    assert_eq!(attempts.next_sorted(2).await, [1, 1]);
    let dead = database.bus().dead_letters(None, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].payload.as_str(), dead[0].attempts), (1, r#"{"order_id":0}"#, 3));
}

pub(crate) async fn a_lease_is_renewed_while_its_handler_runs<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus().with_config(BusConfig { lease: Duration::from_secs(3), ..quick() });
    let mut mail = Heard::new();
    let (gate, sender) = (Gate::closed(), mail.sender());
    let handler_gate = gate.clone();
    bus.subscribe("mail", move |order: OrderCreated| {
        let (sender, gate) = (sender.clone(), handler_gate.clone());
        async move {
            sender.send(order.order_id)?;
            gate.pass().await;
            Ok::<(), BoxError>(())
        }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    mail.next().await;

    // As if most of the lease had passed: the next renewal must take it up again.
    database.execute("CREATE TABLE seen AS SELECT lease_until FROM greenwave_event_range").await;
    let renewed = "SELECT count(*) FROM greenwave_event_range r JOIN seen s ON r.lease_until > s.lease_until";
    for _ in 0..2 {
        until("the lease is renewed", || async { database.count(renewed).await == 1 }).await;
        database.execute("DELETE FROM seen").await;
        database.execute("INSERT INTO seen SELECT lease_until FROM greenwave_event_range").await;
    }
    gate.let_pass(1);
    until_done(&bus).await;
    running.stop().await;
    assert_eq!(mail.rest(), 0);
}

pub(crate) async fn a_stop_waits_for_what_runs_and_gives_back_the_rest<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    let (gate, sender) = (Gate::closed(), mail.sender());
    let handler_gate = gate.clone();
    let one_by_one = SubscriptionConfig { concurrency: 1, ..impatient() };
    bus.subscribe_with("mail", one_by_one, move |order: OrderCreated, _| {
        let (sender, gate) = (sender.clone(), handler_gate.clone());
        async move {
            sender.send(order.order_id)?;
            gate.pass().await;
            Ok::<(), BoxError>(())
        }
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..3).await;
    assert_eq!(mail.next().await, 0);

    running.cancel.cancel();
    let given_back = "SELECT count(*) FROM greenwave_event_delivery WHERE lease_id IS NULL AND due_at IS NULL AND attempt = 0";
    until("the others are given back", || async { database.count(given_back).await == 2 }).await;
    assert!(!running.task.is_finished());
    gate.let_pass(1);
    running.stop().await;
    assert_eq!((mail.rest(), bus.backlog().await.unwrap().deliveries), (0, 2));
    assert_eq!(database.count(given_back).await, 2);
}

pub(crate) async fn a_stop_gives_back_what_outlasts_the_grace<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus().with_config(BusConfig { grace: Duration::from_millis(20), ..quick() });
    let mut mail = Heard::new();
    let sender = mail.sender();
    bus.subscribe("mail", move |order: OrderCreated| {
        sender.send(order.order_id).unwrap();
        std::future::pending::<Result<(), BoxError>>()
    });
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    mail.next().await;
    running.stop().await;
    let given_back = "SELECT count(*) FROM greenwave_event_delivery WHERE lease_id IS NULL AND due_at IS NULL AND attempt = 0";
    assert_eq!(database.count(given_back).await, 1);
}

pub(crate) async fn waking_the_bus_spares_the_poll<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus().with_config(BusConfig { poll_interval: Duration::from_secs(3600), ..quick() });
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    let running = Running::start(&bus);
    assert_eq!(mail.next().await, 0);
    for order in 1..4 {
        database.publish_orders(order..order + 1).await;
        bus.wake();
        assert_eq!(mail.next().await, order);
    }
    running.stop().await;
}

pub(crate) async fn a_handler_may_be_added_while_the_bus_runs<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    let mut search = Heard::new();
    mail.subscribe(&bus, "mail");
    let running = Running::start(&bus);
    bus.register().await.unwrap();
    database.publish_orders(0..1).await;
    mail.next().await;
    search.subscribe(&bus, "search");
    let registered = "SELECT count(*) FROM greenwave_event_subscription";
    until("it is registered", || async { database.count(registered).await == 2 }).await;
    database.publish_orders(1..2).await;
    assert_eq!(search.next().await, 1);
    running.stop().await;
}

pub(crate) async fn an_unregistered_subscription_is_gone_with_its_deliveries<H: Harness>() {
    let database = H::new().await;
    let old = database.bus();
    Heard::new().subscribe(&old, "old");
    old.register().await.unwrap();
    let relaying = database.bus();
    let running = Running::start(&relaying);
    database.publish_orders(0..3).await;
    until("they wait", || async { relaying.backlog().await.unwrap().deliveries == 3 }).await;
    assert_eq!(relaying.unregister("old").await.unwrap(), 3);
    database.publish_orders(3..4).await;
    until_done(&relaying).await;
    running.stop().await;
}

pub(crate) async fn a_second_handler_for_the_same_is_refused<H: Harness>() {
    let database = H::new().await;
    let bus: Bus<H::Backend> = database.bus();
    Heard::new().subscribe(&bus, "mail");
    bus.register().await.unwrap();
    Heard::new().subscribe(&bus, "mail");
    let refused = bus.run(Default::default()).await.unwrap_err();
    assert_eq!(refused.to_string(), "the subscription `mail` has two handlers for `order-created`");
}

pub(crate) async fn settings_that_cannot_work_are_refused<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus().with_config(BusConfig { grace: Duration::MAX, ..quick() });
    let refused = bus.run(Default::default()).await.unwrap_err();
    assert_eq!(refused.to_string(), "`grace` must be at most a year");

    let bus = database.bus();
    let never = SubscriptionConfig { timeout: Duration::ZERO, ..impatient() };
    bus.subscribe_with("mail", never, |_: OrderCreated, _| async { Ok::<(), BoxError>(()) });
    let refused = [bus.register().await.unwrap_err(), bus.run(Default::default()).await.unwrap_err()];
    for refused in refused {
        assert_eq!(refused.to_string(), "`timeout` of the subscription `mail` must be more than zero");
    }
}

pub(crate) async fn a_handler_with_bad_settings_does_not_disturb_a_bus_that_runs<H: Harness>() {
    let database = H::new().await;
    let bus = database.bus();
    let mut mail = Heard::new();
    mail.subscribe(&bus, "mail");
    bus.register().await.unwrap();
    let running = Running::start(&bus);
    database.publish_orders(0..1).await;
    assert_eq!(mail.next().await, 0);

    let endless = SubscriptionConfig { max_claimed: u32::MAX, ..impatient() };
    bus.subscribe_with("search", endless, |_: OrderCreated, _| async { Ok::<(), BoxError>(()) });
    database.publish_orders(1..2).await;
    assert_eq!(mail.next().await, 1);
    until_done(&bus).await;
    running.stop().await;
}

pub(crate) async fn several_processes_may_migrate_at_once<H: Harness>() {
    let database = H::empty().await;
    let buses = [database.bus(), database.bus(), database.bus()];
    let (one, two, three) = tokio::join!(buses[0].migrate(), buses[1].migrate(), buses[2].migrate());
    one.and(two).and(three).unwrap();
    let twice = "SELECT count(*) - max(version) FROM greenwave_event_migration";
    assert_eq!(database.count(twice).await, 0);
}

pub(crate) async fn a_run_without_tables_is_an_error<H: Harness>() {
    let database = H::empty().await;
    let bus = database.bus();
    Heard::new().subscribe(&bus, "mail");
    let error = bus.run(Default::default()).await.unwrap_err();
    assert!(matches!(error, Error::Store { doing: "register subscriptions", .. }), "{error:?}");
}
