use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use greenwave_events::{Backend, BoxError, Bus, BusConfig, Error, Event, SubscriptionConfig};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{
        Semaphore,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// When a test that still waits has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct OrderCreated {
    pub(crate) order_id: i64,
}

impl Event for OrderCreated {
    const NAME: &'static str = "order-created";
}

/// The same event as an older release knew it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct OldOrderCreated {
    pub(crate) number: String,
}

impl Event for OldOrderCreated {
    const NAME: &'static str = "order-created";
}

/// One database, and what a test does to it beside the bus.
pub(crate) trait Harness: Sized {
    type Backend: Backend;

    /// A time that has passed, in SQL.
    const PAST: &'static str;

    /// Moves the events in the log back in time: the last by no time, the one before by an hour, and so on.
    const SPREAD: &'static str;

    /// A database that has a table `effect (subscription, order_id)` and none of ours.
    async fn empty() -> Self;

    /// One more bus on the database, as another process would have it.
    fn bus(&self) -> Bus<Self::Backend>;

    /// Publishes orders in one transaction, and commits it. Wakes nobody.
    async fn publish<E: Event>(&self, events: &[E]);

    /// Publishes an order in a transaction that is rolled back.
    async fn publish_and_roll_back(&self, order_id: i64);

    /// Subscribes a handler that inserts an effect in its transaction, and fails after that for negative orders.
    fn subscribe_effect(&self, bus: &Bus<Self::Backend>, name: &'static str);

    /// Subscribes a handler of batches that inserts their effects with one statement each, tells how many there were,
    /// and fails for negative orders.
    fn subscribe_effects(&self, bus: &Bus<Self::Backend>, name: &'static str, told: UnboundedSender<i64>);

    /// Publishes events in one call, and commits it.
    async fn publish_many(&self, orders: &[OrderCreated]);

    /// Creates the tables of the release that had no log.
    async fn migrate_to_first(&self);

    async fn execute(&self, sql: &str);

    async fn count(&self, sql: &str) -> i64;

    async fn new() -> Self {
        let harness = Self::empty().await;
        harness.bus().migrate().await.unwrap();
        harness
    }

    async fn publish_orders(&self, orders: Range<i64>) {
        let orders: Vec<OrderCreated> = orders.map(|order_id| OrderCreated { order_id }).collect();
        self.publish(&orders).await;
    }

    /// Ends every lease, as if its holder had hung for long.
    async fn expire_leases(&self) {
        let past = Self::PAST;
        self.execute(&format!(
            "UPDATE greenwave_event_delivery SET due_at = {past} WHERE lease_id IS NOT NULL"
        ))
        .await;
        self.execute(&format!("UPDATE greenwave_event_range SET lease_until = {past}")).await;
    }

    async fn effects(&self) -> i64 {
        self.count("SELECT count(*) FROM effect").await
    }
}

/// Short waits, so that tests are short.
pub(crate) fn quick() -> BusConfig {
    BusConfig {
        poll_interval: Duration::from_millis(20),
        batch_interval: Duration::ZERO,
        subscription: impatient(),
        ..Default::default()
    }
}

pub(crate) fn impatient() -> SubscriptionConfig {
    SubscriptionConfig {
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        max_attempts: 3,
        ..Default::default()
    }
}

/// A bus that runs in the background.
pub(crate) struct Running {
    pub(crate) cancel: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(crate) fn start<B: Backend>(bus: &Bus<B>) -> Running {
        let cancel = CancellationToken::new();
        let (bus, stop) = (bus.clone(), cancel.clone());
        Running { cancel, task: tokio::spawn(async move { bus.run(stop).await }) }
    }

    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        timeout(PATIENCE, self.task).await.expect("the bus stops").unwrap().unwrap();
    }
}

/// What handlers tell the test.
pub(crate) struct Heard {
    sender: UnboundedSender<i64>,
    receiver: UnboundedReceiver<i64>,
}

impl Heard {
    pub(crate) fn new() -> Heard {
        let (sender, receiver) = unbounded_channel();
        Heard { sender, receiver }
    }

    pub(crate) fn sender(&self) -> UnboundedSender<i64> {
        self.sender.clone()
    }

    /// Subscribes a handler that only tells.
    pub(crate) fn subscribe<B: Backend>(&self, bus: &Bus<B>, name: &str) {
        let sender = self.sender();
        bus.subscribe(name, move |order: OrderCreated| {
            let told = sender.send(order.order_id).map_err(BoxError::from);
            async move { told }
        });
    }

    pub(crate) async fn next(&mut self) -> i64 {
        timeout(PATIENCE, self.receiver.recv()).await.expect("a handler is called").unwrap()
    }

    pub(crate) async fn next_sorted(&mut self, count: usize) -> Vec<i64> {
        let mut orders = Vec::new();
        for _ in 0..count {
            orders.push(self.next().await);
        }
        orders.sort_unstable();
        orders
    }

    /// What was told and not yet taken.
    pub(crate) fn rest(&mut self) -> usize {
        std::iter::from_fn(|| self.receiver.try_recv().ok()).count()
    }
}

/// Holds handlers until the test lets one after the other pass.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn closed() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }

    pub(crate) async fn pass(&self) {
        self.0.acquire().await.unwrap().forget();
    }

    pub(crate) fn let_pass(&self, handlers: usize) {
        self.0.add_permits(handlers);
    }
}

/// Looks again and again until it holds.
pub(crate) async fn until<Fut: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> Fut) {
    let waited = timeout(PATIENCE, async {
        while !holds().await {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "still not: {what}");
}

/// Waits until nothing is left to relay or deliver.
pub(crate) async fn until_done<B: Backend>(bus: &Bus<B>) {
    until("everything is delivered", || async {
        let backlog = bus.backlog().await.unwrap();
        backlog.outbox == 0 && backlog.deliveries == 0
    })
    .await;
}
