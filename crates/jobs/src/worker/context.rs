use std::time::{Instant, SystemTime};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::leases::Seat;
use crate::backends::PROGRESS;
use crate::{Error, JobId};

/// What a handler knows about the attempt it makes. Clones are the same attempt.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobContext {
    /// The job's id: the same in every attempt, so a good key for making effects once.
    pub id: JobId,
    /// The number of this attempt; the first is 1. An attempt cut short by a crash, a stop or a
    /// [snooze](crate::Snooze) is not counted.
    pub attempt: u32,
    /// The attempt after which a failure is final.
    pub max_attempts: u32,
    /// [`Job::NAME`](crate::Job::NAME).
    pub name: &'static str,
    /// [`Job::QUEUE`](crate::Job::QUEUE).
    pub queue: &'static str,
    /// The W3C traceparent of whoever pushed the job, if the queue was made
    /// [`with_traceparent`](crate::Queue::with_traceparent).
    pub trace: Option<String>,
    /// The tick this job is of, by the database's clock, if a [schedule](crate::Schedule) pushed it: the same in every
    /// attempt, however late.
    pub scheduled_for: Option<SystemTime>,
    pub(super) seat: Seat,
}

impl JobContext {
    /// Fires when the worker is asked to stop (the handler then has the worker's grace to end by itself), and when
    /// the attempt is over for any reason: it ended, its time was up, somebody cancelled the job, the lease was lost.
    /// So what a handler spawned may end with it.
    ///
    /// An error that a handler returns after the worker was asked to stop is no failure: the job goes back to its
    /// queue as it was.
    pub fn cancellation(&self) -> CancellationToken {
        self.seat.token()
    }

    /// When the attempt's time is over, by this process's clock; the handler is dropped within 100 ms of it. `None`
    /// once the attempt has ended.
    ///
    /// Pass it on to what waits: a request that cannot be answered before it is not worth sending.
    pub fn deadline(&self) -> Option<Instant> {
        self.seat.deadline().map(Into::into)
    }

    /// Says how far the job has come: any value, written to its row as JSON at most once a second, the latest alone.
    ///
    /// It is there for whoever looks at the job, and lost without harm when the database is away.
    ///
    /// # Errors
    /// [`Error::Encode`], and [`Error::Unsupported`] on NATS, which keeps no progress.
    pub fn progress(&self, value: &impl Serialize) -> Result<(), Error> {
        if !self.seat.may_report() {
            return Err(Error::Unsupported(PROGRESS));
        }
        let json = serde_json::to_string(value).map_err(|source| Error::Encode { job: self.name, source })?;
        self.seat.report(json);
        Ok(())
    }
}
