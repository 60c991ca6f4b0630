use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{error::Elapsed, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Backend, Backlog, BoxError, BusConfig, DeadLetter, Error, Event, EventContext, SubscriptionConfig,
    config::Fault,
    error::describe,
    inbox, relay,
    retry::Trouble,
    subscription::{Delivery, Handler, Subscription},
};

/// A migration may wait for another process's and then work on large tables.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(300);

/// Typed events in a database: published in your transaction, delivered to durable subscriptions.
///
/// A clone is another handle to the same bus. `B` is the database, [`Postgres`](crate::Postgres) or
/// [`Sqlite`](crate::Sqlite).
pub struct Bus<B: Backend> {
    store: B,
    config: Arc<BusConfig>,
    shared: Arc<Shared<B>>,
}

struct Shared<B: Backend> {
    subscriptions: RwLock<Subscriptions<B>>,
    wake: Notify,
}

struct Subscriptions<B: Backend> {
    all: Vec<Arc<Subscription<B>>>,
    /// What of others is not in use, and why: `register` and `run` say so.
    refused: Option<Refused>,
}

#[derive(Clone)]
enum Refused {
    Duplicate { subscription: String, event: String },
    Config { subscription: String, fault: Fault },
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        match refused {
            Refused::Duplicate { subscription, event } => Error::DuplicateHandler { subscription, event },
            Refused::Config { subscription, fault } => Error::config(Some(&subscription), fault),
        }
    }
}

impl<B: Backend> Clone for Bus<B> {
    fn clone(&self) -> Bus<B> {
        Bus { store: self.store.clone(), config: self.config.clone(), shared: self.shared.clone() }
    }
}

impl<B: Backend> Bus<B> {
    pub(crate) fn new(store: B) -> Bus<B> {
        let subscriptions = RwLock::new(Subscriptions { all: Vec::new(), refused: None });
        let shared = Shared { subscriptions, wake: Notify::new() };
        Bus { store, config: Arc::default(), shared: Arc::new(shared) }
    }

    /// The same bus with other settings: for this handle and its later clones, and for subscriptions made through them.
    #[must_use]
    pub fn with_config(mut self, config: BusConfig) -> Bus<B> {
        self.config = Arc::new(config);
        self
    }

    /// Creates the tables (`greenwave_event*`) or brings them up to date. Safe to call at every start, by any number of
    /// processes at once: a lock lets them pass one after the other.
    pub async fn migrate(&self) -> Result<(), Error> {
        in_time("migrate the tables of events", MIGRATE_TIMEOUT, self.store.migrate()).await
    }

    /// Handles each `E` at least once, under a durable name.
    ///
    /// Events published from the moment the subscription is registered (by [`register`](Bus::register) or
    /// [`run`](Bus::run)) wait for it, whether or not a process that runs it is up. Each subscription has its own
    /// deliveries, retries and dead letters; processes that use the same name share the work. One name may have a
    /// handler for each of several events.
    ///
    /// When the handler fails, panics or takes too long, the event comes again after a while; after
    /// [`SubscriptionConfig::max_attempts`] it becomes a dead letter. The handler may see an event twice, after a crash
    /// between its effect and the completion: make the effect idempotent, by
    /// [`EventContext::id`](crate::EventContext::id) (see [`subscribe_with`](Bus::subscribe_with)), or use
    /// `subscribe_in_tx` for effects in the same database.
    ///
    /// A second handler for the same name and event in one bus is an error of [`register`](Bus::register) and
    /// [`run`](Bus::run), and so are settings that cannot work.
    ///
    /// ```
    /// # use greenwave_events::{Backend, BoxError, Bus, Event};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct PriceChanged { product: i64 }
    /// # impl Event for PriceChanged { const NAME: &'static str = "price-changed"; }
    /// # fn example<B: Backend>(events: &Bus<B>) {
    /// events.subscribe("catalog", |event: PriceChanged| async move {
    ///     println!("the price of {} changed", event.product);
    ///     Ok::<(), BoxError>(())
    /// });
    /// # }
    /// ```
    pub fn subscribe<E, F, Fut, R>(&self, name: impl Into<String>, handler: F)
    where
        E: Event,
        F: Fn(E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), R>> + Send + 'static,
        R: Into<BoxError>,
    {
        let config = self.config.subscription.clone();
        self.subscribe_with(name, config, move |event, _: EventContext| handler(event));
    }

    /// As [`subscribe`](Bus::subscribe), with settings of its own and the event's context.
    pub fn subscribe_with<E, F, Fut, R>(
        &self,
        name: impl Into<String>,
        config: SubscriptionConfig,
        handler: F,
    ) where
        E: Event,
        F: Fn(E, EventContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), R>> + Send + 'static,
        R: Into<BoxError>,
    {
        let handler = Arc::new(handler);
        let handler = Handler::AtLeastOnce(Arc::new(move |delivery: Delivery| {
            let handler = handler.clone();
            Box::pin(async move {
                let event = delivery.decode::<E>()?;
                handler(event, delivery.context())
                    .await
                    .map_err(|error| crate::subscription::Failure::Temporary(error.into()))
            })
        }));
        self.add(Subscription { name: name.into(), event: E::NAME.to_owned(), config, handler });
    }

    pub(crate) fn add(&self, subscription: Subscription<B>) {
        let mut subscriptions = self.shared.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        let same = |other: &Arc<Subscription<B>>| {
            other.name == subscription.name && other.event == subscription.event
        };
        let refused = if subscriptions.all.iter().any(same) {
            Refused::Duplicate { subscription: subscription.name, event: subscription.event }
        } else if let Err(fault) = subscription.config.find_fault() {
            Refused::Config { subscription: subscription.name, fault }
        } else {
            return subscriptions.all.push(Arc::new(subscription));
        };
        // A bus that runs has no other way to say so.
        tracing::error!(error = describe(&Error::from(refused.clone())), "a handler is not used");
        subscriptions.refused = Some(refused);
    }

    /// Persists the subscriptions of this bus, so that events published from now on wait for them. [`run`](Bus::run)
    /// does this first; call it alone where another process will run them.
    pub async fn register(&self) -> Result<(), Error> {
        self.config.check()?;
        let refused = {
            let subscriptions = self.shared.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
            subscriptions.refused.clone()
        };
        if let Some(refused) = refused {
            return Err(refused.into());
        }
        self.persist(&self.subscriptions_after(0)).await
    }

    pub(crate) async fn persist(&self, subscriptions: &[Arc<Subscription<B>>]) -> Result<(), Error> {
        let pairs: Vec<(String, String)> =
            subscriptions.iter().map(|s| (s.name.clone(), s.event.clone())).collect();
        self.in_time("register subscriptions", self.store.register(&pairs)).await
    }

    /// Ends the subscription `name` for good, with every delivery that waits for it; answers how many those were. Dead
    /// letters stay. Without this, events of a subscription that no process runs any more pile up.
    pub async fn unregister(&self, name: &str) -> Result<u64, Error> {
        self.in_time("unregister a subscription", self.store.unregister(name)).await
    }

    /// Relays what was published and runs the handlers, until cancelled.
    ///
    /// Any number of processes may do so on one database. A process without handlers relays for the others. Handlers
    /// added while it runs are taken up within a poll.
    ///
    /// It returns an error only from its start, and only for what waiting does not mend: tables that are missing, two
    /// handlers for the same, settings that cannot work. It outlives the database, and waits for one that is away when
    /// it starts: it logs, tries again with growing pauses, and loses nothing. When cancelled it takes nothing new, gives
    /// running handlers [`BusConfig::grace`] to end, gives back what it did not finish, and returns.
    ///
    /// *Cancel safety:* dropping the future drops its handlers where they stand; their deliveries come again when the
    /// lease has run out.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        match cancel.run_until_cancelled(self.register_in_the_end()).await {
            Some(registered) => registered?,
            None => return Ok(()),
        }
        let arrived = Notify::new();
        tokio::join!(relay::run(self, &arrived, &cancel), inbox::run(self, &arrived, &cancel));
        Ok(())
    }

    /// Registers; waits for a database that is away.
    async fn register_in_the_end(&self) -> Result<(), Error> {
        let mut trouble = Trouble::default();
        loop {
            let error = match self.register().await {
                Err(error @ (Error::Store { .. } | Error::Timeout { .. })) => error,
                done => return done,
            };
            // The database may come back; tables that are missing do not come by themselves.
            let migrated = self.in_time("look for the tables of events", self.store.is_migrated()).await;
            if matches!(migrated, Ok(false)) {
                return Err(error);
            }
            let pause = trouble.pause();
            tracing::warn!(error = describe(&error), ?pause, "the bus waits for its database to start");
            sleep(pause).await;
        }
    }

    /// Says that something was published, so that a [`run`](Bus::run) in this process relays it at once rather than at
    /// its next poll. Call it after the commit: before, there is nothing to find. Forgetting it costs time, never an
    /// event.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// The dead letters, newest first, of one subscription or of all.
    pub async fn dead_letters(
        &self,
        subscription: Option<&str>,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, Error> {
        self.in_time("read dead letters", self.store.dead_letters(subscription, limit)).await
    }

    /// Makes a dead letter a delivery again, with all its attempts before it.
    pub async fn redeliver(&self, dead_letter: i64) -> Result<(), Error> {
        if self.in_time("redeliver a dead letter", self.store.redeliver(dead_letter)).await? {
            return Ok(());
        }
        Err(Error::NoDeadLetter(dead_letter))
    }

    /// How much waits. It counts rows, so the cost grows with the answer.
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        self.in_time("count the backlog", self.store.backlog()).await
    }

    pub(crate) fn store(&self) -> &B {
        &self.store
    }

    pub(crate) fn config(&self) -> &BusConfig {
        &self.config
    }

    pub(crate) fn subscriptions_after(&self, known: usize) -> Vec<Arc<Subscription<B>>> {
        let subscriptions = self.shared.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
        subscriptions.all.iter().skip(known).cloned().collect()
    }

    pub(crate) async fn woken(&self) {
        self.shared.wake.notified().await;
    }

    pub(crate) async fn in_time<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        in_time(doing, self.config.statement_timeout, work).await
    }
}

async fn in_time<T>(
    doing: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, work).await.unwrap_or_else(|_: Elapsed| Err(Error::Timeout { doing, limit }))
}
