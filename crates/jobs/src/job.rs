use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::unique::{Unique, check_key};
use crate::{BoxError, Error};

/// A piece of work that can wait: a serde struct with a name, and what holds for all jobs of its kind.
///
/// The struct travels as JSON, so a field may be added later if it has `#[serde(default)]`: jobs pushed before
/// the change still decode. For greater changes raise [`VERSION`](Job::VERSION) and say in [`upcast`](Job::upcast)
/// how an older payload becomes a new one. A payload that no longer decodes goes to the dead jobs with its reason.
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

    /// The version of the struct's shape, stored with each job. Default: 1.
    const VERSION: u32 = 1;

    /// The queue it waits in. All workers of a queue must handle every job that is pushed to it.
    const QUEUE: &'static str = "default";

    /// How often it is tried before it is dead; at least 1.
    const MAX_ATTEMPTS: u32 = 20;

    /// 0 (most urgent) to 9. Default: 5.
    const PRIORITY: u8 = DEFAULT_PRIORITY;

    /// How long one attempt may take. Default: what the worker's config says.
    const TIMEOUT: Option<Duration> = None;

    /// How long a completed job, with its result, is kept. Default: not at all.
    const KEEP: Duration = Duration::ZERO;

    /// The key by which jobs of a queue share limits and take turns: a customer, a tenant. At most 1024 bytes; an empty
    /// one is none. Default: none.
    fn key(&self) -> Option<String> {
        None
    }

    /// What makes two jobs the same, so that the second is not stored. Default: nothing.
    fn unique(&self) -> Option<Unique> {
        None
    }

    /// How long to wait after failure number `failures` (the first is 1). Default (`None`): the worker's exponential
    /// backoff with jitter.
    fn retry_after(_failures: u32) -> Option<Duration> {
        None
    }

    /// Makes a job of a payload that was stored by an older version of the struct. Default: decodes it as it is.
    fn upcast(_version: u32, payload: serde_json::Value) -> Result<Self, BoxError> {
        serde_json::from_value(payload).map_err(BoxError::from)
    }
}

/// The middle of ten.
pub(crate) const DEFAULT_PRIORITY: u8 = 5;

/// The least urgent.
pub(crate) const MAX_PRIORITY: u8 = 9;

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

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Pushed {
    /// The job: the new one, or the one that exists already.
    pub id: JobId,
    /// True if a [unique](Job::unique) job existed, so that nothing was stored.
    pub existed: bool,
}

impl Pushed {
    pub(crate) fn new(id: impl Into<JobId>) -> Self {
        Pushed { id: id.into(), existed: false }
    }
}

/// How a job is pushed; the default runs it as soon as a worker is free, and as its type says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Wait at least this long, by the database's clock. Default: not at all.
    pub delay: Option<Duration>,
    /// Start at this time by the database's clock, or later; one that is past is now. `delay` is then not read.
    pub at: Option<SystemTime>,
    /// 0 to 9; lower runs sooner among the jobs that are ready; equals start in the order in which they became ready.
    /// Default: [`Job::PRIORITY`].
    pub priority: Option<u8>,
    /// Default: [`Job::MAX_ATTEMPTS`].
    pub max_attempts: Option<u32>,
    /// Default: [`Job::key`].
    pub key: Option<String>,
    /// Default: [`Job::unique`].
    pub unique: Option<Unique>,
}

/// When a job may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// In so many milliseconds; 0 is now.
    In(i64),
    /// At this time, in milliseconds since 1970.
    At(i64),
    /// When as many other jobs have ended.
    After(i32),
}

/// By this name serde does not see a reference, which it would borrow from what it reads.
type Name = &'static str;

/// A job as a backend stores it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewJob {
    #[serde(deserialize_with = "interned")]
    pub queue: Name,
    #[serde(deserialize_with = "interned")]
    pub name: Name,
    pub version: i32,
    pub payload: String,
    pub priority: i16,
    pub max_attempts: i32,
    pub start: Start,
    pub timeout_ms: Option<i64>,
    pub keep_ms: i64,
    pub key: Option<String>,
    pub unique: Option<Unique>,
    pub trace: Option<String>,
    /// True if other jobs wait for this one.
    pub awaited: bool,
}

impl NewJob {
    pub(crate) fn encode<J: Job>(job: &J, options: &PushOptions) -> Result<Self, Error> {
        let payload = serde_json::to_string(job).map_err(|source| Error::Encode { job: J::NAME, source })?;
        let max_attempts = options.max_attempts.unwrap_or(J::MAX_ATTEMPTS);
        // An empty key is none.
        let key = options.key.clone().or_else(|| job.key()).filter(|key| !key.is_empty());
        let unique = options.unique.clone().or_else(|| job.unique());
        // Checked here, for one that the database refused would take the whole batch with it.
        key.iter().try_for_each(|key| check_key(J::NAME, "key", key))?;
        unique.iter().try_for_each(|unique| unique.check(J::NAME))?;
        let start = match options.at {
            Some(at) => Start::At(millis(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())),
            None => Start::In(millis(options.delay.unwrap_or_default())),
        };
        Ok(NewJob {
            queue: J::QUEUE,
            name: J::NAME,
            version: i32::try_from(J::VERSION).unwrap_or(i32::MAX),
            payload,
            priority: options.priority.unwrap_or(J::PRIORITY).min(MAX_PRIORITY).into(),
            max_attempts: i32::try_from(max_attempts).unwrap_or(i32::MAX).max(1),
            start,
            timeout_ms: J::TIMEOUT.map(millis),
            keep_ms: millis(J::KEEP),
            key,
            unique,
            trace: None,
            awaited: false,
        })
    }

    /// As a schedule stores it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// True if it can start as soon as it is stored.
    pub(crate) fn is_ready(&self) -> bool {
        self.start == Start::In(0)
    }
}

/// A name of a queue or a job that comes from the database, as if it stood in the program: kept for good, once each.
/// There are few.
fn interned<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    static NAMES: Mutex<BTreeSet<Name>> = Mutex::new(BTreeSet::new());
    let name = String::deserialize(deserializer)?;
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = names.get(name.as_str()) {
        return Ok(name);
    }
    let name: Name = name.leak();
    names.insert(name);
    Ok(name)
}

/// Whole milliseconds, rounded up; a century at most, which both databases can add to a date.
pub(crate) fn millis(duration: Duration) -> i64 {
    const CENTURY: i64 = 100 * 366 * 24 * 3600 * 1000;
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(CENTURY).min(CENTURY)
}
