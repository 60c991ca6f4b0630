//! Help for tests of code that pushes jobs or handles them: a queue of the test's own, with a clock that stands still.
//!
//! Enable the feature `testing` for your tests:
//!
//! ```toml
//! [dev-dependencies]
//! greenwave-jobs = { version = "0.1", features = ["testing"] }
//! ```
//!
//! ```
//! use std::time::Duration;
//! use greenwave_jobs::testing::TestQueue;
//! use greenwave_jobs::{BoxError, Error, Job, PushOptions, Queue, Sqlite, Worker, WorkerConfig, assert_pushed};
//!
//! #[derive(Debug, serde::Serialize, serde::Deserialize)]
//! struct Remind { user_id: u64 }
//! impl Job for Remind { const NAME: &'static str = "remind"; }
//!
//! // What is tested: it takes an ordinary queue.
//! async fn sign_up(queue: &Queue<Sqlite>, user_id: u64) -> Result<(), Error> {
//!     let in_a_week = PushOptions { delay: Some(Duration::from_secs(7 * 24 * 3600)), ..Default::default() };
//!     queue.push_with(&Remind { user_id }, in_a_week).await?;
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let test = TestQueue::new().await?;
//! sign_up(&test.queue(), 42).await?;
//! assert_pushed!(test, Remind, |job| job.user_id == 42);
//!
//! let worker = Worker::new(test.queue(), WorkerConfig::default())
//!     .handle(|_: Remind, _| async { Ok::<(), BoxError>(()) });
//! test.run_due(&worker).await?;
//! assert_eq!(test.queue().stats().await?.scheduled, 1, "it is not yet time");
//! test.clock().advance(Duration::from_secs(7 * 24 * 3600));
//! test.run_due(&worker).await?;
//! assert_eq!(test.queue().stats().await?.live(), 0);
//! # Ok(())
//! # }
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::dead::time;
use crate::deadline::within;
use crate::job::millis;
use crate::wakeups::Wakeups;
use crate::{BoxError, Error, Job, JobId, Queue, Sqlite, Worker};

/// A queue for one test: in memory, empty, private, with its tables in place and a clock that stands still.
///
/// It runs on real time but for the clock, so use it without tokio's paused time.
#[derive(Debug)]
pub struct TestQueue {
    queue: Queue<Sqlite>,
    clock: TestClock,
}

/// The time by which the queue reckons: delays, backoffs, leases, schedules. It begins at the present, and moves only
/// when it is told to.
#[derive(Debug, Clone)]
pub struct TestClock {
    now: Arc<AtomicI64>,
    wakeups: Arc<Wakeups>,
}

/// A job that was pushed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PushedJob<J> {
    /// Its id.
    pub id: JobId,
    /// The job.
    pub job: J,
    /// How long after its push it was to start.
    pub delay: Duration,
    /// Its priority.
    pub priority: u8,
    /// Its [key](Job::key).
    pub key: Option<String>,
}

/// How long [`TestQueue::run_due`] and [`TestQueue::run_until_idle`] may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often [`TestQueue::run_until_idle`] moves the clock at most.
const MAX_MOVES: usize = 1000;

/// Jobs leave their table when they are done, so what is pushed is written down beside it; what is brought back from
/// the dead is not pushed.
const RECORD: &str = "
    CREATE TABLE IF NOT EXISTS greenwave_jobs_pushed (
        id INTEGER PRIMARY KEY, queue TEXT, name TEXT, version INTEGER, payload TEXT, delay INTEGER, priority INTEGER,
        key TEXT) STRICT;
    CREATE TRIGGER IF NOT EXISTS greenwave_jobs_record AFTER INSERT ON greenwave_jobs BEGIN
        INSERT OR IGNORE INTO greenwave_jobs_pushed
        VALUES (NEW.id, NEW.queue, NEW.name, NEW.version, NEW.payload, max(NEW.run_at - NEW.created_at, 0),
            NEW.priority, NEW.key);
    END";

impl TestQueue {
    /// A queue in memory.
    pub async fn new() -> Result<Self, Error> {
        Self::in_file(":memory:").await
    }

    /// A queue in a file, for code that pushes in its own transactions, through its own connections. Those read the
    /// real clock.
    pub async fn in_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Arc::new(AtomicI64::new(millis(since_1970)));
        let queue = Queue::sqlite_by(path.as_ref(), Arc::clone(&now))?;
        queue.migrate().await?;
        queue.store.write(|conn| conn.execute_batch(RECORD)).await?;
        let clock = TestClock { now, wakeups: Arc::clone(&queue.wakeups) };
        Ok(TestQueue { queue, clock })
    }

    /// The queue, as an application has it.
    pub fn queue(&self) -> Queue<Sqlite> {
        self.queue.clone()
    }

    /// The queue's clock.
    pub fn clock(&self) -> &TestClock {
        &self.clock
    }

    /// All jobs of a type that were ever pushed, in order, whether or not they have run.
    ///
    /// # Panics
    /// If a payload does not decode.
    pub async fn pushed<J: Job>(&self) -> Result<Vec<PushedJob<J>>, Error> {
        let rows = self.queue.store.read(|conn| recorded(conn, Some(J::NAME))).await?;
        let decode = |row: Recorded| match decode(row.version, &row.payload) {
            Ok(job) => {
                PushedJob { id: row.id.into(), job, delay: row.delay, priority: row.priority, key: row.key }
            }
            Err(error) => panic!("job {} `{}` does not decode: {error}: {}", row.id, row.name, row.payload),
        };
        Ok(rows.into_iter().map(decode).collect())
    }

    /// Runs the worker, in this task, until none of its queues has a job that is due: those that are now, and those
    /// that these push. It then stops.
    ///
    /// A job that fails, snoozes or is delayed stays until the clock is [moved](TestClock::advance).
    ///
    /// # Errors
    /// [`Error::Timeout`] after a minute, if some job never ends, or can never run; what the worker refuses.
    pub async fn run_due(&self, worker: &Worker<Sqlite>) -> Result<(), Error> {
        self.run(worker, 0).await
    }

    /// As [`run_due`](Self::run_due), and moves the clock to whatever is due next, until nothing waits any more:
    /// retries, delayed jobs, and what they push.
    ///
    /// # Errors
    /// Also [`Error::Worker`], when something still waits after a thousand moves of the clock.
    pub async fn run_until_idle(&self, worker: &Worker<Sqlite>) -> Result<(), Error> {
        self.run(worker, MAX_MOVES).await
    }

    async fn run(&self, worker: &Worker<Sqlite>, moves: usize) -> Result<(), Error> {
        let (worker, queues) = worker.again();
        let queues: Vec<String> = queues.iter().map(|queue| (*queue).to_owned()).collect();
        let cancel = CancellationToken::new();
        let watch = async {
            let _stop = cancel.clone().drop_guard();
            for moved in 0.. {
                let next = self.until_none_is_due(&queues).await?;
                match next {
                    Some(next) if moved < moves => self.clock.move_to(next),
                    Some(_) if moves > 0 => {
                        let forever = "jobs still wait after a thousand moves of the test's clock";
                        return Err(Error::Worker(forever.to_owned()));
                    }
                    _ => break,
                }
            }
            Ok(())
        };
        tokio::try_join!(within(PATIENCE, watch), worker.run(cancel.clone())).map(drop)
    }

    /// Answers when the next job is due, by the clock.
    async fn until_none_is_due(&self, queues: &[String]) -> Result<Option<i64>, Error> {
        loop {
            let (queues, now) = (queues.to_vec(), self.clock.ms());
            match self.queue.store.read(move |conn| next_due(conn, &queues, now)).await? {
                Some(next) if next <= self.clock.ms() => sleep(Duration::from_millis(1)).await,
                next => return Ok(next),
            }
        }
    }

    /// What [`assert_pushed!`](crate::assert_pushed) says.
    #[doc(hidden)]
    pub async fn missing<J: Job>(&self, accepts: &str) -> String {
        let such = if accepts.is_empty() { String::new() } else { format!(" of which `{accepts}` holds") };
        format!("no job `{}`{such} was pushed; pushed were:{}", J::NAME, self.listed().await)
    }

    /// What [`refute_pushed!`](crate::refute_pushed) says.
    #[doc(hidden)]
    pub async fn unwanted<J: Job>(&self, accepts: &str) -> String {
        let such = if accepts.is_empty() { String::new() } else { format!(" of which `{accepts}` holds") };
        format!("a job `{}`{such} was pushed; pushed were:{}", J::NAME, self.listed().await)
    }

    async fn listed(&self) -> String {
        match self.queue.store.read(|conn| recorded(conn, None)).await {
            Ok(rows) if rows.is_empty() => " none".to_owned(),
            Ok(rows) => rows.iter().map(|row| format!("\n  {row}")).collect(),
            Err(error) => format!(" unknown ({error})"),
        }
    }
}

impl TestClock {
    /// What time it is for the queue.
    pub fn now(&self) -> SystemTime {
        time(self.ms())
    }

    /// Moves the clock forward, by whole milliseconds, rounded up.
    pub fn advance(&self, by: Duration) {
        self.now.fetch_add(millis(by), Ordering::SeqCst);
        self.wakeups.wake(None);
    }

    fn ms(&self) -> i64 {
        self.now.load(Ordering::SeqCst)
    }

    fn move_to(&self, ms: i64) {
        self.now.fetch_max(ms, Ordering::SeqCst);
        self.wakeups.wake(None);
    }
}

fn decode<J: Job>(version: u32, payload: &str) -> Result<J, BoxError> {
    if version == J::VERSION {
        return Ok(serde_json::from_str(payload)?);
    }
    J::upcast(version, serde_json::from_str(payload)?)
}

/// A row of what was pushed.
struct Recorded {
    id: i64,
    queue: String,
    name: String,
    version: u32,
    payload: String,
    delay: Duration,
    priority: u8,
    key: Option<String>,
}

impl std::fmt::Display for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Recorded { id, queue, name, payload, delay, .. } = self;
        write!(f, "{id} `{name}` {payload} in queue `{queue}`")?;
        if delay.is_zero() { Ok(()) } else { write!(f, ", after {delay:?}") }
    }
}

fn recorded(conn: &Connection, name: Option<&str>) -> rusqlite::Result<Vec<Recorded>> {
    const ALL: &str = "
        SELECT id, queue, name, version, payload, delay, priority, key FROM greenwave_jobs_pushed
        WHERE ?1 IS NULL OR name = ?1 ORDER BY id";
    let mut all = conn.prepare(ALL)?;
    let rows = all.query_map([name], |row| {
        Ok(Recorded {
            id: row.get(0)?,
            queue: row.get(1)?,
            name: row.get(2)?,
            version: row.get(3)?,
            payload: row.get(4)?,
            delay: Duration::from_millis(row.get::<_, i64>(5)?.unsigned_abs()),
            priority: row.get(6)?,
            key: row.get(7)?,
        })
    })?;
    rows.collect()
}

/// When the first job of some queues is or was due; 0 for one that is ready or runs, and while a kept one has expired.
fn next_due(conn: &Connection, queues: &[String], now: i64) -> rusqlite::Result<Option<i64>> {
    const NEXT: &str = "
        SELECT iif(state = 1, run_at, 0) AS due FROM greenwave_jobs
        WHERE state < 3 AND queue IN (SELECT value FROM json_each(?1))
        UNION ALL SELECT 0 FROM greenwave_jobs_done WHERE expires_at <= ?2
        ORDER BY due LIMIT 1";
    let queues = serde_json::to_string(queues).unwrap_or_default();
    conn.query_row(NEXT, rusqlite::params![queues, now], |row| row.get(0)).optional()
}

/// Asserts that a job was pushed to a [`TestQueue`]: one of a type, or one of which a closure says true. What was
/// pushed instead stands in the message. It awaits, so it stands in async code.
///
/// `assert_pushed!(test, SendMail)`, or `assert_pushed!(test, SendMail, |mail| mail.user_id == 42)`; the
/// [module](crate::testing) has a whole example.
#[macro_export]
macro_rules! assert_pushed {
    ($test:expr, $job:ty $(,)?) => {
        if !$crate::testing::has::<$job>(&$test, |_| true).await {
            panic!("{}", $test.missing::<$job>("").await);
        }
    };
    ($test:expr, $job:ty, $accepts:expr $(,)?) => {
        if !$crate::testing::has::<$job>(&$test, $accepts).await {
            panic!("{}", $test.missing::<$job>(stringify!($accepts)).await);
        }
    };
}

/// Asserts that no such job was pushed; the opposite of [`assert_pushed!`](crate::assert_pushed).
#[macro_export]
macro_rules! refute_pushed {
    ($test:expr, $job:ty $(,)?) => {
        if $crate::testing::has::<$job>(&$test, |_| true).await {
            panic!("{}", $test.unwanted::<$job>("").await);
        }
    };
    ($test:expr, $job:ty, $accepts:expr $(,)?) => {
        if $crate::testing::has::<$job>(&$test, $accepts).await {
            panic!("{}", $test.unwanted::<$job>(stringify!($accepts)).await);
        }
    };
}

/// For the macros.
#[doc(hidden)]
pub async fn has<J: Job>(test: &TestQueue, accepts: impl Fn(&J) -> bool) -> bool {
    match test.pushed::<J>().await {
        Ok(pushed) => pushed.iter().any(|pushed| accepts(&pushed.job)),
        Err(error) => panic!("the test's queue failed: {}", crate::error::chain(&error)),
    }
}
