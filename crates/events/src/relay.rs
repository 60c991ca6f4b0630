use metrics::counter;
use tokio::{select, sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Backend, Bus,
    error::describe,
    retry::{Trouble, jittered},
    telemetry,
};

/// Moves events from the outbox to one delivery per subscription, until cancelled.
///
/// A batch is one transaction that deletes what it hands on. No position is kept, so it does not matter in which order
/// publishers commit: what is there later is found later.
pub(crate) async fn run<B: Backend>(bus: &Bus<B>, arrived: &Notify, cancel: &CancellationToken) {
    let mut trouble = Trouble::default();
    while !cancel.is_cancelled() {
        match round(bus, arrived).await {
            Ok(true) => trouble.over(),
            Ok(false) => {
                trouble.over();
                select! {
                    () = cancel.cancelled() => {}
                    () = bus.woken() => {}
                    () = sleep(jittered(bus.config().poll_interval)) => {}
                }
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
async fn round<B: Backend>(bus: &Bus<B>, arrived: &Notify) -> Result<bool, crate::Error> {
    let batch = bus.config().relay_batch;
    let relayed = bus.in_time("relay the outbox", bus.store().relay(batch)).await?;
    let mut events = 0;
    for (event, count) in relayed.events {
        events += count;
        debug!(event, count, "relayed");
        counter!(telemetry::PUBLISHED, telemetry::EVENT => event).increment(count);
    }
    if relayed.deliveries > 0 {
        arrived.notify_one();
    }
    Ok(events >= u64::from(batch))
}
