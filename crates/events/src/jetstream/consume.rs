//! The way in: a durable consumer of the stream, whose messages go to typed handlers.

mod attempt;

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use serde::{Deserialize, Serialize};
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::attempt::{Attempts, attempt};
use super::{
    JetStream, Received,
    envelope::{CloudEvent, decode},
    is_subject,
    message::Held,
};
use crate::{
    BoxError, Error, Event,
    config::{Fault, check_duration},
    error::describe,
    retry::Trouble,
    subscription::Failure,
};

/// How long a request for messages stands at the server before it is made anew.
const PULL: Duration = Duration::from_secs(5);

/// How often redelivered dead letters are looked for.
const AGAIN: Duration = Duration::from_secs(1);

/// How a consumer works.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsumeConfig {
    /// How many of its handlers run at once in this process (default `8`).
    pub concurrency: u32,
    /// Whether events are handled one after another in the order of the stream, in all processes together, and one
    /// that is to be tried again holds up all (default `false`). Set when the consumer is created, and `concurrency` is
    /// then 1.
    pub ordered: bool,
    /// Whether a consumer that is new begins with the oldest event that the stream has (default `false`: with what is
    /// published from then on).
    pub from_the_start: bool,
    /// After how many deliveries an event becomes a dead letter (default `20`: about two hours). One that was cut short
    /// by the end of its process counts.
    pub max_attempts: u32,
    /// The wait before the second attempt; it doubles with each further one, and is shortened by up to half at random
    /// (default `1s`).
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// The longest wait between two attempts (default `10m`).
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// How long one attempt may take before it is dropped and counts as failed (default `1m`).
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long an event stays with a process that shows no sign of life; one that lives says so every third of it
    /// (default `30s`).
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How long running handlers may go on after the call to stop (default `10s`).
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// For how long `Bus::accept` remembers an event (default `7d`). Longer than any copy may be late: the sum of the
    /// waits between attempts, and the longest outage of a publisher.
    #[serde(with = "humantime_serde")]
    pub remembered: Duration,
}

impl Default for ConsumeConfig {
    fn default() -> ConsumeConfig {
        ConsumeConfig {
            concurrency: 8,
            ordered: false,
            from_the_start: false,
            max_attempts: 20,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(600),
            timeout: Duration::from_secs(60),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            remembered: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

impl ConsumeConfig {
    fn find_fault(&self) -> Result<(), Fault> {
        if self.concurrency == 0 || self.concurrency > 100_000 {
            return Err(("concurrency", "must be 1 to 100000"));
        }
        if self.max_attempts == 0 {
            return Err(("max_attempts", "must be at least 1"));
        }
        if self.timeout.is_zero() {
            return Err(("timeout", "must be more than zero"));
        }
        if self.lease < Duration::from_millis(100) {
            return Err(("lease", "must be at least 100ms"));
        }
        check_duration("retry_min", self.retry_min)?;
        check_duration("retry_max", self.retry_max)?;
        check_duration("timeout", self.timeout)?;
        check_duration("lease", self.lease)?;
        check_duration("grace", self.grace)?;
        check_duration("remembered", self.remembered)
    }
}

type Handler =
    Arc<dyn Fn(serde_json::Value, Received) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// A durable consumer by name, and its handlers.
#[must_use = "a consumer does nothing until it is run"]
pub struct Consumer {
    jetstream: JetStream,
    name: Arc<str>,
    config: ConsumeConfig,
    handlers: HashMap<&'static str, Handler>,
    duplicate: Option<&'static str>,
}

impl JetStream {
    /// A durable consumer: events that are published after its first [`run`](Consumer::run) wait for it in the stream,
    /// whether or not a process runs it. Processes that use the same name share the work.
    ///
    /// ```no_run
    /// # use greenwave_events::{BoxError, Event, jetstream::{JetStream, JetStreamConfig, Received}};
    /// # use tokio_util::sync::CancellationToken;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderCreated { order_id: i64 }
    /// # impl Event for OrderCreated { const NAME: &'static str = "order-created"; }
    /// # async fn example(cancel: CancellationToken) -> Result<(), greenwave_events::Error> {
    /// let jetstream = JetStream::connect("nats://127.0.0.1:4222", JetStreamConfig::default()).await?;
    /// jetstream
    ///     .consume("mail")
    ///     .handle(|order: OrderCreated, received: Received| async move {
    ///         println!("{} says that order {} was created", received.source, order.order_id);
    ///         Ok::<(), BoxError>(())
    ///     })
    ///     .run(cancel)
    ///     .await
    /// # }
    /// ```
    pub fn consume(&self, name: &str) -> Consumer {
        Consumer {
            jetstream: self.clone(),
            name: name.into(),
            config: ConsumeConfig::default(),
            handlers: HashMap::new(),
            duplicate: None,
        }
    }
}

impl Consumer {
    /// The same with other settings.
    pub fn with_config(mut self, config: ConsumeConfig) -> Consumer {
        self.config = config;
        self
    }

    /// Handles each `E` at least once. When the handler fails, panics or takes too long, the event comes again after a
    /// while; after [`ConsumeConfig::max_attempts`] it becomes a dead letter, and so does at once what does not decode.
    ///
    /// It may see an event twice, when it or its acknowledgement was cut short, or its publisher published it twice:
    /// `Bus::accept` makes effects in a database once. An event without a handler in this consumer is passed over.
    pub fn handle<E, F, Fut, R>(mut self, handler: F) -> Consumer
    where
        E: Event,
        F: Fn(E, Received) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), R>> + Send + 'static,
        R: Into<BoxError>,
    {
        let handler = Arc::new(handler);
        let erased: Handler = Arc::new(move |data, received| {
            let handler = Arc::clone(&handler);
            async move {
                let event = decode::<E>(received.version, data)?;
                handler(event, received).await.map_err(|error| Failure::Temporary(error.into()))
            }
            .boxed()
        });
        if self.handlers.insert(E::NAME, erased).is_some() {
            self.duplicate = Some(E::NAME);
        }
        self
    }

    /// Consumes until cancelled: then takes nothing new, gives running handlers [`ConsumeConfig::grace`] to end, gives
    /// back the rest, and returns.
    ///
    /// An error means that it cannot start: a setting or a name that cannot work, two handlers for one event. While
    /// NATS is away it waits, and goes on.
    ///
    /// *Cancel safety:* dropping the future drops its handlers where they stand; their events come again when the lease
    /// has run out.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        self.config.find_fault().map_err(|fault| Error::config(Some(&self.name), fault))?;
        if let Some(event) = self.duplicate {
            let subscription = self.name.to_string();
            return Err(Error::DuplicateHandler { subscription, event: event.to_owned() });
        }
        if !is_subject(&self.name) || self.name.contains(['.', '/', '\\']) {
            return Err(Error::JetStream {
                problem: "not the name of a consumer",
                value: self.name.to_string(),
            });
        }
        for event in self.handlers.keys() {
            self.jetstream.subject(event)?;
        }
        let places = if self.config.ordered { 1 } else { self.config.concurrency as usize };
        let (places, attempts) = (Arc::new(Semaphore::new(places)), Arc::new(Attempts::new(self)));
        tokio::join!(
            serve(&attempts, &places, Source::Events, &cancel),
            serve(&attempts, &places, Source::Again, &cancel)
        );
        Ok(())
    }
}

/// Where messages come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Events,
    /// Dead letters that were redelivered.
    Again,
}

/// Pulls and starts attempts until cancelled; then ends them.
async fn serve(
    attempts: &Arc<Attempts>,
    places: &Arc<Semaphore>,
    source: Source,
    cancel: &CancellationToken,
) {
    let mut running = JoinSet::new();
    let mut trouble = Trouble::default();
    while !cancel.is_cancelled() {
        let pulled = select! {
            biased;
            () = cancel.cancelled() => break,
            pulled = pull(attempts, places, source, &mut running) => pulled,
        };
        let pause = match pulled {
            Ok(()) if source == Source::Events => {
                trouble.over();
                continue;
            }
            Ok(()) => AGAIN,
            Err(error) => {
                attempts.forget(source);
                let pause = trouble.pause();
                warn!(
                    error = describe(error.as_ref()),
                    consumer = &*attempts.name,
                    ?pause,
                    "waits for JetStream"
                );
                pause
            }
        };
        select! {
            () = cancel.cancelled() => {}
            () = sleep(pause) => {}
        }
    }
    let ended = async { while running.join_next().await.is_some() {} };
    if timeout(attempts.config.grace, ended).await.is_err() {
        attempts.grace_over.cancel();
        while running.join_next().await.is_some() {}
    }
}

/// One request for messages: an attempt for each that comes.
async fn pull(
    attempts: &Arc<Attempts>,
    places: &Arc<Semaphore>,
    source: Source,
    running: &mut JoinSet<()>,
) -> Result<(), BoxError> {
    if !attempts.jetstream.is_connected() {
        return Err("NATS is not connected".into());
    }
    // Events wait for a place here; a redelivered one only when it has come, for mostly there are none.
    let mut free = match source {
        Source::Events => Some(take_places(places).await?),
        Source::Again => None,
    };
    let count = free.as_ref().map_or(1, OwnedSemaphorePermit::num_permits);
    let consumer = create_consumer(attempts, source).await?;
    let request = consumer.fetch().max_messages(count);
    let request = if source == Source::Events { request.expires(PULL) } else { request };
    let mut batch = request.messages().await?;
    loop {
        // The request ends by itself; a server that is gone ends nothing.
        let message = match timeout(PULL + attempts.jetstream.config.ack_timeout, batch.next()).await {
            Ok(Some(message)) => message?,
            Ok(None) => return Ok(()),
            Err(_) => return Err("JetStream does not answer".into()),
        };
        while running.try_join_next().is_some() {}
        let place = match &mut free {
            Some(free) => free.split(1),
            None => Some(Arc::clone(places).acquire_owned().await?),
        };
        if let (Some(held), Some(place)) = (Held::of(message), place) {
            running.spawn(attempt(Arc::clone(attempts), source, held, place));
        }
    }
}

async fn take_places(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, BoxError> {
    let mut free = Arc::clone(places).acquire_owned().await?;
    let more = u32::try_from(places.available_permits()).unwrap_or(0);
    if more > 0
        && let Ok(more) = Arc::clone(places).try_acquire_many_owned(more)
    {
        free.merge(more);
    }
    Ok(free)
}

/// The durable consumer, made if it is absent. Asked for at each request, which at an idle stream is once in `PULL`.
async fn create_consumer(attempts: &Attempts, source: Source) -> Result<PullConsumer, BoxError> {
    let Attempts { jetstream, name, config, .. } = attempts;
    let common = pull::Config {
        durable_name: Some(name.to_string()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: config.lease,
        // Never given up by the server, which would tell nobody: attempts are counted here.
        max_deliver: -1,
        // Events that wait for their next attempt are pending too: a bound would let them stop the consumer, which is
        // what an ordered one wants.
        max_ack_pending: if config.ordered { 1 } else { -1 },
        ..pull::Config::default()
    };
    if let Some(consumer) = attempts.cached(source) {
        return Ok(consumer);
    }
    let (stream, wanted) = match source {
        Source::Events => {
            jetstream.ensure_stream().await?;
            let deliver_policy = if config.from_the_start { DeliverPolicy::All } else { DeliverPolicy::New };
            let filter_subject = format!("{}.>", jetstream.config.subject_prefix);
            (jetstream.config.stream.clone(), pull::Config { deliver_policy, filter_subject, ..common })
        }
        Source::Again => {
            jetstream.ensure_dead_stream().await?;
            let filter_subject = jetstream.again_subject(name);
            (jetstream.dead_stream(), pull::Config { filter_subject, ..common })
        }
    };
    let stream = jetstream.context.get_stream(stream).await?;
    // One that exists goes on where it was, however a new one would begin.
    let consumer = stream.get_or_create_consumer(name, wanted).await?;
    attempts.cache(source, consumer.clone());
    Ok(consumer)
}
