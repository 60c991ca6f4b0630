//! What looking into a queue, and acting on what is found, asks of a database.

use std::future::Future;
use std::time::Duration;

use super::Store;
use crate::inspect::{JobDetails, JobFilter, JobState, JobSummary};
use crate::{Error, JobId};

/// The tables a job can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Live,
    Dead,
    Done,
}

impl Table {
    /// Those that may hold what is looked for.
    pub(crate) fn of(state: Option<JobState>) -> &'static [Table] {
        match state {
            None => &[Table::Live, Table::Dead, Table::Done],
            Some(JobState::Dead) => &[Table::Dead],
            Some(JobState::Completed) => &[Table::Done],
            Some(_) => &[Table::Live],
        }
    }
}

/// How many rows one page looks at in a table, at most, however few of them match.
pub(crate) const MAX_SCAN: i64 = 50_000;

/// What one look at one table found.
#[derive(Debug, Default)]
pub struct Looked {
    /// Newest first.
    pub jobs: Vec<JobSummary>,
    /// Below this id it has not looked; none if it has seen the table's end.
    pub floor: Option<i64>,
}

/// A job that was cancelled.
#[derive(Debug)]
pub struct Cancelled {
    pub id: JobId,
    /// True if a worker held it.
    pub ran: bool,
}

/// The jobs of one type and state.
#[derive(Debug)]
pub struct Counted {
    pub queue: String,
    pub name: String,
    /// Never `Completed`: those are not counted.
    pub state: JobState,
    pub jobs: u64,
    /// How long the oldest has been ready, if these are.
    pub oldest: Option<Duration>,
}

/// What the worker that observes a queue sees of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    pub queue: String,
    pub ready: u64,
    pub dead: u64,
    /// How long the oldest job has been ready.
    pub oldest: Option<Duration>,
}

/// Inspection and its actions. Ids come in ascending order; each call is one transaction.
pub trait InspectStore: Store {
    /// Looks at a page of a table. `after` and `limit` are set.
    fn look(&self, table: Table, filter: &JobFilter) -> impl Future<Output = Result<Looked, Error>> + Send;
    fn job(&self, id: JobId) -> impl Future<Output = Result<Option<JobDetails>, Error>> + Send;

    /// Makes live jobs dead, also those that run; answers with those that it found.
    fn cancel(&self, ids: Vec<i64>) -> impl Future<Output = Result<Vec<Cancelled>, Error>> + Send;
    /// Makes dead jobs ready, with all attempts before them.
    fn revive(&self, ids: Vec<i64>) -> impl Future<Output = Result<u64, Error>> + Send;
    /// Deletes dead jobs.
    fn discard(&self, ids: Vec<i64>) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Counts live and dead jobs, by reading them all.
    fn count(&self) -> impl Future<Output = Result<Vec<Counted>, Error>> + Send;
}
