use std::time::Duration;

use metrics::counter;
use tokio::{
    select,
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Backend, Bus, Error,
    error::describe,
    retry::{Trouble, jittered},
    telemetry,
};

/// How often old events are looked for, at most.
const EXPIRY: Duration = Duration::from_secs(60);
/// How many of them are deleted in one transaction.
const EXPIRY_BATCH: u32 = 10_000;

/// Moves events from the outbox to the log, and the old ones out of it, until cancelled.
///
/// A batch is one transaction that deletes what it hands on. No position in the outbox is kept, so it does not matter in
/// which order publishers commit: what is there later is found later, and takes a later position in the log.
pub(crate) async fn run<B: Backend>(bus: &Bus<B>, arrived: &Notify, cancel: &CancellationToken) {
    let mut trouble = Trouble::default();
    let mut next_expiry = Instant::now();
    let mut woken = true;
    while !cancel.is_cancelled() {
        match round(bus, arrived, woken, &mut next_expiry).await {
            Ok(true) => trouble.over(),
            Ok(false) => {
                trouble.over();
                if woken {
                    // What is published meanwhile goes together.
                    cancel.run_until_cancelled(sleep(bus.config().batch_interval)).await;
                }
                woken = select! {
                    () = cancel.cancelled() => false,
                    () = bus.woken() => true,
                    () = sleep(jittered(bus.config().poll_interval)) => false,
                };
            }
            Err(error) => {
                let pause = trouble.pause();
                warn!(error = describe(&error), ?pause, "the outbox waits for the database");
                // Waking is no use now: who published could do so without us.
                select! {
                    () = cancel.cancelled() => {}
                    () = sleep(pause) => {}
                }
            }
        }
    }
}

/// Relays one batch; true when there may be more.
async fn round<B: Backend>(
    bus: &Bus<B>,
    arrived: &Notify,
    woken: bool,
    next_expiry: &mut Instant,
) -> Result<bool, Error> {
    let config = bus.config();
    let relayed = bus.in_time("relay the outbox", bus.store().relay(config.relay_batch)).await?;
    if woken || !relayed.events.is_empty() {
        arrived.notify_one();
    }
    for (event, count) in relayed.events {
        debug!(event, count, "relayed");
        counter!(telemetry::PUBLISHED, telemetry::EVENT => event).increment(count);
    }
    if relayed.more || Instant::now() < *next_expiry {
        return Ok(relayed.more);
    }
    let expire = bus.store().expire(config.retention, config.max_retention, EXPIRY_BATCH);
    let expired = bus.in_time("delete old events", expire).await?;
    if expired < u64::from(EXPIRY_BATCH) {
        *next_expiry = Instant::now() + jittered(EXPIRY.min(config.retention).max(config.poll_interval));
    }
    Ok(expired > 0)
}
