use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, ObjectiveConfig};

/// How a [`Worker`](crate::Worker) works. Durations are a year at most, `concurrency` and `max_batch` 100000.
///
/// ```
/// use greenwave_jobs::WorkerConfig;
///
/// let config = WorkerConfig { concurrency: 10, ..Default::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// How many jobs run at once. Default: 50.
    pub concurrency: usize,

    /// How many of them at most are of one queue, by its name. Default: as many as `concurrency` says, of each queue.
    ///
    /// So a queue of slow jobs leaves places to the others. It bounds this worker; for a bound on all workers together
    /// set limits on the queue.
    pub queues: BTreeMap<String, usize>,

    /// How many jobs one statement fetches at most. Default: 1000.
    ///
    /// While jobs are short and a queue is full, a worker fetches ahead of its places: what runs in about 50 ms, twice,
    /// at most this many each time. Jobs that run for long are fetched when a place is free. At 1, one by one.
    pub max_batch: usize,

    /// How long an idle worker sleeps, give or take a fifth, when nothing wakes it. Default: 200ms.
    ///
    /// It bounds how late a job starts that another process delayed, or whose wake-up was lost.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,

    /// How long a job stays with a worker that shows no sign of life. Default: 30s.
    ///
    /// A living worker extends its leases every third of it. Shorter: the jobs of a killed worker start again
    /// sooner. Longer: a database may be away for longer before running jobs are dropped. At least 100ms.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,

    /// How long one attempt may take before it counts as failed, where [`Job::TIMEOUT`](crate::Job::TIMEOUT) does not
    /// say it. Default: 5m. Looked at every 100 ms.
    #[serde(with = "humantime_serde")]
    pub attempt_timeout: Duration,

    /// The wait after the first failure; each further failure doubles it. Default: 1s.
    ///
    /// The wait is drawn evenly between nothing and that value, so that jobs which failed together spread out.
    #[serde(with = "humantime_serde")]
    pub retry_base: Duration,

    /// The longest wait between two attempts. Default: 1h.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,

    /// After so many leases in a row that ended without a word from their worker, a job is taken for the killer of its
    /// workers, and is dead. Default: 3.
    ///
    /// Any attempt that ends, well or not, starts the count anew, and what a living worker gives back after an outage
    /// does not count. After each crash the job waits as after a failure. Fewer: a job that kills its workers is
    /// parked sooner. More: a healthy job bears more kills of all workers, in each of which it happened to run.
    pub max_crashes: u32,

    /// How long jobs of its queues may wait, at most one for each queue. Default: none. On NATS, where queues are not
    /// measured, a worker with objectives is refused.
    pub objectives: Vec<ObjectiveConfig>,

    /// How long a stopping worker lets its jobs run before it returns them to the queue. Default: 10s.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        WorkerConfig {
            concurrency: 50,
            queues: BTreeMap::new(),
            max_batch: 1000,
            poll_interval: Duration::from_millis(200),
            lease: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5 * 60),
            retry_base: Duration::from_secs(1),
            retry_max: Duration::from_secs(3600),
            max_crashes: 3,
            objectives: Vec::new(),
            grace: Duration::from_secs(10),
        }
    }
}

impl WorkerConfig {
    /// Checks all fields; `served` are the queues of the worker's handlers.
    pub(crate) fn check(&self, served: &[&str]) -> Result<(), Error> {
        let positive = [
            ("concurrency", self.concurrency > 0),
            ("max_batch", self.max_batch > 0),
            ("poll_interval", !self.poll_interval.is_zero()),
            ("attempt_timeout", !self.attempt_timeout.is_zero()),
            ("max_crashes", self.max_crashes > 0),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, holds)| !holds) {
            return refused(format!("`{name}` must be above zero"));
        }
        for ObjectiveConfig { queue, max_wait } in &self.objectives {
            if !served.contains(&queue.as_str()) {
                return refused(format!("an objective is for queue `{queue}`, which no handler serves"));
            }
            if max_wait.is_zero() || *max_wait > MAX_DURATION {
                return refused(format!(
                    "the objective of queue `{queue}` must be above zero, and at most a year"
                ));
            }
        }
        if self.lease < MIN_LEASE {
            return refused(format!("`lease` must be at least {MIN_LEASE:?}"));
        }
        for (queue, places) in &self.queues {
            if !served.contains(&queue.as_str()) {
                return refused(format!("`queues` names `{queue}`, which no handler of the worker serves"));
            }
            if *places == 0 || *places > MAX_COUNT {
                return refused(format!("`queues.{queue}` must be 1 to {MAX_COUNT}"));
            }
        }
        let counts = [("concurrency", self.concurrency), ("max_batch", self.max_batch)];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count > MAX_COUNT) {
            return refused(format!("`{name}` must be at most {MAX_COUNT}"));
        }
        let durations = [
            ("poll_interval", self.poll_interval),
            ("lease", self.lease),
            ("attempt_timeout", self.attempt_timeout),
            ("retry_base", self.retry_base),
            ("retry_max", self.retry_max),
            ("grace", self.grace),
        ];
        match durations.iter().find(|(_, duration)| *duration > MAX_DURATION) {
            Some((name, _)) => refused(format!("`{name}` must be at most a year")),
            None => Ok(()),
        }
    }
}

fn refused(why: String) -> Result<(), Error> {
    Err(Error::Worker(why))
}

/// Shorter leases are lost to the delays of an ordinary network and scheduler.
const MIN_LEASE: Duration = Duration::from_millis(100);

/// Far beyond use; below what tokio's semaphores and PostgreSQL's statements bear.
const MAX_COUNT: usize = 100_000;

/// Far beyond use; below what clocks can add to the present. A leap year, so that "1y" is one.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);
