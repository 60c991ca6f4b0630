//! Single pushes become few commits: while one is under way, what is pushed meanwhile gathers, and goes with the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::backends::Backend;
use crate::deadline::in_time;
use crate::job::{NewJob, Pushed};
use crate::{Error, Queue, telemetry};

/// How many commits of pushes one queue has under way at once: while one waits for the disk, the next is on its way.
const MAX_FLIGHTS: usize = 2;

/// How many jobs one commit stores at most.
const MAX_BATCH: usize = 1000;

/// How many pushes may gather; beyond, callers wait for room.
const MAX_WAITING: usize = 10_000;

/// The pushes of a queue that gather.
#[derive(Debug)]
pub(crate) struct Pushes {
    state: Mutex<State>,
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Waiting>,
    flights: usize,
}

#[derive(Debug)]
struct Waiting {
    job: NewJob,
    answer: oneshot::Sender<Result<Pushed, Error>>,
    _room: OwnedSemaphorePermit,
}

impl Default for Pushes {
    fn default() -> Self {
        Pushes { state: Mutex::default(), room: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
}

impl Pushes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to a flight, if one is free.
    fn take_off<B: Backend>(queue: &Queue<B>) -> Option<Flight<'_, B>> {
        let mut state = queue.pushes.lock();
        (state.flights < MAX_FLIGHTS).then(|| {
            state.flights += 1;
            Flight { queue }
        })
    }
}

/// One of the few commits under way. When its end finds that pushes have gathered, a task takes it on for them; no
/// caller ever carries another's job, so that one who is dropped changes nothing for the others.
struct Flight<'a, B: Backend> {
    queue: &'a Queue<B>,
}

impl<B: Backend> Drop for Flight<'_, B> {
    fn drop(&mut self) {
        {
            let mut state = self.queue.pushes.lock();
            if state.waiting.is_empty() {
                state.flights -= 1;
                return;
            }
        }
        let relay = Relay { queue: self.queue.clone(), landed: false };
        // Without the lock: a runtime that is ending drops the task here and now. Outside one nobody can store them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // It ends by itself, when nothing waits any more.
            runtime.spawn(relay.run());
        }
    }
}

/// The task that stores what gathers, until nothing does.
struct Relay<B: Backend> {
    queue: Queue<B>,
    landed: bool,
}

impl<B: Backend> Drop for Relay<B> {
    fn drop(&mut self) {
        if !self.landed {
            // Its runtime ended. The callers of what waits hear that.
            let mut state = self.queue.pushes.lock();
            state.flights -= 1;
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            drop(waiting);
        }
    }
}

impl<B: Backend> Relay<B> {
    async fn run(mut self) {
        while let Some(batch) = self.take() {
            store(&self.queue, batch).await;
        }
    }

    /// The next batch; when there is none, the flight ends under the same lock, so that no push falls in between.
    fn take(&mut self) -> Option<Vec<Waiting>> {
        let mut state = self.queue.pushes.lock();
        if state.waiting.is_empty() {
            state.flights -= 1;
            self.landed = true;
            return None;
        }
        let size = state.waiting.len().min(MAX_BATCH);
        let rest = state.waiting.split_off(size);
        Some(std::mem::replace(&mut state.waiting, rest))
    }
}

impl<B: Backend> Queue<B> {
    /// Stores a job, alone if nothing else is being stored, and otherwise with what is pushed at the same time.
    pub(crate) async fn push_gathered(&self, job: NewJob) -> Result<Pushed, Error> {
        if let Some(_flight) = Pushes::take_off(self) {
            return self.push_alone(job).await;
        }
        let room = Arc::clone(&self.pushes.room).acquire_owned().await.map_err(|_| Error::Closed)?;
        let (answer, answered) = oneshot::channel();
        let alone = {
            let mut state = self.pushes.lock();
            // The flights may have ended since.
            if state.flights == 0 {
                state.flights += 1;
                Some((Flight { queue: self }, job))
            } else {
                state.waiting.push(Waiting { job, answer, _room: room });
                None
            }
        };
        match alone {
            Some((_flight, job)) => self.push_alone(job).await,
            None => answered.await.unwrap_or(Err(Error::Closed)),
        }
    }

    async fn push_alone(&self, job: NewJob) -> Result<Pushed, Error> {
        let (queue, name, ready) = (job.queue, job.name, job.is_ready());
        let pushed = in_time(self.store.push(vec![job])).await?.pop().ok_or(Error::Closed)?;
        telemetry::pushed(queue, name, 1);
        if ready {
            self.wake_queue(queue);
        }
        Ok(pushed)
    }
}

/// Stores a batch and answers its callers.
async fn store<B: Backend>(queue: &Queue<B>, mut batch: Vec<Waiting>) {
    // Whoever was dropped before its job was under way has nothing stored.
    batch.retain(|waiting| !waiting.answer.is_closed());
    if batch.is_empty() {
        return;
    }
    let jobs: Vec<NewJob> = batch.iter().map(|waiting| waiting.job.clone()).collect();
    match in_time(queue.store.push(jobs)).await {
        Ok(pushed) => {
            tell(queue, &batch);
            for (waiting, pushed) in batch.into_iter().zip(pushed) {
                waiting.answer.send(Ok(pushed)).ok();
            }
        }
        // Nothing was stored, and it may be one job's fault alone.
        Err(error) if error.is_refusal() => {
            for Waiting { job, answer, .. } in batch {
                answer.send(queue.push_alone(job).await).ok();
            }
        }
        // Whether it was stored is unknown, so that a second try might store it twice.
        Err(error) => {
            let error = Arc::new(error);
            for waiting in batch {
                waiting.answer.send(Err(Error::Batch(Arc::clone(&error)))).ok();
            }
        }
    }
}

/// Counts what was stored, and wakes the workers of its queues, each once.
fn tell<B: Backend>(queue: &Queue<B>, batch: &[Waiting]) {
    let mut kinds: Vec<(&'static str, &'static str, usize, bool)> = Vec::new();
    for Waiting { job, .. } in batch {
        match kinds.iter_mut().find(|kind| (kind.0, kind.1) == (job.queue, job.name)) {
            Some((_, _, count, ready)) => {
                *count += 1;
                *ready |= job.is_ready();
            }
            None => kinds.push((job.queue, job.name, 1, job.is_ready())),
        }
    }
    for (name, job, count, _) in &kinds {
        telemetry::pushed(name, job, *count);
    }
    let mut ready: Vec<_> = kinds.iter().filter(|kind| kind.3).map(|kind| kind.0).collect();
    ready.sort_unstable();
    ready.dedup();
    ready.into_iter().for_each(|name| queue.wake_queue(name));
}
