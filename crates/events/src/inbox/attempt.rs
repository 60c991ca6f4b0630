use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use metrics::histogram;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, info_span};

use crate::{
    Backend, Bus,
    error::storable,
    subscription::{Delivery, Failure, Handler, Subscription},
    telemetry,
};

/// How an attempt ended.
pub(super) enum Outcome {
    /// The handler returned; the delivery is still to be completed.
    Handled,
    /// The handler's transaction, the completion in it, was committed.
    Committed,
    /// The handler's transaction was rolled back: another process holds the delivery now.
    Lost,
    /// To be tried again.
    Failed(String),
    /// Not worth another attempt.
    Hopeless(String),
}

/// Runs a handler once. Never panics: a panic of the handler is a failed attempt.
pub(super) async fn attempt<B: Backend>(
    bus: Bus<B>,
    subscription: Arc<Subscription<B>>,
    delivery: Delivery,
) -> Outcome {
    let span = info_span!(
        telemetry::HANDLE_SPAN,
        subscription = delivery.subscription,
        event = delivery.event,
        event_id = %delivery.event_id,
        attempt = delivery.attempt
    );
    let started = Instant::now();
    let limit = subscription.config.timeout;
    let handle = AssertUnwindSafe(handle(&bus, &subscription.handler, delivery)).catch_unwind();
    let outcome = match timeout(limit, handle).instrument(span).await {
        Ok(Ok(Ok(outcome))) => outcome,
        Ok(Ok(Err(failure @ Failure::Temporary(_)))) => Outcome::Failed(failure.describe()),
        Ok(Ok(Err(failure @ Failure::Permanent(_)))) => Outcome::Hopeless(failure.describe()),
        Ok(Err(panic)) => Outcome::Failed(format!("the handler panicked: {}", message(panic.as_ref()))),
        Err(_) => Outcome::Failed(format!("the handler did not end within {limit:?}")),
    };
    histogram!(telemetry::HANDLE_DURATION, telemetry::SUBSCRIPTION => subscription.name.clone())
        .record(started.elapsed().as_secs_f64());
    outcome
}

async fn handle<B: Backend>(
    bus: &Bus<B>,
    handler: &Handler<B>,
    delivery: Delivery,
) -> Result<Outcome, Failure> {
    match handler {
        Handler::AtLeastOnce(handler) => {
            handler(delivery).await?;
            Ok(Outcome::Handled)
        }
        Handler::InTx(handler) => {
            let held = bus.store().in_tx(handler, delivery).await?;
            bus.wake_if_published();
            Ok(if held { Outcome::Committed } else { Outcome::Lost })
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    storable(text.unwrap_or("with something other than a message"))
}
