use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backends::SqlBackend;
use crate::deadline::in_time;
use crate::wakeups::Notice;
use crate::{Error, Queue};

/// What a named queue may do, in all workers and processes together; see [`Queue::set_limits`].
///
/// ```
/// use std::time::Duration;
/// use greenwave_jobs::{QueueLimits, Rate};
///
/// // Ten at a time, one a customer, and the mail provider takes 100 a minute.
/// let limits = QueueLimits {
///     max_running: Some(10),
///     max_running_per_key: Some(1),
///     rate: Some(Rate { jobs: 100, per: Duration::from_secs(60) }),
///     ..Default::default()
/// };
/// # let _ = limits;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueLimits {
    /// How many of its jobs are held by workers at once. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,

    /// The same among the jobs of one [key](crate::Job::key); jobs without a key are free of it. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running_per_key: Option<u32>,

    /// The same among the jobs of one [name](crate::Job::NAME). Default: no limit.
    ///
    /// A fetch reads past what waits of a name that is at its limit. Where that may be a hundred thousand jobs, give
    /// them a queue of their own, and that one `max_running`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub max_running_per_job: BTreeMap<String, u32>,

    /// How many may start in a time. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,

    /// How many may be ready before a push is refused with [`Error::Full`]. Default: no limit.
    ///
    /// A process counts the ready jobs at most four times a second, and adds what it pushed itself since. So several
    /// may go beyond the bound together, by what the others push within a quarter of a second; where a count takes
    /// longer than 12 ms, in twenty times what it takes. Delayed jobs, and those between two attempts, do not count. A
    /// [schedule](Queue::schedule) pushes into a full queue all the same: a tick is pushed once, and nobody is there to
    /// push it again. Where that is too much, make its job [unique](crate::Job::unique).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<u64>,
}

/// So many jobs in a time: a bucket of `jobs` tokens, which fills evenly in `per`, by the database's clock.
///
/// After a rest a whole bucket may start at once; so the most that starts within any `per` is twice `jobs`, and over a
/// long time it is `jobs` for each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How many; at least 1.
    pub jobs: u32,
    /// In how long: 1 ms to a year, in whole milliseconds.
    #[serde(rename = "per_ms", with = "milliseconds")]
    pub per: Duration,
}

/// As both databases can compute with.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(per: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(crate::job::millis(*per))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// What both databases can count to.
const MAX_COUNT: u64 = 1_000_000_000;

const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

impl QueueLimits {
    fn check(&self) -> Result<(), Error> {
        let rate = self.rate.map(|rate| rate.jobs);
        let own = [self.max_running, self.max_running_per_key, rate].into_iter().flatten();
        let mut counts = own.chain(self.max_running_per_job.values().copied()).map(u64::from);
        let fits = |count: u64| (1..=MAX_COUNT).contains(&count);
        if !counts.all(fits) || !self.max_waiting.is_none_or(fits) {
            return Err(Error::Invalid(format!(
                "a limit must be from 1 to {MAX_COUNT}; to stop a queue, pause it"
            )));
        }
        match self.rate {
            Some(Rate { per, .. }) if per < Duration::from_millis(1) || per > YEAR => {
                Err(Error::Invalid("the time of a rate must be from 1 ms to a year".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// True if a fetch has to look at them.
    #[cfg(feature = "sqlite")]
    pub(crate) fn hold_back(&self) -> bool {
        let running = self.max_running.or(self.max_running_per_key);
        running.is_some() || self.rate.is_some() || !self.max_running_per_job.is_empty()
    }
}

impl<B: SqlBackend> Queue<B> {
    /// Sets the limits of a named queue, for all workers and processes, until they are set anew or
    /// [cleared](Self::clear_limits). They are kept in the database.
    ///
    /// From the return of this call every fetch holds to them; what runs already goes on, and counts. A limit of zero
    /// is refused with [`Error::Invalid`].
    ///
    /// # Cancel safety
    /// Dropped, the limits are the old or the new.
    pub async fn set_limits(&self, queue: &str, limits: QueueLimits) -> Result<(), Error> {
        limits.check()?;
        in_time(self.store.set_limits(queue, Some(&limits))).await?;
        self.tell(Notice::Controls);
        Ok(())
    }

    /// Takes all limits from a named queue.
    pub async fn clear_limits(&self, queue: &str) -> Result<(), Error> {
        in_time(self.store.set_limits(queue, None)).await?;
        self.tell(Notice::Controls);
        Ok(())
    }

    /// The limits of a named queue; none by default.
    pub async fn limits(&self, queue: &str) -> Result<QueueLimits, Error> {
        Ok(in_time(self.store.limits(queue)).await?.unwrap_or_default())
    }

    /// Pauses a named queue in the whole fleet, until it is [resumed](Self::resume); restarts do not end it.
    ///
    /// A fetch that begins after this call has returned gets no job of the queue. Jobs that run go on. What a worker
    /// had fetched ahead, and not started, it gives back as soon as it knows of the pause: a worker of this
    /// process at once, others when they hear of it, or within a second. Pushes go on.
    pub async fn pause(&self, queue: &str) -> Result<(), Error> {
        in_time(self.store.set_paused(queue, true)).await?;
        self.tell(Notice::Controls);
        Ok(())
    }

    /// Lets a paused queue go on; its jobs start at once.
    pub async fn resume(&self, queue: &str) -> Result<(), Error> {
        in_time(self.store.set_paused(queue, false)).await?;
        self.tell(Notice::Controls);
        Ok(())
    }

    /// The names of the paused queues.
    pub async fn paused(&self) -> Result<Vec<String>, Error> {
        in_time(self.store.paused()).await
    }
}

/// How many jobs a process believes to be ready in the queues that it pushes to.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    queues: Mutex<HashMap<&'static str, Bound>>,
}

#[derive(Debug, Clone, Copy)]
struct Bound {
    max: Option<u64>,
    /// As counted, and what was pushed since.
    waiting: u64,
    counted: Instant,
    fresh_for: Duration,
}

/// What [`Bounds`] says to a push.
#[derive(Debug)]
pub(crate) enum Admission {
    Known(Result<(), Error>),
    /// The queue had no bound when it was last looked at, which should be done again, by whoever asked.
    Unbounded,
    /// Count first, then ask again.
    Unknown,
}

/// A count is believed for so long,
const FRESH: Duration = Duration::from_millis(250);

/// or for so many times what it took, so that counting takes a twentieth of a process's time at most.
const REST: u32 = 20;

impl Bounds {
    /// Asks for room for so many jobs. Of several that ask when a count is old, one is told to count.
    pub(crate) fn admit(&self, queue: &'static str, jobs: usize) -> Admission {
        let jobs = u64::try_from(jobs).unwrap_or(u64::MAX);
        let mut queues = self.lock();
        let Some(bound) = queues.get_mut(queue) else { return Admission::Unknown };
        if bound.counted.elapsed() > bound.fresh_for {
            bound.counted = Instant::now();
            return if bound.max.is_none() { Admission::Unbounded } else { Admission::Unknown };
        }
        match bound.max {
            Some(max) if bound.waiting.saturating_add(jobs) > max => {
                Admission::Known(Err(Error::Full { queue: queue.to_owned(), max_waiting: max }))
            }
            _ => {
                bound.waiting = bound.waiting.saturating_add(jobs);
                Admission::Known(Ok(()))
            }
        }
    }

    /// The same right after a count.
    pub(crate) fn admit_counted(&self, queue: &'static str, jobs: usize) -> Result<(), Error> {
        match self.admit(queue, jobs) {
            Admission::Known(known) => known,
            // Forgotten in this very moment, or the count took its time.
            Admission::Unbounded | Admission::Unknown => Ok(()),
        }
    }

    /// Forgets a queue whose bound was changed.
    pub(crate) fn forget(&self, queue: &str) {
        self.lock().remove(queue);
    }

    /// Takes note of a count that began at `began`.
    pub(crate) fn counted(&self, queue: &'static str, max: Option<u64>, waiting: u64, began: Instant) {
        let fresh_for = FRESH.max(began.elapsed().saturating_mul(REST));
        self.lock().insert(queue, Bound { max, waiting, counted: Instant::now(), fresh_for });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, Bound>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The limits as they are kept.
pub(crate) fn read(json: &str) -> Result<QueueLimits, Error> {
    serde_json::from_str(json).map_err(invalid)
}

pub(crate) fn invalid(error: serde_json::Error) -> Error {
    Error::Invalid(format!("the limits in the database are not of this release: {error}"))
}
