//! The names of what this crate reports through `metrics` and `tracing`; they are part of its API.

/// Counter of jobs pushed, labels `queue` and `job`. A push in a transaction counts even if it is rolled back.
pub const PUSHED: &str = "greenwave.jobs.pushed";

/// Counter of jobs forwarded from the database to NATS, label `queue`.
pub const FORWARDED: &str = "greenwave.jobs.forwarded";

/// Histogram of an attempt's duration in seconds, labels `job` and `outcome`: `completed`, `retried` or `dead`.
pub const RUN_DURATION: &str = "greenwave.jobs.run.duration";

/// Histogram of the seconds between the time a job could run and its start, label `queue`.
pub const WAIT: &str = "greenwave.jobs.wait";

/// Name of the span around each attempt, level INFO, fields `job.id`, `job.name`, `job.queue` and `job.attempt`.
pub const ATTEMPT_SPAN: &str = "job";

pub(crate) const COMPLETED: &str = "completed";
pub(crate) const RETRIED: &str = "retried";
pub(crate) const DEAD: &str = "dead";

/// Records how an attempt ended.
pub(crate) fn attempt_ended(job: &str, outcome: &'static str, took: std::time::Duration) {
    metrics::histogram!(RUN_DURATION, "job" => job.to_owned(), "outcome" => outcome)
        .record(took.as_secs_f64());
}

pub(crate) fn started(queue: &str, waited: std::time::Duration) {
    metrics::histogram!(WAIT, "queue" => queue.to_owned()).record(waited.as_secs_f64());
}

pub(crate) fn pushed(queue: &'static str, job: &'static str, count: usize) {
    metrics::counter!(PUSHED, "queue" => queue, "job" => job).increment(count as u64);
}

#[cfg(feature = "nats")]
pub(crate) fn forwarded(queue: &'static str, count: usize) {
    metrics::counter!(FORWARDED, "queue" => queue).increment(count as u64);
}
