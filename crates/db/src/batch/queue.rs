//! Keys that wait for a batch, and how many batches run.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;
use tracing::Span;

use super::Answer;
use crate::{
    BatchConfig,
    query_stats::{Scope, Watcher},
};

type Waiters<V, E> = Vec<oneshot::Sender<Answer<V, E>>>;

/// Too many callers wait.
pub(super) struct Full;

/// Keys that go together, and who waits for each.
pub(super) struct Batch<K, V, E> {
    pub(super) keys: Vec<K>,
    pub(super) waiters: HashMap<K, Waiters<V, E>>,
    pub(super) origin: Origin,
}

/// Of a batch's first caller.
pub(super) struct Origin {
    pub(super) span: Span,
    /// The test that watches it.
    pub(super) watcher: Option<Arc<Watcher>>,
}

impl Origin {
    fn here() -> Self {
        let watcher = Scope::current().and_then(|scope| scope.watcher().cloned());
        Self { span: Span::current(), watcher }
    }
}

pub(super) struct Queue<K, V, E> {
    max_batch: usize,
    max_in_flight: usize,
    max_queued: usize,
    state: Mutex<State<K, V, E>>,
}

/// Invariant: keys wait only while every slot is in use, so a free slot means an empty queue.
struct State<K, V, E> {
    order: VecDeque<K>,
    entries: HashMap<K, Entry<V, E>>,
    callers: usize,
    running: usize,
}

struct Entry<V, E> {
    waiters: Waiters<V, E>,
    origin: Origin,
}

impl<K: Hash + Eq + Clone, V, E> Queue<K, V, E> {
    pub(super) fn new(config: &BatchConfig) -> Self {
        Self {
            max_batch: config.max_batch.max(1),
            max_in_flight: config.max_in_flight.max(1),
            max_queued: config.max_queued,
            state: Mutex::new(State {
                order: VecDeque::new(),
                entries: HashMap::new(),
                callers: 0,
                running: 0,
            }),
        }
    }

    /// Queues a caller. If a slot is free, takes it and returns the batch to run in it.
    pub(super) fn push(
        &self,
        key: K,
        waiter: oneshot::Sender<Answer<V, E>>,
    ) -> Result<Option<Batch<K, V, E>>, Full> {
        let mut state = self.lock();
        let free = state.running < self.max_in_flight;
        if !free && state.callers >= self.max_queued {
            return Err(Full);
        }
        state.callers += 1;
        match state.entries.get_mut(&key) {
            Some(entry) => entry.waiters.push(waiter),
            None => {
                state.order.push_back(key.clone());
                state.entries.insert(key, Entry { waiters: vec![waiter], origin: Origin::here() });
            }
        }
        if !free {
            return Ok(None);
        }
        state.running += 1;
        Ok(state.take(self.max_batch))
    }

    /// The next batch for a slot that has ended one; `None` gives the slot back.
    pub(super) fn next(&self) -> Option<Batch<K, V, E>> {
        let mut state = self.lock();
        let batch = state.take(self.max_batch);
        if batch.is_none() {
            state.running -= 1;
        }
        batch
    }
}

impl<K, V, E> Queue<K, V, E> {
    /// Gives back a slot whose task died. When it was the last, nobody is left to run what waits: let go of it.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.running -= 1;
        let orphans = if state.running == 0 {
            state.order.clear();
            state.callers = 0;
            mem::take(&mut state.entries)
        } else {
            HashMap::new()
        };
        drop(state);
        drop(orphans); // Wakes their callers: not under the lock.
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V, E>> {
        // Poison comes only from a panic in a key's own `Hash`, `Eq` or `Clone`; other keys are unharmed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, V, E> State<K, V, E> {
    /// The oldest keys that somebody still waits for.
    fn take(&mut self, max: usize) -> Option<Batch<K, V, E>> {
        let mut batch: Option<Batch<K, V, E>> = None;
        while batch.as_ref().is_none_or(|batch| batch.keys.len() < max) {
            let Some(key) = self.order.pop_front() else { break };
            let Some(mut entry) = self.entries.remove(&key) else { continue };
            self.callers = self.callers.saturating_sub(entry.waiters.len());
            entry.waiters.retain(|waiter| !waiter.is_closed());
            if entry.waiters.is_empty() {
                continue;
            }
            let batch = batch.get_or_insert_with(|| Batch {
                keys: Vec::new(),
                waiters: HashMap::new(),
                origin: entry.origin,
            });
            batch.keys.push(key.clone());
            batch.waiters.insert(key, entry.waiters);
        }
        batch
    }
}
