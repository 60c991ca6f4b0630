//! Looking into a queue, and acting on what is found.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::backends::SqlBackend;
use crate::backends::inspect::{Cancelled, Counted, Table};
use crate::dead::{AttemptError, DeadReason};
use crate::deadline::in_time;
use crate::wakeups::Notice;
use crate::{Error, JobId, Queue};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum JobState {
    /// It could run now.
    Ready,
    /// It waits for its time: delayed, or between two attempts.
    Scheduled,
    /// A worker holds it.
    Running,
    /// It waits for other jobs to end.
    Blocked,
    /// It is done, and kept for a while ([`Job::KEEP`](crate::Job::KEEP)).
    Completed,
    /// It will not run again by itself.
    Dead,
}

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [JobState; 6] = [
        JobState::Ready,
        JobState::Scheduled,
        JobState::Running,
        JobState::Blocked,
        JobState::Completed,
        JobState::Dead,
    ];

    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            JobState::Ready => "ready",
            JobState::Scheduled => "scheduled",
            JobState::Running => "running",
            JobState::Blocked => "blocked",
            JobState::Completed => "completed",
            JobState::Dead => "dead",
        }
    }

    /// The number in the `state` column; beside those of a live job, 4 is completed and 5 dead.
    pub(crate) fn code(self) -> i16 {
        self as i16
    }

    pub(crate) fn from_code(code: i16) -> Self {
        usize::try_from(code).ok().and_then(|code| Self::ALL.get(code).copied()).unwrap_or(JobState::Dead)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(JobState::name).join(", ");
        Self::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| format!("one of {}", names()))
    }
}

/// Which jobs are meant: those that fulfil all that is said.
///
/// ```
/// use greenwave_jobs::{JobFilter, JobState};
///
/// let filter = JobFilter { queue: Some("mail".into()), state: Some(JobState::Dead), ..Default::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobFilter {
    /// Of this queue. Default: any.
    pub queue: Option<String>,
    /// Of the type of this [name](crate::Job::NAME). Default: any.
    pub name: Option<String>,
    /// In this state. Default: any.
    pub state: Option<JobState>,
    /// Of this [key](crate::Job::key). Default: any, and those without.
    pub key: Option<String>,
    /// With this id or a later one. Default: any.
    pub from: Option<JobId>,
    /// With this id or an earlier one. Default: any.
    pub to: Option<JobId>,
    /// [`list`](Queue::list) only: goes on where the page with this [`next`](JobPage::next) ended. Default: the start.
    pub after: Option<JobId>,
    /// [`list`](Queue::list) only: at most so many, 1 to 1000. Default: 50.
    pub limit: usize,
}

impl Default for JobFilter {
    fn default() -> Self {
        JobFilter {
            queue: None,
            name: None,
            state: None,
            key: None,
            from: None,
            to: None,
            after: None,
            limit: 50,
        }
    }
}

impl JobFilter {
    /// The id below which those are that are meant.
    pub(crate) fn below(&self) -> i64 {
        let to = self.to.map_or(i64::MAX, |to| to.get().saturating_add(1));
        self.after.map_or(to, |after| to.min(after.get()))
    }
}

/// The most jobs on a page, and in a batch of an action.
const MAX_PAGE: usize = 1000;

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobPage {
    /// The latest pushed first.
    pub jobs: Vec<JobSummary>,
    /// What [`JobFilter::after`] is to be for the next page; none on the last. A page that is not the last may be short,
    /// or empty: one call looks at a bounded number of rows, however few of them match.
    pub next: Option<JobId>,
}

/// A job in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobSummary {
    /// Its id.
    pub id: JobId,
    /// The queue it was pushed to.
    pub queue: String,
    /// [`Job::NAME`](crate::Job::NAME) it was pushed under.
    pub name: String,
    /// Where it stands.
    pub state: JobState,
    /// 0 (most urgent) to 9; not known of one that is completed, nor is its key.
    pub priority: Option<u8>,
    /// What it shares limits and turns with.
    pub key: Option<String>,
    /// How many attempts have failed.
    pub failures: u32,
    /// After how many it is dead; not known of one that is completed.
    pub max_attempts: Option<u32>,
    /// When it was pushed, by the database's clock, as are all times here.
    #[serde(with = "humantime_serde")]
    pub pushed_at: SystemTime,
    /// Since when it is ready, when it is due, when its lease ends unless it is extended, when it was completed, or when
    /// it died: by its state.
    #[serde(with = "humantime_serde")]
    pub at: SystemTime,
    /// Why it died, if it did.
    pub reason: Option<DeadReason>,
    /// What its last failure said.
    pub error: Option<String>,
}

/// Everything that is known of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobDetails {
    /// What a list says of it.
    #[serde(flatten)]
    pub summary: JobSummary,
    /// [`Job::VERSION`](crate::Job::VERSION) of its payload.
    pub version: u32,
    /// As it was pushed.
    pub payload: serde_json::Value,
    /// What its last attempts failed with, oldest first; ten at most are kept.
    pub errors: Vec<AttemptError>,
    /// How many workers in a row vanished while they held it.
    pub crashes: u32,
    /// What its handler last said of its progress.
    pub progress: Option<serde_json::Value>,
    /// What its handler returned, if it is completed and kept.
    pub result: Option<serde_json::Value>,
    /// The lease under which it runs.
    pub lease: Option<i64>,
    /// How many jobs it waits for.
    pub pending: u32,
    /// True if other jobs wait for it.
    pub awaited: bool,
    /// How long an attempt may take, if the job says so itself.
    #[serde(with = "humantime_serde")]
    pub timeout: Option<Duration>,
    /// How long it is kept once it is completed.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// The W3C traceparent of who pushed it.
    pub trace: Option<String>,
}

/// How many jobs there are, by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StateCounts {
    /// Could run now.
    pub ready: u64,
    /// Wait for their time.
    pub scheduled: u64,
    /// A worker holds them.
    pub running: u64,
    /// Wait for other jobs.
    pub blocked: u64,
    /// Will not run again by themselves.
    pub dead: u64,
}

impl StateCounts {
    fn add(&mut self, state: JobState, jobs: u64) {
        let count = match state {
            JobState::Ready => &mut self.ready,
            JobState::Scheduled => &mut self.scheduled,
            JobState::Running => &mut self.running,
            JobState::Blocked => &mut self.blocked,
            JobState::Dead => &mut self.dead,
            JobState::Completed => return,
        };
        *count += jobs;
    }
}

/// One queue, counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct QueueOverview {
    /// Its name.
    pub queue: String,
    /// True if nothing of it is started.
    pub paused: bool,
    /// Its jobs.
    #[serde(flatten)]
    pub counts: StateCounts,
    /// How long the oldest ready job has been ready, in seconds.
    pub oldest_ready: Option<f64>,
    /// Its jobs by type.
    pub jobs: BTreeMap<String, StateCounts>,
}

/// The last count of all jobs, shared by the handles of a process.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    last: Mutex<Option<(Instant, Duration, Vec<QueueOverview>)>>,
}

/// A count is used again for this many times as long as it took, so that counting takes a twentieth of a connection's
/// time at most, however many jobs there are and however often somebody asks.
const COUNT_PAUSE: u32 = 20;

/// Sooner than this nobody sees a change.
const MIN_COUNT_AGE: Duration = Duration::from_secs(1);

impl<B: SqlBackend> Queue<B> {
    /// A page of jobs, the latest pushed first: live ones, dead ones, and completed ones that are kept.
    ///
    /// A page costs the same however many jobs there are: see [`JobPage::next`].
    pub async fn list(&self, filter: &JobFilter) -> Result<JobPage, Error> {
        let mut filter = filter.clone();
        filter.limit = filter.limit.clamp(1, MAX_PAGE);
        let mut jobs = Vec::new();
        let mut floor = None;
        for table in Table::of(filter.state) {
            let looked = in_time(self.store.look(*table, &filter)).await?;
            jobs.extend(looked.jobs);
            floor = floor.max(looked.floor);
        }
        // What another table may have more of, is for the next page.
        jobs.retain(|job| floor.is_none_or(|floor| job.id.get() >= floor));
        jobs.sort_unstable_by_key(|job| std::cmp::Reverse(job.id));
        let next = if jobs.len() > filter.limit {
            jobs.truncate(filter.limit);
            jobs.last().map(|job| job.id)
        } else {
            floor.map(JobId::from)
        };
        Ok(JobPage { jobs, next })
    }

    /// True if the tables are there and as new as this library, so that [`migrate`](Self::migrate) has nothing to do.
    pub async fn is_migrated(&self) -> Result<bool, Error> {
        in_time(self.store.is_migrated()).await
    }

    /// Everything that is known of a job; none if it is completed and not kept, was discarded, or never was.
    pub async fn show(&self, id: JobId) -> Result<Option<JobDetails>, Error> {
        in_time(self.store.job(id)).await
    }

    /// Cancels a live job: it is dead, by [`DeadReason::Cancelled`]. False if there is no such live job.
    ///
    /// Of one that runs, the worker hears by a notice or when it next extends its lease; then the attempt is dropped, and
    /// its `cancellation` fires. What it completes until then does not count.
    pub async fn cancel(&self, id: JobId) -> Result<bool, Error> {
        Ok(self.cancel_all(vec![id.get()]).await? == 1)
    }

    /// Cancels the live jobs that the filter means, in batches; says how many.
    ///
    /// # Cancel safety
    /// Dropped, some batches are done. So it is with the other actions on many.
    pub async fn cancel_where(&self, filter: &JobFilter) -> Result<u64, Error> {
        let live = |state| !matches!(state, JobState::Dead | JobState::Completed);
        let mut cancelled = 0;
        for ids in batches(self.ids(filter, live).await?) {
            cancelled += self.cancel_all(ids).await?;
        }
        Ok(cancelled)
    }

    async fn cancel_all(&self, ids: Vec<i64>) -> Result<u64, Error> {
        let cancelled = in_time(self.store.cancel(ids)).await?;
        self.wakeups.waiters.ended(cancelled.iter().map(|cancelled| cancelled.id).collect::<Vec<_>>());
        for Cancelled { id, .. } in cancelled.iter().filter(|cancelled| cancelled.ran) {
            let notice = Notice::Cancelled(*id);
            self.wakeups.tell(&notice);
            self.store.announce(notice);
        }
        Ok(cancelled.len() as u64)
    }

    /// Brings back the dead jobs that the filter means, each with all its attempts before it; says how many. The ones
    /// pushed first start first.
    pub async fn retry_where(&self, filter: &JobFilter) -> Result<u64, Error> {
        let mut revived = 0;
        for ids in batches(self.dead_ids(filter).await?) {
            revived += in_time(self.store.revive(ids)).await?;
            self.wake();
        }
        Ok(revived)
    }

    /// Deletes a dead job for good. False if there is no such dead job.
    pub async fn discard(&self, id: JobId) -> Result<bool, Error> {
        Ok(in_time(self.store.discard(vec![id.get()])).await? == 1)
    }

    /// Deletes the dead jobs that the filter means, for good; says how many.
    pub async fn discard_where(&self, filter: &JobFilter) -> Result<u64, Error> {
        let mut discarded = 0;
        for ids in batches(self.dead_ids(filter).await?) {
            discarded += in_time(self.store.discard(ids)).await?;
        }
        Ok(discarded)
    }

    async fn dead_ids(&self, filter: &JobFilter) -> Result<Vec<i64>, Error> {
        self.ids(filter, |state| state == JobState::Dead).await
    }

    /// The jobs meant that are in one of these states, all of them, the earliest first. What is pushed meanwhile is not
    /// among them, so that an action comes to an end.
    async fn ids(&self, filter: &JobFilter, may: impl Fn(JobState) -> bool) -> Result<Vec<i64>, Error> {
        let mut filter = JobFilter { after: None, limit: MAX_PAGE, ..filter.clone() };
        if filter.state.is_some_and(|state| !may(state)) {
            return Ok(Vec::new());
        }
        let table = if may(JobState::Dead) { Table::Dead } else { Table::Live };
        let mut ids = Vec::new();
        loop {
            let looked = in_time(self.store.look(table, &filter)).await?;
            ids.extend(looked.jobs.iter().map(|job| job.id.get()));
            match looked.floor {
                Some(floor) => filter.after = Some(floor.into()),
                None => break,
            }
        }
        ids.reverse();
        Ok(ids)
    }

    /// The queues, their jobs by state and type, and how long the oldest ready one has waited; for a page that is looked
    /// at every few seconds.
    ///
    /// The counts are exact, and up to a second old, or twenty times as old as they took to make: with a million jobs
    /// some seconds. Whether a queue is paused is always what is now.
    pub async fn stats_by_queue(&self) -> Result<Vec<QueueOverview>, Error> {
        let paused = in_time(self.store.paused()).await?;
        let mut last = self.counts.last.lock().await;
        let mut queues = match &*last {
            Some((at, took, queues)) if at.elapsed() < (*took * COUNT_PAUSE).max(MIN_COUNT_AGE) => {
                queues.clone()
            }
            _ => {
                let began = Instant::now();
                let queues = overviews(in_time(self.store.count()).await?);
                *last = Some((Instant::now(), began.elapsed(), queues.clone()));
                queues
            }
        };
        drop(last);
        for name in paused {
            match queues.binary_search_by(|queue| queue.queue.cmp(&name)) {
                Ok(at) => queues[at].paused = true,
                Err(at) => {
                    queues.insert(at, QueueOverview { queue: name, paused: true, ..Default::default() });
                }
            }
        }
        Ok(queues)
    }
}

fn batches(ids: Vec<i64>) -> impl Iterator<Item = Vec<i64>> {
    let batches: Vec<Vec<i64>> = ids.chunks(MAX_PAGE).map(<[i64]>::to_vec).collect();
    batches.into_iter()
}

fn overviews(counted: Vec<Counted>) -> Vec<QueueOverview> {
    let mut queues: BTreeMap<String, QueueOverview> = BTreeMap::new();
    for Counted { queue, name, state, jobs, oldest } in counted {
        let overview = queues.entry(queue).or_default();
        overview.counts.add(state, jobs);
        overview.jobs.entry(name).or_default().add(state, jobs);
        let oldest = oldest.map(|oldest| oldest.as_secs_f64());
        overview.oldest_ready = match (overview.oldest_ready, oldest) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
    }
    queues.into_iter().map(|(queue, overview)| QueueOverview { queue, ..overview }).collect()
}

/// JSON from a column; a text that is none, as a text.
pub(crate) fn json(text: String) -> serde_json::Value {
    serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text))
}
