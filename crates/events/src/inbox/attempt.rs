use std::{any::Any, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use metrics::histogram;
use tokio::time::{Instant, timeout};
use tracing::{Instrument, info_span};

use crate::{
    Backend, Bus,
    error::storable,
    subscription::{Begun, Delivery, Failure, Handler, Held, Subscription},
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
    /// The handler was not called: its transaction could not begin. To be tried again, and no attempt.
    Unbegun(String),
    /// Not worth another attempt.
    Hopeless(String),
}

/// Runs a handler once; `AtLeastOnce`, when its attempt is counted. Never panics: a panic of the handler is a failed
/// attempt.
pub(super) async fn attempt<B: Backend>(
    bus: Bus<B>,
    subscription: Arc<Subscription<B>>,
    delivery: Delivery,
) -> Outcome {
    let span = info_span!(
        telemetry::HANDLE_SPAN,
        subscription = &*delivery.subscription,
        event = &*delivery.event,
        event_id = %delivery.event_id,
        attempt = delivery.attempt
    );
    let begun = Begun::default();
    let handle = handle(&bus, &subscription.handler, delivery, begun.clone()).instrument(span);
    watch(&subscription, begun, handle).await
}

/// Handles a range's events in one transaction, once. The events of each handler that follow one another are a call.
pub(super) async fn attempt_batch<B: Backend>(
    bus: Bus<B>,
    subscription: Arc<Subscription<B>>,
    lease: i64,
    batches: Vec<(B::InTx, Vec<Delivery>)>,
) -> Outcome {
    let events: usize = batches.iter().map(|(_, deliveries)| deliveries.len()).sum();
    let span = info_span!(telemetry::HANDLE_SPAN, subscription = subscription.name, events);
    let begun = Begun::default();
    let handle = bus.store().in_tx_range(lease, batches, begun.clone());
    let handle = async { Ok(committed(&bus, handle.await?)) }.instrument(span);
    watch(&subscription, begun, handle).await
}

async fn watch<B: Backend>(
    subscription: &Subscription<B>,
    begun: Begun,
    handle: impl Future<Output = Result<Outcome, Failure>>,
) -> Outcome {
    let started = Instant::now();
    let limit = subscription.config.timeout;
    let outcome = match timeout(limit, AssertUnwindSafe(handle).catch_unwind()).await {
        Ok(Ok(Ok(outcome))) => outcome,
        Ok(Ok(Err(failure @ Failure::Temporary(_)))) => Outcome::Failed(failure.describe()),
        Ok(Ok(Err(failure @ Failure::Permanent(_)))) => Outcome::Hopeless(failure.describe()),
        Ok(Err(panic)) => Outcome::Failed(format!("the handler panicked: {}", message(panic.as_ref()))),
        Err(_) => Outcome::Failed(format!("the handler did not end within {limit:?}")),
    };
    if !begun.get() {
        return match outcome {
            Outcome::Failed(error) => Outcome::Unbegun(error),
            other => other,
        };
    }
    histogram!(telemetry::HANDLE_DURATION, telemetry::SUBSCRIPTION => subscription.name.clone())
        .record(started.elapsed().as_secs_f64());
    outcome
}

async fn handle<B: Backend>(
    bus: &Bus<B>,
    handler: &Handler<B>,
    delivery: Delivery,
    begun: Begun,
) -> Result<Outcome, Failure> {
    match (handler, delivery.held) {
        (Handler::AtLeastOnce(handler), _) => {
            begun.set();
            handler(delivery).await?;
            Ok(Outcome::Handled)
        }
        (Handler::InTx(handler), Held::Row { id, lease }) => {
            Ok(committed(bus, bus.store().in_tx(handler, (id, lease), delivery, begun).await?))
        }
        (Handler::InTx(handler), Held::Range(lease)) => {
            let batches = vec![(handler.clone(), vec![delivery])];
            Ok(committed(bus, bus.store().in_tx_range(lease, batches, begun).await?))
        }
    }
}

fn committed<B: Backend>(bus: &Bus<B>, held: bool) -> Outcome {
    if !held {
        return Outcome::Lost;
    }
    // The handler may have published, and only now is there something to find.
    bus.wake();
    Outcome::Committed
}

pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    storable(text.unwrap_or("with something other than a message"))
}
