//! What the worker and the queue ask of a database.

pub(crate) mod flows;
pub(crate) mod inspect;
pub(crate) mod limits;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod model;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backoff::Backoff;
use crate::dead::{DeadJob, DeadReason};
use crate::job::{NewJob, Pushed};
use crate::queue::QueueStats;
use crate::wakeups::{Notice, Wakeups};
use crate::{Error, JobId};

/// A database that can hold a [`Queue`](crate::Queue): `Postgres` or `Sqlite`. Sealed.
pub trait Backend: Store {}

/// An SQL database that can hold a [`Queue`](crate::Queue), and do what only one can: limits, pauses, schedules,
/// workflows, results, inspection. Sealed.
pub trait SqlBackend: Backend + flows::FlowStore + inspect::InspectStore + limits::LimitStore {}

/// One hold of one job. Settling a job names its lease, so it has no effect once another worker has the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    pub job: JobId,
    pub id: i64,
}

/// A job as a worker receives it.
#[derive(Debug)]
pub struct LeasedJob {
    pub lease: Lease,
    pub name: String,
    pub version: u32,
    pub payload: String,
    pub failures: u32,
    /// How many workers in a row vanished while they held it.
    pub crashes: u32,
    pub max_attempts: u32,
    pub timeout: Option<Duration>,
    pub waited: Duration,
    /// The W3C traceparent of who pushed.
    pub trace: Option<String>,
    /// The tick that it is of, if a schedule pushed it.
    pub scheduled_for: Option<SystemTime>,
    /// True if other jobs wait for this one.
    pub awaited: bool,
    /// True if it is kept once it is completed.
    pub kept: bool,
}

/// A job that is done.
#[derive(Debug, Clone)]
pub struct Completion {
    pub lease: Lease,
    /// What the handler returned, as JSON; kept if the job is.
    pub result: Option<String>,
    /// As in [`LeasedJob`]: a batch without such jobs takes the shortest way.
    pub awaited: bool,
    /// As in [`LeasedJob`].
    pub kept: bool,
}

/// What a worker wants to run.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    pub queue: &'a str,
    /// At most so many.
    pub limit: usize,
    pub lease: Duration,
}

/// What a worker has to know of a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Control {
    /// Nothing more of it shall start: what was fetched ahead is to be given back.
    pub paused: bool,
    /// What waits in a worker takes the place of what could run elsewhere: fetch nothing ahead.
    pub limited: bool,
}

/// What came of an exchange.
#[derive(Debug, Default)]
pub struct Exchanged {
    /// How many completions still had their lease.
    pub completed: usize,
    pub jobs: Vec<LeasedJob>,
    /// A limit may hold back jobs that are ready: ask again in so long.
    pub again: Option<Duration>,
    /// Queues that have something new besides: jobs that waited for those that are done.
    pub freed: Vec<String>,
}

/// The settings of upkeep.
#[derive(Debug, Clone, Copy)]
pub struct Upkeep {
    pub max_crashes: u32,
    pub backoff: Backoff,
}

/// What upkeep found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Jobs whose lease had ended.
    pub rescued: usize,
    /// Jobs that crashed too often, and are dead now.
    pub buried: usize,
    /// Jobs that have become ready.
    pub promoted: usize,
    /// In how long the next scheduled job is due, if one is known.
    pub next_due: Option<Duration>,
}

/// A job that shall run again later.
#[derive(Debug, Clone)]
pub struct Retry {
    pub lease: Lease,
    pub delay: Duration,
    /// What the attempt failed with; none if it only asked to be run later, which counts as no attempt.
    pub error: Option<String>,
}

/// An attempt after which its job is dead.
#[derive(Debug, Clone)]
pub struct Burial {
    pub lease: Lease,
    /// As in [`LeasedJob`].
    pub awaited: bool,
    pub reason: DeadReason,
    pub error: String,
}

/// What the type of a job says of all of its kind.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub priority: u8,
    pub keep: Duration,
}

/// The statements of a queue. Each is atomic, and each that settles is fenced by the lease and answers how many jobs
/// it still found under it; so each may be repeated after an unknown outcome.
pub trait Store: Clone + Send + Sync + 'static {
    /// Whether queues are [observed](Self::observe): without, a worker with objectives is refused.
    const OBSERVES: bool = true;
    /// Whether progress is [kept](Self::report): without, a handler's word of it is refused.
    const REPORTS: bool = true;

    fn migrate(&self) -> impl Future<Output = Result<(), Error>> + Send;
    /// What of a job type this backend cannot do, if anything: a worker of such jobs is refused.
    fn unsupported(&self, _kind: &Kind) -> Option<&'static str> {
        None
    }
    fn is_migrated(&self) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Stores all or none, and answers in order.
    fn push(&self, jobs: Vec<NewJob>) -> impl Future<Output = Result<Vec<Pushed>, Error>> + Send;

    /// Asks for room for so many jobs of a queue: [`Error::Full`] where its bound is reached. To be asked before a
    /// push, for each caller alone.
    fn admit(&self, _queue: &'static str, _jobs: usize) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// What holds for a queue, as far as this process knows: from its own calls at once, and otherwise since its last
    /// upkeep.
    fn control(&self, _queue: &str) -> Control {
        Control::default()
    }

    /// Completes jobs, and leases ready ones of a queue, all under one fresh lease id: the most urgent, in the order in
    /// which they shall start. Both in one transaction, and as one round trip where the database can.
    fn exchange(
        &self,
        done: Vec<Completion>,
        want: Option<Want<'_>>,
    ) -> impl Future<Output = Result<Exchanged, Error>> + Send;

    /// Makes scheduled jobs ready whose time has come, but buries those among them that have crashed too often.
    /// Schedules jobs whose lease has ended, and counts it as a crash: after a backoff, which parts them from those
    /// they ran beside. Until another worker takes such a job, the old one may still settle it.
    fn upkeep(&self, upkeep: Upkeep) -> impl Future<Output = Result<Kept, Error>> + Send;

    /// Extends leases from now, and answers with those that are still held.
    fn extend(
        &self,
        leases: Vec<Lease>,
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Lease>, Error>> + Send;
    /// Stores how far jobs have come, as JSON, and answers how many it still found under their lease.
    fn report(&self, progress: Vec<(Lease, String)>) -> impl Future<Output = Result<usize, Error>> + Send;
    /// Returns jobs to their queue as if they had not been fetched: a crash counted meanwhile was none.
    fn release(&self, leases: Vec<Lease>) -> impl Future<Output = Result<usize, Error>> + Send;
    /// Schedules the next attempts. The worker lived to tell, so earlier crashes are forgiven.
    fn retry(&self, retries: Vec<Retry>) -> impl Future<Output = Result<usize, Error>> + Send;
    fn bury(&self, burials: Vec<Burial>) -> impl Future<Output = Result<usize, Error>> + Send;

    fn stats(&self) -> impl Future<Output = Result<QueueStats, Error>> + Send;
    /// The latest dead jobs, newest first.
    fn dead(&self, limit: usize) -> impl Future<Output = Result<Vec<DeadJob>, Error>> + Send;
    fn retry_dead(&self, id: JobId) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Measures those of the queues that no other worker observes, and claims them for so long.
    fn observe(
        &self,
        holder: i64,
        queues: &[&str],
        hold: Duration,
    ) -> impl Future<Output = Result<Vec<inspect::Observed>, Error>> + Send;

    /// Tells other processes, soon and without a promise.
    fn announce(&self, notice: Notice);
    /// Passes on what other processes announce, by [`Wakeups::tell`], for as long as it is polled.
    fn listen(&self, wakeups: Arc<Wakeups>) -> impl Future<Output = ()> + Send;
}

/// How many jobs one statement promotes or rescues.
const MAINTENANCE_BATCH: i64 = 1000;

/// What [`Error::Unsupported`] names where [`Store::REPORTS`] is false.
pub(crate) const PROGRESS: &str = "the progress of jobs; keep it elsewhere, or use PostgreSQL or SQLite";

/// Said of a job whose lease ended.
const LEASE_ENDED: &str = "the lease ended: the worker that ran this job was killed, or lost its database";
