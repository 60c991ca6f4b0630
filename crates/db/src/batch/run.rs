//! The task that runs batches, one after the other, until none waits.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use super::{Answer, BatchError, Shared, queue::Batch};
use crate::{error::panic_message, query_stats::Scope, telemetry};

/// So many bad keys are found wherever in the batch they are; with more, the fault may not be in a key.
const BAD_KEYS: u32 = 4;
/// This part of `load_timeout` may go into calls that fail. In an outage each takes its time to fail, and to ask
/// again only keeps the callers waiting.
const FAILING_PART: u32 = 8;

/// How much longer to look for the keys at fault.
struct Search {
    failures: u32,
    max_failures: u32,
    failing: Duration,
    max_failing: Duration,
}

impl Search {
    /// After a call with so many keys failed, which took `failing`.
    fn new(keys: usize, failing: Duration, load_timeout: Duration) -> Self {
        // From the whole batch down to single keys; a bad key costs one failure in each size.
        let sizes = 1 + keys.next_power_of_two().ilog2();
        let max_failing = load_timeout / FAILING_PART;
        Self { failures: 1, max_failures: BAD_KEYS * sizes, failing, max_failing }
    }

    fn note_failure(&mut self, took: Duration) {
        self.failures += 1;
        self.failing += took;
    }

    fn is_over(&self) -> bool {
        self.failures >= self.max_failures || self.failing >= self.max_failing
    }
}

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
            let span = batch.origin.span.clone();
            let scope = Scope::loader(self.shared.name, batch.origin.watcher.clone());
            scope.run(self.shared.run(batch)).instrument(span).await;
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
    /// Answers every caller of the batch.
    async fn run(&self, mut batch: Batch<K, V, E>) {
        telemetry::batch(self.name, batch.keys.len());
        let keys = std::mem::take(&mut batch.keys);
        let begun = Instant::now();
        let deadline = begun + self.config.load_timeout;
        match self.call(keys.clone(), deadline).await {
            Ok(found) => batch.answer(keys, found),
            Err(error) => {
                let search = Search::new(keys.len(), begun.elapsed(), self.config.load_timeout);
                self.search(&mut batch, keys, error, search, deadline).await;
            }
        }
    }

    /// Finds the keys at fault: halves what failed until they are alone.
    ///
    /// All large parts go before the smaller ones, so that keys in good company are answered first: whenever the
    /// search ends, only those fail that it has not told apart from a bad one.
    async fn search(
        &self,
        batch: &mut Batch<K, V, E>,
        keys: Vec<K>,
        error: BatchError<E>,
        mut search: Search,
        deadline: Instant,
    ) {
        // Each part with what it failed with.
        let mut failed = VecDeque::from([(keys, error)]);
        while let Some((mut keys, error)) = failed.pop_front() {
            if keys.len() == 1 || search.is_over() {
                batch.fail(keys, &error);
                continue;
            }
            let right = keys.split_off(keys.len() / 2);
            for half in [keys, right] {
                let asked = Instant::now();
                match self.call(half.clone(), deadline).await {
                    Ok(found) => {
                        batch.answer(half, found);
                        continue;
                    }
                    // The search ran out of time, which says less than what began it.
                    Err(BatchError::TimedOut { .. }) => failed.push_back((half, error.clone())),
                    Err(error) => failed.push_back((half, error)),
                }
                search.note_failure(asked.elapsed());
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
