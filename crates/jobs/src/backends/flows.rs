//! What schedules, workflows and results ask of a database.

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};

use super::Store;
use crate::error::chain;
use crate::job::{NewJob, Pushed};
use crate::schedule::{Schedule, ScheduleStatus};
use crate::{Error, JobId};

/// A schedule's turn that has come.
#[derive(Debug)]
pub(crate) struct Turn {
    pub name: String,
    /// The schedule, as JSON.
    pub definition: String,
    /// Its job, as JSON.
    pub job: String,
    /// The first tick that has not run, in milliseconds since 1970, as is the database's present.
    pub next_at: i64,
    pub now: i64,
}

/// "`after` waits for `before`", as places in a list of jobs.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    pub before: usize,
    pub after: usize,
    /// True if `after` runs even when `before` dies.
    pub anyway: bool,
}

/// Where a job is, and what came of it.
#[derive(Debug)]
pub enum Found {
    Waiting,
    Running { progress: Option<String> },
    Completed { result: Option<String> },
    Dead { reason: String, error: Option<String> },
}

/// A job that another waited for.
#[derive(Debug)]
pub struct FoundBefore {
    pub id: JobId,
    pub name: String,
    pub found: Found,
}

/// Each is atomic.
pub trait FlowStore: Store {
    /// Creates or changes a schedule. False if it was the same already.
    fn put_schedule(
        &self,
        name: String,
        schedule: Schedule,
        job: NewJob,
    ) -> impl Future<Output = Result<bool, Error>> + Send;
    fn delete_schedule(&self, name: String) -> impl Future<Output = Result<bool, Error>> + Send;
    /// By name.
    fn schedules(&self) -> impl Future<Output = Result<Vec<ScheduleStatus>, Error>> + Send;
    /// Pauses or resumes. False if there is no such schedule.
    fn pause_schedule(&self, name: String, paused: bool) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Stores jobs, and which wait for which; all or none.
    fn push_workflow(
        &self,
        jobs: Vec<NewJob>,
        edges: Vec<Edge>,
    ) -> impl Future<Output = Result<Vec<Pushed>, Error>> + Send;

    fn find(&self, id: JobId) -> impl Future<Output = Result<Option<Found>, Error>> + Send;
    /// The ended jobs that this one waited for, by id: those that are kept or dead.
    fn find_before(&self, id: JobId) -> impl Future<Output = Result<Vec<FoundBefore>, Error>> + Send;
}

/// Reports that a schedule could not have its turn. It is tried again at each upkeep, but told once a minute.
pub(super) fn turn_failed(name: &str, now: i64, error: &Error) {
    static TOLD: AtomicI64 = AtomicI64::new(0);
    let minute = now / 60_000;
    if TOLD.swap(minute, Ordering::Relaxed) != minute {
        tracing::warn!(schedule = name, error = chain(error), "a schedule's job could not be pushed");
    }
}

/// Said of a job that is dead because another is.
pub(super) fn abandoned(because: i64) -> String {
    format!("job {because}, for which this one waited, is dead")
}

/// Reads a row: the state of a live job and its progress, 4 and the result of a completed one, 5 and the reason and
/// last error of a dead one.
pub(super) fn found(state: i16, text: Option<String>, error: Option<String>) -> Found {
    match state {
        2 => Found::Running { progress: text },
        4 => Found::Completed { result: text },
        5 => Found::Dead { reason: text.unwrap_or_default(), error },
        _ => Found::Waiting,
    }
}
