//! Handlers in the process itself, for those who want no durability.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use metrics::counter;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::{BoxError, Event, error::describe, inbox::attempt::message, telemetry};

type Shared = Arc<dyn Any + Send + Sync>;
type Erased = Arc<dyn Fn(Shared) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync>;

/// The in-process handlers of a bus, and what of them runs.
#[derive(Default)]
pub(crate) struct Local {
    handlers: RwLock<HashMap<TypeId, Vec<Erased>>>,
    running: TaskTracker,
}

impl Local {
    pub(crate) fn add<E, F, Fut, R>(&self, handler: F)
    where
        E: Event,
        F: Fn(Arc<E>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), R>> + Send + 'static,
        R: Into<BoxError>,
    {
        let handler: Erased = Arc::new(move |event: Shared| match event.downcast::<E>() {
            Ok(event) => {
                // Called in the task, so that a panic before the first await is caught like any other.
                let handled = handler(event);
                Box::pin(async move { handled.await.map_err(Into::into) })
            }
            Err(_) => Box::pin(async { Ok(()) }),
        });
        let mut handlers = self.handlers.write().unwrap_or_else(PoisonError::into_inner);
        handlers.entry(TypeId::of::<E>()).or_default().push(handler);
    }

    /// Starts the handlers of the event, each in a task of its own, as far as there are permits.
    pub(crate) fn dispatch<E: Event>(&self, event: E, permits: &Arc<Semaphore>, limit: Duration) {
        let handlers = {
            let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
            handlers.get(&TypeId::of::<E>()).cloned()
        };
        let Some(handlers) = handlers else { return };
        let event: Shared = Arc::new(event);
        for handler in handlers {
            let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
                warn!(event = E::NAME, "too many in-process handlers run: an event is not handled");
                count(E::NAME, "skipped");
                continue;
            };
            let event = Arc::clone(&event);
            self.running.spawn(async move {
                let _permit = permit;
                let handled = AssertUnwindSafe(async move { handler(event).await }).catch_unwind();
                let error = match timeout(limit, handled).await {
                    Ok(Ok(Ok(()))) => return count(E::NAME, "completed"),
                    Ok(Ok(Err(error))) => describe(error.as_ref()),
                    Ok(Err(panic)) => format!("the handler panicked: {}", message(panic.as_ref())),
                    Err(_) => format!("the handler did not end within {limit:?}"),
                };
                warn!(event = E::NAME, error, "an in-process handler failed");
                count(E::NAME, "failed");
            });
        }
    }

    /// Waits until none runs.
    pub(crate) async fn idle(&self) {
        self.running.close();
        self.running.wait().await;
        self.running.reopen();
    }
}

fn count(event: &'static str, outcome: &'static str) {
    counter!(telemetry::IN_PROCESS, telemetry::EVENT => event, telemetry::OUTCOME => outcome).increment(1);
}
