use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::backends::Backend;
use crate::dead::DeadJob;
use crate::deadline::{in_time, within};
use crate::inspect::Counts;
use crate::job::{NewJob, Pushed};
use crate::push::Pushes;
use crate::trace::Traceparent;
use crate::wakeups::{Notice, Wakeups};
use crate::{Error, Job, JobId, PushOptions, telemetry};

/// Where jobs wait: a few tables of a database. A cheap handle; clones share everything.
///
/// One `Queue` holds any number of named queues ([`Job::QUEUE`]); a worker serves those of its handlers.
#[derive(Debug, Clone)]
pub struct Queue<B> {
    pub(crate) store: B,
    pub(crate) wakeups: Arc<Wakeups>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) pushes: Arc<Pushes>,
    pub(crate) traceparent: Traceparent,
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
    /// Jobs that wait for other jobs to end.
    pub blocked: u64,
    /// Jobs that will not run again by themselves.
    pub dead: u64,
}

impl QueueStats {
    /// Jobs that are still to be done: ready, scheduled, running or blocked.
    pub fn live(&self) -> u64 {
        self.ready + self.scheduled + self.running + self.blocked
    }
}

/// How long [`Queue::migrate`] may take, the wait for another process that migrates included.
const MIGRATION: Duration = Duration::from_secs(5 * 60);

impl<B: Backend> Queue<B> {
    pub(crate) fn over(store: B, wakeups: Arc<Wakeups>) -> Self {
        Queue {
            store,
            wakeups,
            counts: Arc::default(),
            pushes: Arc::default(),
            traceparent: Traceparent::default(),
        }
    }

    /// Stores with each job the [W3C traceparent](https://www.w3.org/TR/trace-context/) that this function answers, so
    /// that the span of its attempts can be linked to whoever pushed it. Set it before the queue is cloned.
    ///
    /// It is called at each push. What is longer than 256 bytes, or is not printable ASCII, is left out.
    ///
    /// ```
    /// # use greenwave_jobs::{Error, Queue};
    /// # fn current_traceparent() -> Option<String> { None }
    /// # fn f() -> Result<(), Error> {
    /// let queue = Queue::sqlite("jobs.db")?.with_traceparent(current_traceparent);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_traceparent(mut self, current: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.traceparent = Traceparent::new(current);
        self
    }

    /// The job as it is stored, with the trace of whoever pushes it.
    pub(crate) fn encode<J: Job>(&self, job: &J, options: &PushOptions) -> Result<NewJob, Error> {
        let mut job = NewJob::encode(job, options)?;
        job.trace = self.traceparent.current();
        Ok(job)
    }

    pub(crate) fn encode_all<J: Job>(&self, jobs: &[J]) -> Result<Vec<NewJob>, Error> {
        let trace = self.traceparent.current();
        let encode = |job: &J| {
            let mut job = NewJob::encode(job, &PushOptions::default())?;
            job.trace.clone_from(&trace);
            Ok(job)
        };
        jobs.iter().map(encode).collect()
    }

    /// Creates or updates the queue's tables, all named `greenwave_jobs…`.
    ///
    /// Call it at every start: it does nothing when all is in place, and any number of processes may call it at once.
    /// One waits for the other, for five minutes at most; then the answer is [`Error::Timeout`].
    ///
    /// Workers of an older release go on with newer tables, for migrations only add. But they do not know of what was
    /// added: they run jobs of paused and limited queues, keep no results, wake no job that waits for theirs, and what
    /// they make ready may start up to a minute late. So let the last of them stop before you use what is new.
    /// On PostgreSQL a table cannot be changed while a transaction that uses it is open; the migration waits for that,
    /// and holds others up for a second at a time at most.
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
    /// Callers that push at the same time share commits: what comes while one is under way goes with the next, and
    /// each is answered when its own job is on disk. A lone caller waits for nothing more than its own commit, and a
    /// job that the database refuses fails alone.
    ///
    /// # Cancel safety
    /// Dropped, or after an error of the database, the job may or may not be stored: pushing again may run it twice.
    pub async fn push<J: Job>(&self, job: &J) -> Result<Pushed, Error> {
        self.push_with(job, PushOptions::default()).await
    }

    /// As [`push`](Self::push), with a delay or a priority.
    pub async fn push_with<J: Job>(&self, job: &J, options: PushOptions) -> Result<Pushed, Error> {
        let job = self.encode(job, &options)?;
        in_time(self.store.admit(J::QUEUE, 1)).await?;
        self.push_gathered(job).await
    }

    /// Stores many jobs of a type in one statement: all of them, or none. Answers with their ids in order.
    ///
    /// A batch is held in memory as JSON, so push a million jobs in batches of some thousands.
    pub async fn push_many<J: Job>(&self, jobs: &[J]) -> Result<Vec<Pushed>, Error> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let encoded = self.encode_all(jobs)?;
        in_time(self.store.admit(J::QUEUE, encoded.len())).await?;
        let ids = in_time(self.store.push(encoded)).await?;
        telemetry::pushed(J::QUEUE, J::NAME, jobs.len());
        self.wake_queue(J::QUEUE);
        Ok(ids)
    }

    /// Wakes the workers. Call it after the commit of a transaction that used `push_in`.
    ///
    /// Nothing is lost without it: a worker then finds the job at its next poll.
    pub fn wake(&self) {
        self.tell(Notice::Ready(None));
    }

    pub(crate) fn wake_queue(&self, queue: &'static str) {
        self.tell(Notice::Ready(Some(queue.into())));
    }

    /// Tells the workers of this process, and other processes.
    pub(crate) fn tell(&self, notice: Notice) {
        self.wakeups.tell(&notice);
        self.store.announce(notice);
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
