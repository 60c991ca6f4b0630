//! Order per key.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use greenwave_events::{BoxError, Event, EventContext, SubscriptionConfig};
use serde::{Deserialize, Serialize};

use crate::harness::{Gate, Harness, Heard, Running, impatient, until, until_done};

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
