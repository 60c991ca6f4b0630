use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
};

use async_nats::jetstream::{AckKind, consumer::PullConsumer};
use futures_util::FutureExt;
use metrics::{counter, histogram};
use tokio::{
    select,
    sync::OwnedSemaphorePermit,
    time::{Instant, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info_span, warn};

use super::{CloudEvent, ConsumeConfig, Consumer, Handler, Held, JetStream, Source};
use crate::{
    BoxError,
    error::describe,
    inbox::attempt::message as panic_message,
    retry::{Trouble, delay},
    subscription::Failure,
    telemetry,
};

/// How often what came of an attempt is told to a server that does not answer, before it is left to the lease.
const TRIES: u32 = 5;

/// What all attempts of a consumer share.
pub(super) struct Attempts {
    pub(super) jetstream: JetStream,
    pub(super) name: Arc<str>,
    pub(super) config: ConsumeConfig,
    handlers: HashMap<&'static str, Handler>,
    /// Fires when a stopping consumer waits no longer.
    pub(super) grace_over: CancellationToken,
    consumers: Mutex<[Option<PullConsumer>; 2]>,
}

/// What becomes of an event.
enum Fate {
    Done,
    /// Of no handler here.
    PassedOver,
    Retry(String),
    Dead(String),
    /// Cut short by the stop.
    Interrupted,
}

impl Attempts {
    pub(super) fn new(consumer: Consumer) -> Attempts {
        let Consumer { jetstream, name, config, handlers, .. } = consumer;
        let (grace_over, consumers) = (CancellationToken::new(), Mutex::default());
        Attempts { jetstream, name, config, handlers, grace_over, consumers }
    }

    pub(super) fn cached(&self, source: Source) -> Option<PullConsumer> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)[source as usize].clone()
    }

    pub(super) fn cache(&self, source: Source, consumer: PullConsumer) {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)[source as usize] = Some(consumer);
    }

    /// After an error: the consumer may be gone.
    pub(super) fn forget(&self, source: Source) {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)[source as usize] = None;
    }
}

/// Handles one event once, and tells the server what came of it. The permit is its place.
pub(super) async fn attempt(
    attempts: Arc<Attempts>,
    source: Source,
    held: Held,
    _place: OwnedSemaphorePermit,
) {
    let fate = select! {
        biased;
        fate = handle(&attempts, &held) => fate,
        // It never ends by itself.
        () = keep(&attempts, &held) => Fate::Interrupted,
        () = attempts.grace_over.cancelled() => Fate::Interrupted,
    };
    let outcome = match &fate {
        Fate::Done => "completed",
        Fate::Retry(_) if held.attempt < attempts.config.max_attempts => "retried",
        Fate::Retry(_) | Fate::Dead(_) => "dead",
        Fate::PassedOver | Fate::Interrupted => "",
    };
    if !outcome.is_empty() {
        let name = attempts.name.to_string();
        counter!(telemetry::HANDLED, telemetry::SUBSCRIPTION => name, telemetry::OUTCOME => outcome)
            .increment(1);
    }
    let mut trouble = Trouble::default();
    for tries in 1.. {
        match settle(&attempts, source, &held, &fate).await {
            Ok(()) => return,
            Err(error) if tries >= TRIES || attempts.grace_over.is_cancelled() => {
                let error = describe(error.as_ref());
                return warn!(error, consumer = &*attempts.name, "an event comes again when its lease ends");
            }
            Err(_) => sleep(trouble.pause()).await,
        }
    }
}

/// Says every third of the lease that the attempt goes on.
async fn keep(attempts: &Attempts, held: &Held) {
    let every = attempts.config.lease / 3;
    let mut ticks = interval_at(Instant::now() + every, every);
    loop {
        ticks.tick().await;
        if let Err(error) = held.acknowledge(&attempts.jetstream, AckKind::Progress).await {
            // The handler goes on: it may still end before the lease does, and another attempt is no fault.
            warn!(error = describe(error.as_ref()), consumer = &*attempts.name, "could not extend a lease");
        }
    }
}

async fn handle(attempts: &Attempts, held: &Held) -> Fate {
    let Attempts { name, config, .. } = attempts;
    if held.attempt > config.max_attempts {
        return Fate::Dead(format!("its process ended in the last of {} attempts", config.max_attempts));
    }
    let event = match CloudEvent::parse(&held.message.payload) {
        Ok(event) => event,
        Err(error) => return Fate::Dead(error),
    };
    let Some(handler) = attempts.handlers.get(event.r#type.as_str()) else { return Fate::PassedOver };
    let received = event.received(name, held.attempt, config.remembered);
    let span = info_span!(
        telemetry::HANDLE_SPAN,
        subscription = &**name,
        event = event.r#type,
        event_id = event.id,
        attempt = held.attempt
    );
    let started = Instant::now();
    // The call stands inside the future, where its panic is caught.
    let handling = AssertUnwindSafe(async { handler(event.data, received).await }).catch_unwind();
    let fate = match timeout(config.timeout, handling.instrument(span)).await {
        Ok(Ok(Ok(()))) => Fate::Done,
        Ok(Ok(Err(failure @ Failure::Temporary(_)))) => Fate::Retry(failure.describe()),
        Ok(Ok(Err(failure @ Failure::Permanent(_)))) => Fate::Dead(failure.describe()),
        Ok(Err(panic)) => Fate::Retry(format!("the handler panicked: {}", panic_message(panic.as_ref()))),
        Err(_) => Fate::Retry(format!("the handler did not end within {:?}", config.timeout)),
    };
    histogram!(telemetry::HANDLE_DURATION, telemetry::SUBSCRIPTION => name.to_string())
        .record(started.elapsed().as_secs_f64());
    fate
}

async fn settle(attempts: &Attempts, source: Source, held: &Held, fate: &Fate) -> Result<(), BoxError> {
    let Attempts { jetstream, name, config, .. } = attempts;
    match fate {
        Fate::Done | Fate::PassedOver => {}
        Fate::Interrupted => return held.give_back(jetstream, std::time::Duration::ZERO).await,
        Fate::Retry(reason) if held.attempt < config.max_attempts => {
            let wait = delay(held.attempt, config.retry_min, config.retry_max);
            warn!(error = reason, consumer = &**name, ?wait, "an event failed; it comes again");
            return held.give_back(jetstream, wait).await;
        }
        Fate::Retry(reason) | Fate::Dead(reason) => {
            error!(error = reason, consumer = &**name, "an event is a dead letter");
            let attempts = held.attempt.min(config.max_attempts);
            jetstream.bury(name, held, attempts, reason.clone()).await?;
        }
    }
    held.acknowledge(jetstream, AckKind::Ack).await?;
    // What was redelivered is in a stream that keeps what is acknowledged.
    if source == Source::Again { jetstream.remove_dead(held.sequence).await } else { Ok(()) }
}
