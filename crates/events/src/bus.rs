use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, Semaphore},
    time::{error::Elapsed, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Backend, Backlog, BoxError, BusConfig, DeadLetter, Error, Event, EventContext, Lag, Start,
    SubscriptionConfig,
    backends::Registration,
    config::Fault,
    error::describe,
    inbox,
    local::Local,
    relay,
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
    /// One for each in-process handler that may run.
    permits: Arc<Semaphore>,
}

struct Shared<B: Backend> {
    subscriptions: RwLock<Subscriptions<B>>,
    local: Local,
    wake: Notify,
    /// Names this bus among those that share a subscription.
    owner: Uuid,
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
        Bus {
            store: self.store.clone(),
            config: self.config.clone(),
            shared: self.shared.clone(),
            permits: self.permits.clone(),
        }
    }
}

impl<B: Backend> Bus<B> {
    pub(crate) fn new(store: B) -> Bus<B> {
        let subscriptions = RwLock::new(Subscriptions { all: Vec::new(), refused: None });
        let shared =
            Shared { subscriptions, local: Local::default(), wake: Notify::new(), owner: Uuid::now_v7() };
        let config = BusConfig::default();
        let permits = Arc::new(Semaphore::new(config.max_in_process as usize));
        Bus { store, config: Arc::new(config), shared: Arc::new(shared), permits }
    }

    /// The same bus with other settings: for this handle and its later clones, and for subscriptions made through them.
    #[must_use]
    pub fn with_config(mut self, config: BusConfig) -> Bus<B> {
        self.permits = Arc::new(Semaphore::new(config.max_in_process as usize));
        self.config = Arc::new(config);
        self
    }

    /// Creates the tables (`greenwave_event*`) or brings them up to date. Safe to call at every start, by any number of
    /// processes at once: a lock lets them pass one after the other.
    pub async fn migrate(&self) -> Result<(), Error> {
        in_time("migrate the tables of events", MIGRATE_TIMEOUT, self.store.migrate()).await
    }

    /// Moves the subscription `name` to another place in the log: back, to handle events again, or ahead, to pass over
    /// them. What is being handled or tried again is not touched.
    ///
    /// `subscribe_in_tx` has an event's effects once *more* for each replay. Answers with the position it starts at.
    pub async fn replay(&self, name: &str, from: Start) -> Result<u64, Error> {
        let after = match self.after(from).await? {
            Some(after) => after,
            None => self.in_time("look at the log", self.store.ends()).await?.last,
        };
        if !self.in_time("move a subscription", self.store.seek(name, after)).await? {
            return Err(Error::NoSubscription(name.to_owned()));
        }
        self.wake();
        Ok(after.saturating_add(1).unsigned_abs())
    }

    /// Handles each `E` in this process, at once after [`committed`](Bus::committed): nothing is stored, nothing is
    /// tried again, and other processes hear nothing.
    ///
    /// Each handler runs in a task of its own, for at most [`SubscriptionConfig::timeout`]. An error or a panic of one
    /// is logged and hurts no other.
    ///
    /// ```
    /// # use greenwave_events::{BoxError, Bus, Error, Event, Sqlite};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct PriceChanged { product: i64 }
    /// # impl Event for PriceChanged { const NAME: &'static str = "price-changed"; }
    /// # fn example(events: &Bus<Sqlite>, mut connection: rusqlite::Connection) -> Result<(), BoxError> {
    /// events.on(|event: std::sync::Arc<PriceChanged>| async move {
    ///     println!("the price of {} changed", event.product);
    ///     Ok::<(), BoxError>(())
    /// });
    /// let changed = PriceChanged { product: 7 };
    /// let tx = connection.transaction()?;
    /// events.publish(&tx, &changed)?; // for durable subscriptions; without any, leave it out
    /// tx.commit()?;
    /// events.committed(changed);
    /// # Ok(()) }
    /// ```
    pub fn on<E, F, Fut, R>(&self, handler: F)
    where
        E: Event,
        F: Fn(Arc<E>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), R>> + Send + 'static,
        R: Into<BoxError>,
    {
        self.shared.local.add(handler);
    }

    /// Says that `event` is a fact now: wakes the relay as [`wake`](Bus::wake) does, and hands the event to the
    /// handlers of this process ([`on`](Bus::on)). Call it after the commit, on a Tokio runtime. When
    /// [`BusConfig::max_in_process`] of them run already, the event is not handled, and a warning says so.
    pub fn committed<E: Event>(&self, event: E) {
        self.wake();
        self.shared.local.dispatch(event, &self.permits, self.config.subscription.timeout);
    }

    /// Handles each `E` at least once, under a durable name.
    ///
    /// Events published from the moment the subscription is registered (by [`register`](Bus::register) or
    /// [`run`](Bus::run)) wait for it, whether or not a process that runs it is up;
    /// [`SubscriptionConfig::start`] may take it further back. Each subscription has its own position, retries and dead
    /// letters; processes that use the same name share the work.
    ///
    /// One name may have a handler for each of several events. Then the first one's `concurrency`, `max_claimed`,
    /// `ordered` and `start` hold for all. An event that is added to a name later is handled from where the name's
    /// position stands.
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
        let mut new = Vec::with_capacity(subscriptions.len());
        for Subscription { name, event, config, .. } in subscriptions.iter().map(|new| &**new) {
            let start =
                subscriptions.iter().find(|first| first.name == *name).map(|first| first.config.start);
            let after = self.after(start.unwrap_or(config.start)).await?;
            new.push(Registration { name: name.clone(), event: event.clone(), after });
        }
        self.in_time("register subscriptions", self.store.register(&new)).await
    }

    /// The position after which a place in the log begins; none is its end.
    async fn after(&self, start: Start) -> Result<Option<i64>, Error> {
        let after = match start {
            Start::Now => return Ok(None),
            Start::Beginning => 0,
            Start::Position(position) => i64::try_from(position).unwrap_or(i64::MAX).saturating_sub(1),
            Start::Time(time) => self.before(time).await?,
        };
        Ok(Some(after))
    }

    /// The last position that reached the log before this time. Positions follow time, so a few looks find it.
    async fn before(&self, time: SystemTime) -> Result<i64, Error> {
        let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let ends = self.in_time("look at the log", self.store.ends()).await?;
        let (mut low, mut high) = (ends.first, ends.last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.in_time("look at the log", self.store.look(middle)).await? {
                Some((position, at)) if at < time => low = position + 1,
                _ => high = middle,
            }
        }
        Ok(low - 1)
    }

    /// Ends the subscription `name` for good; answers how many events waited for it. Dead letters stay. Without this, the
    /// log keeps every event that a subscription which no process runs any more has not come to.
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
    /// *Cancel safety:* dropping the future drops its handlers where they stand; their events come again when the lease
    /// has run out.
    pub async fn run(&self, cancel: CancellationToken) -> Result<(), Error> {
        match cancel.run_until_cancelled(self.register_in_the_end()).await {
            Some(registered) => registered?,
            None => return Ok(()),
        }
        let arrived = Notify::new();
        tokio::join!(relay::run(self, &arrived, &cancel), inbox::run(self, &arrived, &cancel));
        // Those in the process have no lease to come back by, so a stop only waits for them.
        let _ = timeout(self.config.grace, self.shared.local.idle()).await;
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

    /// Delivers a dead letter again, with all its attempts before it.
    pub async fn redeliver(&self, dead_letter: i64) -> Result<(), Error> {
        if self.in_time("redeliver a dead letter", self.store.redeliver(dead_letter)).await? {
            return Ok(());
        }
        Err(Error::NoDeadLetter(dead_letter))
    }

    /// Delivers every dead letter of a subscription again; answers how many those were.
    pub async fn redeliver_all(&self, subscription: &str) -> Result<u64, Error> {
        self.in_time("redeliver dead letters", self.store.redeliver_all(subscription)).await
    }

    /// How far each subscription has come, by name.
    pub async fn positions(&self) -> Result<Vec<Lag>, Error> {
        self.in_time("read positions", self.store.positions()).await
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

    pub(crate) fn owner(&self) -> Uuid {
        self.shared.owner
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
