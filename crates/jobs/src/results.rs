use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::backends::SqlBackend;
use crate::backends::flows::{Found, FoundBefore};
use crate::deadline::in_time;
use crate::{DeadReason, Error, Job, JobContext, JobId, Queue};

/// Where a job stands, and what came of it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome<T> {
    /// It waits for a worker, for its time, for its next attempt or for other jobs.
    Waiting,
    /// A worker runs it.
    Running {
        /// What its handler last reported, if it reports.
        progress: Option<serde_json::Value>,
    },
    /// It is done, and this is what its handler returned.
    Completed(T),
    /// It will not run again by itself.
    Dead {
        /// Why.
        reason: DeadReason,
        /// What its last attempt said.
        error: Option<String>,
    },
    /// There is no such job, or it was completed and is [kept](Job::KEEP) no longer.
    Unknown,
}

impl<T> Outcome<T> {
    /// True if it is completed, dead or unknown: if waiting is of no use.
    pub fn is_final(&self) -> bool {
        matches!(self, Outcome::Completed(_) | Outcome::Dead { .. } | Outcome::Unknown)
    }
}

/// The ended jobs that a job waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct Results {
    ended: Vec<EndedJob>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EndedJob {
    /// Its id.
    pub id: JobId,
    /// Its [`Job::NAME`].
    pub name: String,
    /// What came of it.
    pub outcome: Outcome<serde_json::Value>,
}

impl Results {
    /// What the completed jobs of a type returned, in the order in which they were added.
    ///
    /// # Errors
    /// [`Error::Result`] if one of them is no `T`.
    pub fn of<J: Job, T: DeserializeOwned>(&self) -> Result<Vec<T>, Error> {
        let results = self.ended.iter().filter(|ended| ended.name == J::NAME);
        let results = results.filter_map(|ended| match &ended.outcome {
            Outcome::Completed(value) => Some((ended.id, value)),
            _ => None,
        });
        results
            .map(|(job, value)| T::deserialize(value).map_err(|source| Error::Result { job, source }))
            .collect()
    }

    /// All of them, in the order in which they were added: the completed ones that are [kept](Job::KEEP), and if the
    /// job runs anyway, the dead ones.
    pub fn all(&self) -> &[EndedJob] {
        &self.ended
    }
}

/// The pauses between two looks at a job that somebody waits for.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl<B: SqlBackend> Queue<B> {
    /// Where a job stands, and its result once it is completed.
    ///
    /// A result is kept for [`Job::KEEP`], whose default is not at all: then a completed job is
    /// [unknown](Outcome::Unknown). A handler that returns `()` has the result `()`.
    ///
    /// # Errors
    /// [`Error::Result`] if the job's result is no `T`.
    pub async fn result<T: DeserializeOwned>(&self, id: JobId) -> Result<Outcome<T>, Error> {
        let found = in_time(self.store.find(id)).await?;
        found.map_or(Ok(Outcome::Unknown), |found| read(id, found))
    }

    /// Waits until a job is completed or dead, for so long at most; then the answer is where it stands.
    ///
    /// A job that ends in this process is seen at once; otherwise this looks after 5 ms, and then less and less often,
    /// down to twice a second.
    ///
    /// # Errors
    /// As for [`result`](Self::result).
    ///
    /// # Cancel safety
    /// It may be dropped at any time.
    pub async fn wait_for<T: DeserializeOwned>(
        &self,
        id: JobId,
        limit: Duration,
    ) -> Result<Outcome<T>, Error> {
        let waiter = self.wakeups.waiters.wait_for(id);
        let until = Instant::now().checked_add(limit);
        let mut pause = FIRST_PAUSE;
        loop {
            // From here on it hears of the end, so that none slips between the look and the wait.
            let mut ended = pin!(waiter.ended.notified());
            ended.as_mut().enable();
            let outcome = self.result(id).await?;
            let left = until.map_or(LONGEST_PAUSE, |until| until.saturating_duration_since(Instant::now()));
            if outcome.is_final() || left.is_zero() {
                return Ok(outcome);
            }
            timeout(pause.min(left), ended).await.ok();
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl JobContext {
    /// The ended jobs that this one waited for in its [`Workflow`](crate::Workflow), with their results.
    ///
    /// Of a completed job there is something to read if its type is [kept](Job::KEEP), for so long.
    pub async fn results<B: SqlBackend>(&self, queue: &Queue<B>) -> Result<Results, Error> {
        let found = in_time(queue.store.find_before(self.id)).await?;
        let ended =
            |FoundBefore { id, name, found }| read(id, found).map(|outcome| EndedJob { id, name, outcome });
        Ok(Results { ended: found.into_iter().map(ended).collect::<Result<_, _>>()? })
    }
}

fn read<T: DeserializeOwned>(job: JobId, found: Found) -> Result<Outcome<T>, Error> {
    Ok(match found {
        Found::Waiting => Outcome::Waiting,
        Found::Running { progress } => {
            Outcome::Running { progress: progress.and_then(|json| serde_json::from_str(&json).ok()) }
        }
        Found::Completed { result } => {
            let result = serde_json::from_str(result.as_deref().unwrap_or("null"));
            Outcome::Completed(result.map_err(|source| Error::Result { job, source })?)
        }
        Found::Dead { reason, error } => Outcome::Dead { reason: DeadReason::from_code(&reason), error },
    })
}

/// Those in this process who wait for jobs to end.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    by_job: Mutex<HashMap<JobId, Weak<Waiter>>>,
}

/// One job that is waited for; all who wait for it share this.
#[derive(Debug)]
pub(crate) struct Waiter {
    ended: Notify,
}

impl Waiters {
    fn wait_for(&self, job: JobId) -> Arc<Waiter> {
        let mut by_job = self.lock();
        if let Some(waiter) = by_job.get(&job).and_then(Weak::upgrade) {
            return waiter;
        }
        // What nobody waits for any more goes when the map would grow.
        if by_job.len() == by_job.capacity() {
            by_job.retain(|_, waiter| waiter.strong_count() > 0);
        }
        let waiter = Arc::new(Waiter { ended: Notify::new() });
        by_job.insert(job, Arc::downgrade(&waiter));
        waiter
    }

    /// Tells those who wait for these jobs.
    pub(crate) fn ended(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut by_job = self.lock();
        for job in jobs {
            if by_job.is_empty() {
                return;
            }
            if let Some(waiter) = by_job.remove(&job).and_then(|waiter| waiter.upgrade()) {
                waiter.ended.notify_waiters();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<JobId, Weak<Waiter>>> {
        self.by_job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
