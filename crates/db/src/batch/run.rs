//! The task that runs batches, one after the other, until none waits.

use std::{collections::HashMap, hash::Hash, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::{Answer, BatchError, Shared, queue::Batch};
use crate::{error::panic_message, telemetry};

/// With so many single keys failed and nothing loaded, the fault isn't in a key.
const HOPELESS: usize = 4;

/// One of the `max_in_flight` places; gives itself back when its task ends, however that ends.
pub(super) struct Slot<K, V, E> {
    shared: Arc<Shared<K, V, E>>,
    ended: bool,
}

impl<K, V, E> Slot<K, V, E> {
    pub(super) fn new(shared: Arc<Shared<K, V, E>>) -> Self {
        Self { shared, ended: false }
    }
}

impl<K, V, E> Slot<K, V, E>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + 'static,
    E: Send + Sync + 'static,
{
    pub(super) async fn run(mut self, first: Batch<K, V, E>) {
        let mut next = Some(first);
        while let Some(batch) = next {
            let span = batch.span.clone();
            self.shared.run(batch).instrument(span).await;
            next = self.shared.queue.next();
        }
        self.ended = true;
    }
}

impl<K, V, E> Drop for Slot<K, V, E> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.queue.abandon();
        }
    }
}

impl<K, V, E> Shared<K, V, E>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + 'static,
    E: Send + Sync + 'static,
{
    /// Answers every caller of the batch. A part that fails is halved, so that a bad key ends up alone after a
    /// number of calls that grows with the logarithm of the batch.
    async fn run(&self, mut batch: Batch<K, V, E>) {
        telemetry::batch(self.name, batch.keys.len());
        let deadline = Instant::now() + self.config.load_timeout;
        let mut parts = vec![std::mem::take(&mut batch.keys)];
        let mut loaded_any = false;
        let mut failed_alone = 0;
        while let Some(mut keys) = parts.pop() {
            let error = match self.call(keys.clone(), deadline).await {
                Ok(found) => {
                    loaded_any = true;
                    batch.answer(keys, found);
                    continue;
                }
                Err(error) => error,
            };
            failed_alone += usize::from(keys.len() == 1);
            let hopeless = !loaded_any && failed_alone >= HOPELESS;
            if hopeless || matches!(error, BatchError::TimedOut { .. }) {
                batch.fail(keys.into_iter().chain(parts.drain(..).flatten()), &error);
            } else if keys.len() == 1 {
                batch.fail(keys, &error);
            } else {
                parts.push(keys.split_off(keys.len() / 2));
                parts.push(keys);
            }
        }
    }

    async fn call(&self, keys: Vec<K>, deadline: Instant) -> Result<HashMap<K, V>, BatchError<E>> {
        let loader = self.name;
        // The function is called inside, so that its own panic is caught as well as its future's.
        let load = AssertUnwindSafe(async { (self.load)(keys).await }).catch_unwind();
        match timeout_at(deadline, load).await {
            Ok(Ok(Ok(found))) => Ok(found),
            Ok(Ok(Err(error))) => Err(BatchError::Load { loader, source: Arc::new(error) }),
            Ok(Err(panic)) => Err(BatchError::Panicked { loader, message: panic_message(&*panic).into() }),
            Err(_) => Err(BatchError::TimedOut { loader, timeout: self.config.load_timeout }),
        }
    }
}

impl<K: Hash + Eq, V: Clone, E> Batch<K, V, E> {
    fn answer(&mut self, keys: Vec<K>, mut found: HashMap<K, V>) {
        for key in keys {
            let value = found.remove(&key);
            self.send(&key, Ok(value));
        }
    }

    fn fail(&mut self, keys: impl IntoIterator<Item = K>, error: &BatchError<E>) {
        for key in keys {
            self.send(&key, Err(error.clone()));
        }
    }

    /// A caller who has gone meanwhile is no error.
    fn send(&mut self, key: &K, answer: Answer<V, E>) {
        let mut waiters = self.waiters.remove(key).unwrap_or_default();
        let last = waiters.pop();
        for waiter in waiters {
            let _ = waiter.send(answer.clone());
        }
        if let Some(waiter) = last {
            let _ = waiter.send(answer);
        }
    }
}
