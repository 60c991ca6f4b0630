//! The names of what this crate reports through `metrics` and `tracing`; they are part of its API.

use std::time::Duration;

use metrics::Histogram;

/// Counter of jobs pushed, labels `queue` and `job`. A push in a transaction counts even if it is rolled back.
pub const PUSHED: &str = "greenwave.jobs.pushed";

/// Counter of jobs forwarded from the database to NATS, label `queue`.
pub const FORWARDED: &str = "greenwave.jobs.forwarded";

/// Histogram of an attempt's duration in seconds, labels `queue`, `job` and `outcome`: `completed`, `retried`,
/// `snoozed` or `dead`.
pub const RUN_DURATION: &str = "greenwave.jobs.run.duration";

/// Histogram of the seconds between the time a job could run and its start, labels `queue` and `job`.
pub const WAIT: &str = "greenwave.jobs.wait";

/// Gauge of the jobs that could run now, label `queue`. One worker reports a queue for the fleet, and the others nothing
/// or 0, so that sums over processes are right; so it is with the other gauges.
pub const READY: &str = "greenwave.jobs.ready";

/// Gauge of the seconds that the oldest ready job has waited, label `queue`; 0 if none waits.
pub const OLDEST_READY: &str = "greenwave.jobs.oldest_ready";

/// Gauge of the dead jobs, label `queue`.
pub const DEAD_JOBS: &str = "greenwave.jobs.dead";

/// Gauge, label `queue`: 1 while the queue misses its [objective](crate::ObjectiveConfig), 0 while it meets it.
pub const OBJECTIVE_MISSED: &str = "greenwave.jobs.objective.missed";

/// Target of the events that say that a queue misses its objective (ERROR), and that it meets it again (INFO); fields
/// `queue`, `oldest`, `max_wait` and `ready`.
pub const OBJECTIVE_TARGET: &str = "greenwave_jobs::objective";

/// Counter of jobs pushed by a schedule, labels `schedule`, `queue` and `job`; [`PUSHED`] counts them too.
pub const TICKS: &str = "greenwave.jobs.schedule.ticks";

/// Name of the span around each attempt, level INFO, fields `job.id`, `job.name`, `job.queue`, `job.attempt` and, if
/// the pusher's trace is known, `traceparent`.
pub const ATTEMPT_SPAN: &str = "job";

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Completed,
    Retried,
    Snoozed,
    Dead,
}

impl Outcome {
    const ALL: [Outcome; 4] = [Outcome::Completed, Outcome::Retried, Outcome::Snoozed, Outcome::Dead];

    fn label(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Retried => "retried",
            Outcome::Snoozed => "snoozed",
            Outcome::Dead => "dead",
        }
    }
}

/// What is measured of one job type, looked up once and not at each attempt.
#[derive(Clone)]
pub(crate) struct Meters {
    wait: Histogram,
    run: [Histogram; 4],
}

impl Default for Meters {
    /// Those of nobody.
    fn default() -> Self {
        Meters { wait: Histogram::noop(), run: std::array::from_fn(|_| Histogram::noop()) }
    }
}

impl Meters {
    pub(crate) fn new(queue: &'static str, job: impl Into<metrics::SharedString>) -> Self {
        let job: metrics::SharedString = job.into();
        let run = Outcome::ALL.map(|outcome| {
            metrics::histogram!(RUN_DURATION, "queue" => queue, "job" => job.clone(), "outcome" => outcome.label())
        });
        Meters { wait: metrics::histogram!(WAIT, "queue" => queue, "job" => job), run }
    }

    pub(crate) fn started(&self, waited: Duration) {
        self.wait.record(waited.as_secs_f64());
    }

    pub(crate) fn ended(&self, outcome: Outcome, took: Duration) {
        self.run[outcome as usize].record(took.as_secs_f64());
    }
}

pub(crate) fn pushed(queue: &'static str, job: &'static str, count: usize) {
    metrics::counter!(PUSHED, "queue" => queue, "job" => job).increment(count as u64);
}

#[cfg(feature = "nats")]
pub(crate) fn forwarded(queue: &'static str, count: usize) {
    metrics::counter!(FORWARDED, "queue" => queue).increment(count as u64);
}

pub(crate) fn observed(observed: &crate::backends::inspect::Observed) {
    let queue = || observed.queue.clone();
    metrics::gauge!(READY, "queue" => queue()).set(observed.ready as f64);
    metrics::gauge!(DEAD_JOBS, "queue" => queue()).set(observed.dead as f64);
    let oldest = observed.oldest.unwrap_or_default().as_secs_f64();
    metrics::gauge!(OLDEST_READY, "queue" => queue()).set(oldest);
}

pub(crate) fn objective(queue: &str, missed: bool) {
    metrics::gauge!(OBJECTIVE_MISSED, "queue" => queue.to_owned()).set(if missed { 1.0 } else { 0.0 });
}

/// Counts a job that a schedule pushed.
pub(crate) fn ticked(schedule: &str, queue: &'static str, job: &'static str) {
    metrics::counter!(TICKS, "schedule" => schedule.to_owned(), "queue" => queue, "job" => job).increment(1);
    pushed(queue, job, 1);
}
