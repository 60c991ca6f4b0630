use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::backends::Backend;
use crate::dead::DeadJob;
use crate::deadline::{in_time, within};
use crate::inspect::Counts;
use crate::job::{NewJob, Pushed};
use crate::wakeups::Wakeups;
use crate::{Error, Job, JobId, PushOptions, telemetry};

/// Where jobs wait: a few tables of a database. A cheap handle; clones share everything.
///
/// One `Queue` holds any number of named queues ([`Job::QUEUE`]); a worker serves those of its handlers.
#[derive(Debug, Clone)]
pub struct Queue<B> {
    pub(crate) store: B,
    pub(crate) wakeups: Arc<Wakeups>,
    pub(crate) counts: Arc<Counts>,
}

/// How many jobs there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueStats {
    /// Jobs that could run now.
    pub ready: u64,
    /// Jobs that wait for their time: delayed, or between two attempts.
    pub scheduled: u64,
    /// Jobs that a worker holds.
    pub running: u64,
    /// Jobs that will not run again by themselves.
    pub dead: u64,
}

impl QueueStats {
    /// Jobs that are still to be done: ready, scheduled or running.
    pub fn live(&self) -> u64 {
        self.ready + self.scheduled + self.running
    }
}

/// How long [`Queue::migrate`] may take, the wait for another process that migrates included.
const MIGRATION: Duration = Duration::from_secs(5 * 60);

impl<B: Backend> Queue<B> {
    pub(crate) fn over(store: B) -> Self {
        Queue { store, wakeups: Arc::default(), counts: Arc::default() }
    }

    /// Creates or updates the queue's tables, all named `greenwave_jobs…`.
    ///
    /// Call it at every start: it does nothing when all is in place, and any number of processes may call it at once.
    /// One waits for the other, for five minutes at most; then the answer is [`Error::Timeout`].
    ///
    /// # Cancel safety
    /// Dropped, it has applied all of its migrations or none.
    pub async fn migrate(&self) -> Result<(), Error> {
        within(MIGRATION, self.store.migrate()).await
    }

    /// Stores a job; once this returns, the job will run at least once.
    ///
    /// To store it together with your own rows, or not at all, use `push_in` with your transaction's connection.
    ///
    /// # Cancel safety
    /// Dropped, or after an error of the database, the job may or may not be stored: pushing again may run it twice.
    pub async fn push<J: Job>(&self, job: &J) -> Result<Pushed, Error> {
        self.push_with(job, PushOptions::default()).await
    }

    /// As [`push`](Self::push), with a delay or a priority.
    pub async fn push_with<J: Job>(&self, job: &J, options: PushOptions) -> Result<Pushed, Error> {
        let job = NewJob::encode(job, &options)?;
        let ready = job.is_ready();
        let pushed = in_time(self.store.push(vec![job])).await?.pop().ok_or(Error::Closed)?;
        telemetry::pushed(J::QUEUE, J::NAME, 1);
        if ready {
            self.wake_queue(J::QUEUE);
        }
        Ok(pushed)
    }

    /// Stores many jobs of a type in one statement: all of them, or none. Answers with their ids in order.
    ///
    /// A batch is held in memory as JSON, so push a million jobs in batches of some thousands.
    pub async fn push_many<J: Job>(&self, jobs: &[J]) -> Result<Vec<Pushed>, Error> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let ids = in_time(self.store.push(encode_all(jobs)?)).await?;
        telemetry::pushed(J::QUEUE, J::NAME, jobs.len());
        self.wake_queue(J::QUEUE);
        Ok(ids)
    }

    /// Wakes the workers. Call it after the commit of a transaction that used `push_in`.
    ///
    /// Nothing is lost without it: a worker then finds the job at its next poll.
    pub fn wake(&self) {
        self.wakeups.wake(None);
        self.store.announce(None);
    }

    fn wake_queue(&self, queue: &'static str) {
        self.wakeups.wake(Some(queue));
        self.store.announce(Some(queue));
    }

    /// Counts the jobs, by reading them all: for a page that a person looks at, not for a tight loop.
    pub async fn stats(&self) -> Result<QueueStats, Error> {
        in_time(self.store.stats()).await
    }

    /// The dead jobs, the latest first, at most `limit`.
    pub async fn dead_jobs(&self, limit: usize) -> Result<Vec<DeadJob>, Error> {
        in_time(self.store.dead(limit)).await
    }

    /// Brings a dead job back with all its attempts before it; false if there is no such dead job.
    pub async fn retry_dead(&self, id: JobId) -> Result<bool, Error> {
        let found = in_time(self.store.retry_dead(id)).await?;
        if found {
            self.wake();
        }
        Ok(found)
    }
}

pub(crate) fn encode_all<J: Job>(jobs: &[J]) -> Result<Vec<NewJob>, Error> {
    jobs.iter().map(|job| NewJob::encode(job, &PushOptions::default())).collect()
}
