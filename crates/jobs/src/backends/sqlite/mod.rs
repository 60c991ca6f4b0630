//! SQLite: one thread owns one connection; writers take the file's lock with BEGIN IMMEDIATE.

mod flows;
mod owner;
mod schedules;
mod settle;
mod workflow;

use std::cell::Cell;
use std::future::{self, Future};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::{
    Backend, Burial, Completion, Exchanged, Kept, LEASE_ENDED, Lease, LeasedJob, MAINTENANCE_BATCH, Retry,
    SqlBackend, Store, Upkeep, Want,
};
use crate::dead::{DeadJob, DeadReason, read_errors, time};
use crate::job::{NewJob, Pushed, Start, millis};
use crate::queue::{QueueStats, encode_all};
use crate::wakeups::Wakeups;
use crate::{Error, Job, JobId, PushOptions, Queue, telemetry};

/// A queue in an SQLite file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    owner: owner::Handle,
}

const MIGRATIONS: &[(i32, &str)] = &[
    (1, include_str!("../../../migrations/sqlite/0001_jobs.sql")),
    (2, include_str!("../../../migrations/sqlite/0002_positions_and_options.sql")),
    (5, include_str!("../../../migrations/sqlite/0005_schedules_and_workflows.sql")),
];

/// SQLite's own clock, in milliseconds since 1970.
macro_rules! now {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}
use now;

impl Queue<Sqlite> {
    /// A queue in this file, which is created if it is missing.
    ///
    /// The queue has a connection of its own, in WAL mode with `synchronous = FULL`: a pushed job survives a power
    /// cut. The file may be your application's; its own connections should wait for its lock, as this one does
    /// for up to 5 s.
    pub fn sqlite(path: impl AsRef<Path>) -> Result<Self, Error> {
        let conn = open(path.as_ref()).map_err(Error::Sqlite)?;
        Ok(Queue::over(Sqlite { owner: owner::Handle::spawn(conn)? }))
    }

    /// Stores a job through the caller's connection to the same file, so in the caller's transaction, if it is in one:
    /// then the job exists if and when that commits.
    ///
    /// Call [`Queue::wake`] after the commit, so that no worker waits for its next poll.
    ///
    /// ```
    /// # use greenwave_jobs::{Job, Queue, Sqlite};
    /// # fn f(conn: &mut rusqlite::Connection, queue: Queue<Sqlite>, job: impl Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let tx = conn.transaction()?;
    /// tx.execute("INSERT INTO users (name) VALUES ('Ada')", [])?;
    /// queue.push_in(&tx, &job)?;
    /// tx.commit()?;
    /// queue.wake();
    /// # Ok(())
    /// # }
    /// ```
    pub fn push_in<J: Job>(&self, conn: &Connection, job: &J) -> Result<Pushed, Error> {
        self.push_in_with(conn, job, PushOptions::default())
    }

    /// As [`push_in`](Self::push_in), with a delay or a priority.
    pub fn push_in_with<J: Job>(
        &self,
        conn: &Connection,
        job: &J,
        options: PushOptions,
    ) -> Result<Pushed, Error> {
        let id = insert(conn, &NewJob::encode(job, &options)?).map_err(Error::Sqlite)?;
        telemetry::pushed(J::QUEUE, J::NAME, 1);
        Ok(id)
    }

    /// Stores many jobs of a type in the caller's transaction. Answers with their ids in order.
    ///
    /// Outside a transaction each is stored by itself, and an error leaves the first of them stored.
    pub fn push_many_in<J: Job>(&self, conn: &Connection, jobs: &[J]) -> Result<Vec<Pushed>, Error> {
        let jobs = encode_all(jobs)?;
        let ids: Result<_, _> = jobs.iter().map(|job| insert(conn, job)).collect();
        telemetry::pushed(J::QUEUE, J::NAME, jobs.len());
        ids.map_err(Error::Sqlite)
    }
}

impl Backend for Sqlite {}
impl SqlBackend for Sqlite {}

impl Store for Sqlite {
    async fn migrate(&self) -> Result<(), Error> {
        self.owner.write(migrate).await
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        self.owner.read(is_migrated).await
    }

    async fn push(&self, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
        self.owner.write(move |conn| jobs.iter().map(|job| insert(conn, job)).collect()).await
    }

    async fn exchange(&self, done: Vec<Completion>, want: Option<Want<'_>>) -> Result<Exchanged, Error> {
        let want = want.map(|want| (want.queue.to_owned(), want.limit, want.lease));
        let (sure, queue) = (!done.is_empty(), want.as_ref().map(|want| want.0.clone()));
        let needed = move |conn: &Connection| match queue {
            _ if sure => Ok(true),
            Some(queue) => is_any_ready(conn, &queue),
            None => Ok(false),
        };
        let exchange = move |conn: &Connection| {
            let leases: Vec<Lease> = done.into_iter().map(|completion| completion.lease).collect();
            let completed = settle::complete(conn, &leases)?;
            let jobs = match want {
                Some((queue, limit, lease)) => fetch(conn, &queue, limit, lease)?,
                None => Vec::new(),
            };
            Ok(Exchanged { completed, jobs })
        };
        Ok(self.owner.write_if(needed, exchange).await?.unwrap_or_default())
    }

    async fn upkeep(&self, upkeep: Upkeep) -> Result<Kept, Error> {
        let promote = move |conn: &Connection| settle::promote(conn, upkeep.max_crashes);
        let (buried, promoted) = self.owner.write_if(settle::is_any_due, promote).await?.unwrap_or_default();
        let rescue = move |conn: &Connection| settle::rescue(conn, upkeep.backoff);
        let rescued = self.owner.write_if(settle::is_any_expired, rescue).await?.unwrap_or_default();
        Ok(Kept { rescued, buried, promoted, next_due: None })
    }

    async fn extend(&self, leases: Vec<Lease>, lease: Duration) -> Result<Vec<Lease>, Error> {
        self.owner.write(move |conn| settle::extend(conn, leases, lease)).await
    }

    async fn release(&self, leases: Vec<Lease>) -> Result<usize, Error> {
        self.owner.write(move |conn| settle::release(conn, &leases)).await
    }

    async fn retry(&self, retries: Vec<Retry>) -> Result<usize, Error> {
        self.owner.write(move |conn| settle::retry(conn, &retries)).await
    }

    async fn bury(&self, burials: Vec<Burial>) -> Result<usize, Error> {
        self.owner.write(move |conn| settle::bury(conn, &burials)).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.owner.read(stats).await
    }

    async fn dead(&self, limit: usize) -> Result<Vec<DeadJob>, Error> {
        self.owner.read(move |conn| dead(conn, limit)).await
    }

    async fn retry_dead(&self, id: JobId) -> Result<bool, Error> {
        self.owner.write(move |conn| retry_dead(conn, id)).await
    }

    // SQLite has no signal between processes: their workers poll, which costs an index look-up.
    fn announce(&self, _queue: Option<&'static str>) {}

    fn listen(&self, _wakeups: Arc<Wakeups>) -> impl Future<Output = ()> + Send {
        future::pending()
    }
}

/// How long a call waits for the writer lock of others.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest sleep between two tries for it.
const MAX_PAUSE: Duration = Duration::from_micros(500);

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_handler(Some(wait_for_lock))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Of several that turn WAL on at once SQLite refuses all but one, and does not wait as it does elsewhere.
    let began = Instant::now();
    while let Err(error) = conn.pragma_update(None, "journal_mode", "WAL") {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || began.elapsed() > BUSY_TIMEOUT {
            return Err(error);
        }
        thread::sleep(MAX_PAUSE);
    }
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// Called by SQLite each time it finds the file's lock taken; `tries` is how often it was before, for this lock.
///
/// SQLite's own busy timeout sleeps for up to 100 ms between tries. Against a writer that commits without pause some
/// calls then never meet the moment between two commits, and even with 5 ms a few do not; half a millisecond does.
fn wait_for_lock(tries: i32) -> bool {
    thread_local! {
        static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    let began = BEGAN.get().filter(|_| tries > 0).unwrap_or(now);
    BEGAN.set(Some(began));
    if now.duration_since(began) >= BUSY_TIMEOUT {
        return false;
    }
    // 0.1, 0.2, 0.4 … ms.
    let pause = Duration::from_micros(100).saturating_mul(1 << tries.clamp(0, 16));
    thread::sleep(pause.min(MAX_PAUSE));
    true
}

fn migrate(conn: &Connection) -> rusqlite::Result<()> {
    const CREATE: &str = "
        CREATE TABLE IF NOT EXISTS greenwave_jobs_migrations (
            version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT";
    conn.execute(CREATE, [])?;
    let applied: i32 =
        conn.query_row("SELECT coalesce(max(version), 0) FROM greenwave_jobs_migrations", [], |row| {
            row.get(0)
        })?;
    for (version, sql) in MIGRATIONS.iter().filter(|(version, _)| *version > applied) {
        conn.execute_batch(sql)?;
        conn.execute("INSERT INTO greenwave_jobs_migrations (version) VALUES (?1)", [version])?;
    }
    Ok(())
}

fn is_migrated(conn: &Connection) -> rusqlite::Result<bool> {
    const EXISTS: &str =
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'greenwave_jobs_migrations'";
    if conn.query_row(EXISTS, [], |_| Ok(())).optional()?.is_none() {
        return Ok(false);
    }
    // A database that is ahead of this library serves it: migrations only add.
    let newest = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    let sql = "SELECT coalesce(max(version), 0) >= ?1 FROM greenwave_jobs_migrations";
    conn.query_row(sql, [newest], |row| row.get(0))
}

fn insert(conn: &Connection, job: &NewJob) -> rusqlite::Result<Pushed> {
    const PUSH: &str = concat!(
        "INSERT INTO greenwave_jobs
            (queue, name, version, payload, priority, max_attempts, state, run_at, created_at, position, timeout_ms,
            keep_ms, key, trace, awaited, pending)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, coalesce(?8, ",
        now!(),
        ") + ?9, ",
        now!(),
        ", (SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'greenwave_jobs'), ?10, ?11, ?12, ?13,
            ?14, ?15)"
    );
    let (state, at, delay, pending) = match job.start {
        Start::In(0) => (0, None, 0, 0),
        Start::In(ms) => (1, None, ms, 0),
        Start::At(ms) => (1, Some(ms), 0, 0),
        Start::After(pending) => (3, None, 0, pending),
    };
    let NewJob { queue, name, version, payload, priority, max_attempts, timeout_ms, keep_ms, .. } = job;
    let NewJob { key, trace, awaited, .. } = job;
    conn.prepare_cached(PUSH)?.execute(params![
        queue,
        name,
        version,
        payload,
        priority,
        max_attempts,
        state,
        at,
        delay,
        timeout_ms,
        keep_ms,
        key,
        trace,
        awaited,
        pending
    ])?;
    Ok(Pushed::new(conn.last_insert_rowid()))
}

fn is_any_ready(conn: &Connection, queue: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 0 AND queue = ?1)";
    conn.prepare_cached(sql)?.query_row([queue], |row| row.get(0))
}

fn fetch(conn: &Connection, queue: &str, limit: usize, lease: Duration) -> rusqlite::Result<Vec<LeasedJob>> {
    const LEASE: &str = "UPDATE greenwave_jobs_lease SET last = last + 1 RETURNING last";
    const FETCH: &str = concat!(
        "UPDATE greenwave_jobs SET state = 2, lease_id = ?1, lease_until = ",
        now!(),
        " + ?2
        WHERE id IN (
            SELECT id FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = ?3
            ORDER BY priority, position LIMIT ?4)
        RETURNING id, name, version, payload, failures, max_attempts, timeout_ms, ",
        now!(),
        " - run_at, trace, awaited, keep_ms > 0"
    );
    let id: i64 = conn.prepare_cached(LEASE)?.query_row([], |row| row.get(0))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = conn.prepare_cached(FETCH)?;
    let jobs = statement.query_map(params![id, millis(lease), queue, limit], |row| {
        Ok(LeasedJob {
            lease: Lease { job: row.get::<_, i64>(0)?.into(), id },
            name: row.get(1)?,
            version: row.get(2)?,
            payload: row.get(3)?,
            failures: row.get(4)?,
            max_attempts: row.get(5)?,
            timeout: row.get::<_, Option<i64>>(6)?.map(|ms| Duration::from_millis(ms.unsigned_abs())),
            waited: Duration::from_millis(row.get::<_, i64>(7)?.try_into().unwrap_or(0)),
            trace: row.get(8)?,
            awaited: row.get(9)?,
            kept: row.get(10)?,
        })
    })?;
    let mut jobs = jobs.collect::<rusqlite::Result<Vec<_>>>()?;
    jobs.sort_unstable_by_key(|job| job.lease);
    Ok(jobs)
}

fn stats(conn: &Connection) -> rusqlite::Result<QueueStats> {
    const STATS: &str = "
        SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1),
               count(*) FILTER (WHERE state = 2), (SELECT count(*) FROM greenwave_jobs_dead)
        FROM greenwave_jobs";
    conn.query_row(STATS, [], |row| {
        let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(QueueStats { ready: count(0)?, scheduled: count(1)?, running: count(2)?, dead: count(3)? })
    })
}

fn dead(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<DeadJob>> {
    const DEAD: &str = "
        SELECT id, queue, name, payload, attempts, reason, errors, died_at
        FROM greenwave_jobs_dead ORDER BY died_at DESC, id DESC LIMIT ?1";
    let mut statement = conn.prepare(DEAD)?;
    let jobs = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        Ok(DeadJob {
            id: row.get::<_, i64>(0)?.into(),
            queue: row.get(1)?,
            name: row.get(2)?,
            payload: row.get(3)?,
            attempts: row.get(4)?,
            reason: DeadReason::from_code(&row.get::<_, String>(5)?),
            errors: read_errors(&row.get::<_, String>(6)?),
            died_at: time(row.get(7)?),
        })
    })?;
    jobs.collect()
}

fn retry_dead(conn: &Connection, id: JobId) -> rusqlite::Result<bool> {
    const REVIVE: &str = concat!(
        "INSERT INTO greenwave_jobs
            (id, queue, name, payload, priority, state, run_at, max_attempts, errors, created_at)
        SELECT id, queue, name, payload, priority, 0, ",
        now!(),
        ", max_attempts, errors, created_at FROM greenwave_jobs_dead WHERE id = ?1"
    );
    let revived = conn.execute(REVIVE, [id.get()])? == 1;
    conn.execute("DELETE FROM greenwave_jobs_dead WHERE id = ?1", [id.get()])?;
    Ok(revived)
}
