use std::fmt;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// A piece of work that can wait: a serde struct with a name.
///
/// The struct travels as JSON, so a field may be added later if it has `#[serde(default)]`: jobs pushed before
/// the change still decode. A payload that no longer decodes goes to the dead jobs with its reason.
///
/// ```
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendWelcomeEmail {
///     user_id: u64,
/// }
///
/// impl greenwave_jobs::Job for SendWelcomeEmail {
///     const NAME: &'static str = "send-welcome-email";
///     const QUEUE: &'static str = "mail";
///     const MAX_ATTEMPTS: u32 = 5;
/// }
/// ```
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The name under which the job is stored. Renaming it orphans the jobs already pushed.
    const NAME: &'static str;

    /// The queue it waits in. All workers of a queue must handle every job that is pushed to it.
    const QUEUE: &'static str = "default";

    /// How often it is tried before it is dead; at least 1.
    const MAX_ATTEMPTS: u32 = 20;
}

/// Identifies a pushed job within its queue's database; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(i64);

impl JobId {
    /// The number in the `id` column.
    pub fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for JobId {
    fn from(id: i64) -> Self {
        JobId(id)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a job is pushed; the default runs it as soon as a worker is free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Wait at least this long, by the database's clock. Default: not at all.
    pub delay: Option<Duration>,
    /// Lower runs sooner among the jobs that are ready; equal priorities run in the order of their ids. Default: 0.
    pub priority: i16,
}

/// What a handler knows about the attempt it makes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobContext {
    /// The job's id: the same in every attempt, so a good key for making effects once.
    pub id: JobId,
    /// The number of this attempt; the first is 1. An attempt cut short by a crash or a stop is not counted.
    pub attempt: u32,
    /// The attempt after which a failure is final.
    pub max_attempts: u32,
    /// Fires when the worker is asked to stop (the handler then has the worker's grace to end by itself), and when
    /// the attempt is over for any reason, so that what it spawned may end with it.
    ///
    /// An error that a handler returns after this fired is no failure: the job goes back to its queue as it was.
    pub cancellation: CancellationToken,
}

/// A job as a backend stores it.
#[derive(Debug)]
pub struct NewJob {
    pub queue: &'static str,
    pub name: &'static str,
    pub payload: String,
    pub priority: i16,
    pub max_attempts: i32,
    pub delay_ms: i64,
}

impl NewJob {
    pub(crate) fn encode<J: Job>(job: &J, options: &PushOptions) -> Result<Self, Error> {
        let payload = serde_json::to_string(job).map_err(|source| Error::Encode { job: J::NAME, source })?;
        Ok(NewJob {
            queue: J::QUEUE,
            name: J::NAME,
            payload,
            priority: options.priority,
            max_attempts: i32::try_from(J::MAX_ATTEMPTS).unwrap_or(i32::MAX).max(1),
            delay_ms: millis(options.delay.unwrap_or_default()),
        })
    }
}

/// Whole milliseconds, rounded up; a century at most, which both databases can add to a date.
pub(crate) fn millis(duration: Duration) -> i64 {
    const CENTURY: i64 = 100 * 366 * 24 * 3600 * 1000;
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(CENTURY).min(CENTURY)
}
