//! One load per key: the first caller leads, the others wait for what it brings.
//!
//! The load belongs to a task of its own and not to the caller that happened to be first. A client that hangs up
//! would otherwise take the load with it, and the next in line would begin it again.

use std::{
    any::Any,
    future::{Future, poll_fn},
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::SetOnce,
    time::{Instant, timeout},
};

use crate::{LoadError, cache::Inner, invalidate::Claim, telemetry::Metrics};

/// A load that is under way, as those see it who wait for it.
pub(crate) struct Flight<V> {
    outcome: SetOnce<Outcome<V>>,
}

pub(crate) type Outcome<V> = Result<Option<Arc<V>>, Failure>;

/// A [`LoadError`] whose source's type is forgotten: a table of flights has one type, its callers have many.
pub(crate) enum Failure {
    Source(Arc<dyn Any + Send + Sync>),
    Panicked(Arc<str>),
    TimedOut(Duration),
    Aborted,
}

/// A caller's load, boxed: so the machinery is built once a cache, and not once a call.
pub(crate) type Load<V> = Pin<Box<dyn Future<Output = Result<Option<V>, Failure>> + Send>>;

impl<V> Flight<V> {
    pub(crate) fn new() -> Flight<V> {
        Flight { outcome: SetOnce::new() }
    }

    pub(crate) async fn outcome(&self) -> &Outcome<V> {
        self.outcome.wait().await
    }
}

impl Failure {
    /// `None` when the source's error is not an `E`: it came from a load with another type of errors.
    pub(crate) fn to_error<E: Send + Sync + 'static>(&self) -> Option<LoadError<E>> {
        Some(match self {
            Failure::Source(error) => LoadError::Source(Arc::clone(error).downcast().ok()?),
            Failure::Panicked(message) => LoadError::Panicked(Arc::clone(message)),
            Failure::TimedOut(after) => LoadError::TimedOut(*after),
            Failure::Aborted => LoadError::Aborted,
        })
    }

    pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Failure {
        let message = match payload.downcast::<String>() {
            Ok(message) => Arc::from(*message),
            Err(payload) => Arc::from(payload.downcast_ref::<&str>().copied().unwrap_or("no message")),
        };
        Failure::Panicked(message)
    }
}

/// Boxes a caller's load. `load` itself runs here, on the leader, so that it may borrow what is the caller's.
pub(crate) fn boxed<V, E, F, Fut>(load: F) -> Load<V>
where
    V: 'static,
    E: Send + Sync + 'static,
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
{
    match catch_unwind(AssertUnwindSafe(load)) {
        Ok(load) => Box::pin(async move { load.await.map_err(|error| Failure::Source(Arc::new(error))) }),
        Err(payload) => {
            let failure = Failure::panicked(payload);
            Box::pin(async move { Err(failure) })
        }
    }
}

/// Brings the value of a key: from the remote, else by `load`.
pub(crate) async fn fly<K, V>(mut landing: Landing<K, V>, load: Load<V>)
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let cache = Arc::clone(&landing.cache);
    if let Some(remote) = &cache.remote
        && let Some(value) = remote.get(landing.claim.key()).await
    {
        cache.metrics.remote_hits.increment(1);
        landing.land(Ok(Some(Arc::new(value))));
        return;
    }

    let lease = match &cache.remote {
        Some(remote) => remote.lease(landing.claim.key()).await,
        None => None,
    };
    let started = Instant::now();
    let outcome = within(cache.load_timeout, load).await;
    cache.metrics.load_duration.record(started.elapsed());
    match &outcome {
        Ok(_) => cache.metrics.misses.increment(1),
        Err(_) => cache.metrics.errors.increment(1),
    }
    let loaded = outcome.map(|value| value.map(Arc::new));
    let value = loaded.as_ref().ok().cloned().flatten();
    landing.land(loaded);

    // The callers have their answer; the remote may take its time.
    if let (Some(remote), Some(lease)) = (&cache.remote, lease) {
        let value = value.filter(|_| landing.claim.is_current());
        remote.fill(landing.claim.key(), value.as_deref(), lease).await;
    }
}

async fn within<V>(limit: Duration, mut load: Load<V>) -> Result<Option<V>, Failure> {
    let caught = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(payload) => Err(Failure::panicked(payload)).into(),
    });
    timeout(limit, caught).await.unwrap_or(Err(Failure::TimedOut(limit)))
}

/// The leader's duty to tell those who wait, which holds whatever becomes of its task.
pub(crate) struct Landing<K: Hash + Eq + Clone, V> {
    pub(crate) cache: Arc<Inner<K, V>>,
    pub(crate) claim: Claim<K, V>,
    pub(crate) flight: Arc<Flight<V>>,
}

impl<K: Hash + Eq + Clone, V> Landing<K, V> {
    /// Stores what was loaded, unless it was invalidated meanwhile, and tells those who wait.
    fn land(&mut self, outcome: Outcome<V>) {
        let memory = &self.cache.memory;
        let key = self.claim.key();
        let removed = self.claim.land(&self.flight, || match &outcome {
            Ok(Some(value)) => Some(memory.insert(key.clone(), Arc::clone(value))),
            Ok(None) => Some(memory.remove(key)),
            Err(_) => None,
        });
        if removed.is_none() && matches!(outcome, Ok(Some(_))) {
            self.cache.metrics.discarded.increment(1);
        }
        // Fails only for a flight that has landed.
        let _ = self.flight.outcome.set(outcome);
    }
}

impl<K: Hash + Eq + Clone, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        if !self.flight.outcome.initialized() {
            self.cache.metrics.errors.increment(1);
            self.land(Err(Failure::Aborted));
        }
    }
}

/// Counts and translates what a waiter was told; `None` as in [`Failure::to_error`].
pub(crate) fn received<V, E: Send + Sync + 'static>(
    outcome: &Outcome<V>,
    metrics: &Metrics,
) -> Option<Result<Option<Arc<V>>, LoadError<E>>> {
    match outcome {
        Ok(value) => {
            metrics.coalesced.increment(1);
            Some(Ok(value.clone()))
        }
        Err(failure) => {
            let error = failure.to_error()?;
            metrics.errors.increment(1);
            Some(Err(error))
        }
    }
}
