use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Year};
use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Serialize};

use crate::backends::SqlBackend;
use crate::backends::flows::Turn;
use crate::deadline::in_time;
use crate::job::{NewJob, Start, millis};
use crate::{Error, Job, PushOptions, Queue, telemetry};

/// When a job is pushed again and again: by a cron pattern in a time zone, or at an interval.
///
/// ```
/// use std::time::Duration;
/// use greenwave_jobs::{Missed, Schedule};
///
/// # fn f() -> Result<(), greenwave_jobs::Error> {
/// let nightly = Schedule::cron("0 3 * * *")?.in_time_zone("Europe/Zurich")?.missed(Missed::RunOnce);
/// let often = Schedule::every(Duration::from_secs(30)).with_jitter(Duration::from_secs(5));
/// # let _ = (nightly, often);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    rhythm: Rhythm,
    missed: Missed,
    jitter: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rhythm {
    Cron { cron: Box<Cron>, zone: Tz },
    Every(Duration),
}

/// What becomes of ticks that passed while no worker was up, or the database was away.
///
/// A tick that is at most a minute old is not missed, only late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Missed {
    /// They are passed over. The default.
    #[default]
    Skip,
    /// The latest of them runs.
    RunOnce,
    /// So many of them run, the latest ones; 1000 at most.
    RunAll(u32),
}

/// A stored schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ScheduleStatus {
    /// The name it was stored under.
    pub name: String,
    /// The schedule in words: `0 3 * * * Europe/Zurich` or `every 30s`.
    pub schedule: String,
    /// [`Job::NAME`] of what it pushes.
    pub job: String,
    /// [`Job::QUEUE`] of what it pushes.
    pub queue: String,
    /// The next tick. A paused schedule passes it over.
    pub next: SystemTime,
    /// The last tick that pushed its job.
    pub last: Option<SystemTime>,
    /// True if it is paused.
    pub paused: bool,
}

/// Up to this age a tick is late, not missed.
const LATE: i64 = 60_000;

/// The most missed ticks that run.
const MAX_RUNS: u32 = 1000;

impl Schedule {
    /// By a cron pattern of five fields (minute, hour, day of month, month, day of week), or six with seconds first;
    /// in UTC unless [`in_time_zone`](Self::in_time_zone) says otherwise.
    ///
    /// The fields are those of Vixie cron: `*`, lists, ranges, steps, names of months and days, and if both days are
    /// given, either matches; `@hourly`, `@daily` and the like; besides `L` (the last day), `15W` (the weekday nearest
    /// the 15th), `FRI#2` (the second Friday) and `+MON` (the day of month *and* Monday).
    ///
    /// When the clock is set forward, a pattern of exactly one time of day that falls into the gap ticks at the gap's
    /// end; other patterns (lists, ranges and steps) pass it over. When the clock is set back, a pattern of one time of
    /// day ticks the first time only; others tick both times.
    ///
    /// # Errors
    /// [`Error::Schedule`] if the pattern does not parse, or matches no date at all.
    pub fn cron(pattern: &str) -> Result<Self, Error> {
        let refused =
            |why: String| Error::Schedule(format!("the cron pattern `{pattern}` does not work: {why}"));
        let parser = CronParser::builder().year(Year::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|error| refused(error.to_string()))?;
        cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false)
            .map_err(|_| refused("there is no such date".to_owned()))?;
        Ok(Self::new(Rhythm::Cron { cron: Box::new(cron), zone: Tz::UTC }))
    }

    /// Each `interval`, first one interval after it is stored, whether or not the job before is done. A second to a
    /// year, to the millisecond.
    pub fn every(interval: Duration) -> Self {
        Self::new(Rhythm::Every(interval))
    }

    fn new(rhythm: Rhythm) -> Self {
        Schedule { rhythm, missed: Missed::default(), jitter: Duration::ZERO }
    }

    /// Reads a cron pattern in this zone of the IANA database, such as `Europe/Zurich`. An interval knows no zone.
    ///
    /// # Errors
    /// [`Error::Schedule`] if there is no such zone. The database is that of the program, not of the machine.
    pub fn in_time_zone(mut self, name: &str) -> Result<Self, Error> {
        let named =
            Tz::from_str(name).map_err(|_| Error::Schedule(format!("there is no time zone `{name}`")))?;
        if let Rhythm::Cron { zone, .. } = &mut self.rhythm {
            *zone = named;
        }
        Ok(self)
    }

    /// What becomes of missed ticks. Default: [`Missed::Skip`].
    #[must_use]
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Starts each job up to so long after its tick, drawn anew each time, so that schedules of one pattern do not all
    /// start at once. A day at most. Default: none.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    fn check(&self) -> Result<(), Error> {
        const SECOND: Duration = Duration::from_secs(1);
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let why = match (&self.rhythm, self.missed) {
            (Rhythm::Every(interval), _) if *interval < SECOND => "an interval must be at least a second",
            (Rhythm::Every(interval), _) if *interval > 366 * DAY => "an interval must be at most a year",
            (_, Missed::RunAll(max)) if !(1..=MAX_RUNS).contains(&max) => "of missed ticks 1 to 1000 may run",
            _ if self.jitter > DAY => "the jitter must be at most a day",
            _ => return Ok(()),
        };
        Err(Error::Schedule(why.to_owned()))
    }

    /// The first tick after this time; all times are in milliseconds since 1970.
    pub(crate) fn after(&self, now: i64) -> Result<i64, Error> {
        match &self.rhythm {
            Rhythm::Every(interval) => Ok(now.saturating_add(millis(*interval))),
            Rhythm::Cron { cron, zone } => occurrence(cron, *zone, now, false)
                .ok_or_else(|| Error::Schedule(format!("the schedule `{self}` has no tick any more"))),
        }
    }

    /// The ticks from `next` to `now` that shall run, oldest first, and the first after them.
    pub(crate) fn due(&self, next: i64, now: i64) -> Result<(Vec<i64>, i64), Error> {
        let max = match self.missed {
            Missed::RunAll(max) => max.min(MAX_RUNS) as usize,
            Missed::Skip | Missed::RunOnce => 1,
        };
        let (mut ticks, after) = match &self.rhythm {
            Rhythm::Every(interval) => {
                let interval = millis(*interval).max(1);
                let passed = (now - next) / interval;
                let first = (passed + 1 - max as i64).max(0);
                let ticks = (first..=passed).map(|n| next + n * interval).collect();
                (ticks, next + (passed + 1) * interval)
            }
            Rhythm::Cron { cron, zone } => (last_occurrences(cron, *zone, next, now, max), self.after(now)?),
        };
        if self.missed == Missed::Skip {
            ticks.retain(|tick| now - tick <= LATE);
        }
        Ok((ticks, after))
    }

    /// When the job of a tick may start.
    pub(crate) fn start(&self, tick: i64) -> i64 {
        match millis(self.jitter) {
            0 => tick,
            jitter => tick + rand::random_range(0..=jitter),
        }
    }

    pub(crate) fn to_json(&self) -> String {
        let stored = match &self.rhythm {
            Rhythm::Cron { cron, zone } => Stored {
                cron: Some(cron.as_str().to_owned()),
                zone: Some(zone.name().to_owned()),
                every_ms: None,
                missed: self.missed,
                jitter_ms: millis(self.jitter),
            },
            Rhythm::Every(interval) => Stored {
                cron: None,
                zone: None,
                every_ms: Some(millis(*interval)),
                missed: self.missed,
                jitter_ms: millis(self.jitter),
            },
        };
        serde_json::json!(stored).to_string()
    }

    pub(crate) fn from_json(json: &str) -> Result<Self, Error> {
        let unreadable = |why: String| Error::Schedule(format!("the stored schedule cannot be read: {why}"));
        let stored: Stored = serde_json::from_str(json).map_err(|error| unreadable(error.to_string()))?;
        let schedule = match (stored.cron, stored.every_ms) {
            (Some(pattern), None) => {
                Schedule::cron(&pattern)?.in_time_zone(stored.zone.as_deref().unwrap_or("UTC"))?
            }
            (None, Some(ms)) => Schedule::every(Duration::from_millis(ms.unsigned_abs())),
            _ => return Err(unreadable("it must have either a pattern or an interval".to_owned())),
        };
        let jitter = Duration::from_millis(stored.jitter_ms.unsigned_abs());
        Ok(schedule.missed(stored.missed).with_jitter(jitter))
    }
}

/// As in the database.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    every_ms: Option<i64>,
    missed: Missed,
    jitter_ms: i64,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rhythm {
            Rhythm::Cron { cron, zone } => write!(f, "{} {}", cron.as_str(), zone.name()),
            Rhythm::Every(interval) => write!(f, "every {}", format_duration(*interval)),
        }
    }
}

/// The first occurrence after a time, or at it.
fn occurrence(cron: &Cron, zone: Tz, from: i64, inclusive: bool) -> Option<i64> {
    let from = DateTime::from_timestamp_millis(from)?.with_timezone(&zone);
    cron.find_next_occurrence(&from, inclusive).ok().map(|tick| tick.timestamp_millis())
}

/// The last `max` occurrences between two times, both included.
///
/// It looks back over four times as long until it has enough, so a year of missed seconds is not walked through.
fn last_occurrences(cron: &Cron, zone: Tz, from: i64, to: i64, max: usize) -> Vec<i64> {
    let mut window = TimeDelta::minutes(1).num_milliseconds();
    loop {
        let start = to.saturating_sub(window).max(from);
        let mut ticks = VecDeque::with_capacity(max);
        let mut next = occurrence(cron, zone, start, true);
        while let Some(tick) = next.filter(|tick| *tick <= to) {
            if ticks.len() == max {
                ticks.pop_front();
            }
            ticks.push_back(tick);
            next = occurrence(cron, zone, tick, false);
        }
        if ticks.len() == max || start == from {
            return ticks.into();
        }
        window = window.saturating_mul(4);
    }
}

/// What a turn brings.
#[derive(Debug)]
pub(crate) struct Ticks {
    /// The jobs to push, and the ticks they are of.
    pub(crate) jobs: Vec<NewJob>,
    pub(crate) ticks: Vec<i64>,
    pub(crate) next: i64,
}

impl Turn {
    pub(crate) fn ticks(&self) -> Result<Ticks, Error> {
        let schedule = Schedule::from_json(&self.definition)?;
        let job: NewJob = serde_json::from_str(&self.job).map_err(|error| {
            Error::Schedule(format!("the job of a stored schedule cannot be read: {error}"))
        })?;
        let (ticks, next) = schedule.due(self.next_at, self.now)?;
        let jobs = ticks
            .iter()
            .map(|tick| NewJob { start: Start::At(schedule.start(*tick)), ..job.clone() })
            .collect();
        Ok(Ticks { jobs, ticks, next })
    }
}

impl ScheduleStatus {
    /// What a list shows of a row, even of one that a newer version of this library has stored.
    pub(crate) fn read(name: String, definition: String, job: &str) -> Self {
        let schedule = Schedule::from_json(&definition).map_or(definition, |schedule| schedule.to_string());
        let (job, queue) = serde_json::from_str::<NewJob>(job)
            .map(|job| (job.name.to_owned(), job.queue.to_owned()))
            .unwrap_or_default();
        ScheduleStatus { name, schedule, job, queue, next: SystemTime::UNIX_EPOCH, last: None, paused: false }
    }
}

impl<B: SqlBackend> Queue<B> {
    /// Pushes a job at each tick of a schedule: exactly once a tick, however many processes call this and however many
    /// workers run. False if the schedule was stored just so already.
    ///
    /// Call it at every start, with the same name: where nothing has changed nothing happens, and ticks that were
    /// missed meanwhile are dealt with as [`Missed`] says. A changed schedule counts from now on; a changed job alone
    /// is what the next tick pushes. Any worker of this database runs the ticks, at the database's time, and finds a new
    /// schedule within its [`poll_interval`](crate::WorkerConfig::poll_interval). The handler knows its tick by
    /// [`JobContext::scheduled_for`](crate::JobContext::scheduled_for).
    ///
    /// A tick pushes whether or not the job before is done: make the job [unique](Job::unique) where runs shall not
    /// overlap. It pushes into a full queue too: a tick that is refused would be lost.
    ///
    /// # Errors
    /// [`Error::Schedule`] if the interval or the jitter is out of range.
    ///
    /// # Cancel safety
    /// Dropped, the schedule may or may not be stored.
    pub async fn schedule<J: Job>(&self, name: &str, schedule: Schedule, job: &J) -> Result<bool, Error> {
        self.schedule_with(name, schedule, job, PushOptions::default()).await
    }

    /// As [`schedule`](Self::schedule), with options for each push. Of these `delay` and `at` are not read.
    pub async fn schedule_with<J: Job>(
        &self,
        name: &str,
        schedule: Schedule,
        job: &J,
        options: PushOptions,
    ) -> Result<bool, Error> {
        schedule.check()?;
        let job = NewJob::encode(job, &PushOptions { delay: None, at: None, ..options })?;
        in_time(self.store.put_schedule(name.to_owned(), schedule, job)).await
    }

    /// Removes a schedule; jobs that it has pushed stay. False if there is none of this name.
    pub async fn unschedule(&self, name: &str) -> Result<bool, Error> {
        in_time(self.store.delete_schedule(name.to_owned())).await
    }

    /// All schedules, by name.
    pub async fn schedules(&self) -> Result<Vec<ScheduleStatus>, Error> {
        in_time(self.store.schedules()).await
    }

    /// Lets a schedule's ticks pass without a push, until it is resumed. False if there is none of this name.
    pub async fn pause_schedule(&self, name: &str) -> Result<bool, Error> {
        in_time(self.store.pause_schedule(name.to_owned(), true)).await
    }

    /// Lets a paused schedule tick again, from now on: what passed meanwhile is not missed. False if there is none of
    /// this name.
    pub async fn resume_schedule(&self, name: &str) -> Result<bool, Error> {
        in_time(self.store.pause_schedule(name.to_owned(), false)).await
    }
}

/// Reports what a turn pushed.
pub(crate) fn ticked(name: &str, ticks: &Ticks) {
    for job in &ticks.jobs {
        telemetry::ticked(name, job.queue, job.name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
