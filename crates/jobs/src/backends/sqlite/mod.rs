//! SQLite: one thread owns one connection; writers take the file's lock with BEGIN IMMEDIATE.

mod done;
mod fetch;
mod flows;
mod inspect;
mod keyed;
mod limits;
mod open;
mod owner;
mod progress;
mod push;
mod schedules;
mod settle;
mod unique;
mod upkeep;
mod workflow;

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rusqlite::Connection;
#[cfg(feature = "testing")]
use rusqlite::functions::{Context, FunctionFlags};
use tokio::time::sleep;

use super::{Backend, Burial, Completion, Control, Exchanged, Kept, Lease, Retry, Store, Upkeep, Want};
use crate::backends::inspect::{InspectStore, Observed};
use crate::dead::{DeadJob, DeadReason, read_errors, time};
use crate::job::{NewJob, Pushed};
use crate::limits::Bounds;
use crate::queue::QueueStats;
use crate::unique::Sweep;
use crate::wakeups::{Notice, Wakeups};
use crate::{Error, Job, JobId, PushOptions, Queue, telemetry};
use owner::Durability::{Lazy, Synced};

/// A queue in an SQLite file.
#[derive(Debug, Clone)]
pub struct Sqlite {
    owner: owner::Handle,
    controls: Arc<limits::Controls>,
    bounds: Arc<Bounds>,
    unique: Arc<Sweep>,
    wakeups: Arc<Wakeups>,
}

/// How many transactions one upkeep makes at most.
const MAX_ROUNDS: usize = 100;

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
        let conn = open::open(path.as_ref()).map_err(Error::Sqlite)?;
        let (store, wakeups) = Sqlite::over(conn)?;
        Ok(Queue::over(store, wakeups))
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
        let job = self.encode(job, &options)?;
        self.store.make_room_in(conn, J::QUEUE, 1)?;
        let pushed = push::push(conn, &[job]).map_err(Error::Sqlite)?;
        telemetry::pushed(J::QUEUE, J::NAME, 1);
        pushed.into_iter().next().ok_or(Error::Closed)
    }

    /// Stores many jobs of a type in the caller's transaction, or in one of its own. Answers with their ids in order.
    pub fn push_many_in<J: Job>(&self, conn: &Connection, jobs: &[J]) -> Result<Vec<Pushed>, Error> {
        let encoded = self.encode_all(jobs)?;
        self.store.make_room_in(conn, J::QUEUE, encoded.len())?;
        let pushed = push::push(conn, &encoded).map_err(Error::Sqlite)?;
        telemetry::pushed(J::QUEUE, J::NAME, jobs.len());
        Ok(pushed)
    }
}

impl Sqlite {
    /// Wakes the workers of queues. Those of other processes see that the file has changed.
    fn tell(&self, queues: Vec<String>) {
        queues.iter().for_each(|queue| self.wakeups.wake(Some(queue)));
    }
}

#[cfg(feature = "testing")]
impl Queue<Sqlite> {
    /// A queue whose time is what `now` says, in milliseconds since 1970.
    pub(crate) fn sqlite_by(path: &Path, now: Arc<AtomicI64>) -> Result<Self, Error> {
        let conn = open::open(path).map_err(Error::Sqlite)?;
        // It takes the place of SQLite's own. Half a millisecond, because the fraction is cut off.
        let clock = move |_: &Context<'_>| Ok((now.load(Ordering::SeqCst) as f64 + 0.5) / 1000.0);
        conn.create_scalar_function("unixepoch", 1, FunctionFlags::SQLITE_UTF8, clock)
            .map_err(Error::Sqlite)?;
        let (store, wakeups) = Sqlite::over(conn)?;
        Ok(Queue::over(store, wakeups))
    }
}

#[cfg(feature = "testing")]
impl Sqlite {
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.owner.read(read).await
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.owner.write(Synced, write).await
    }
}

impl Sqlite {
    fn over(conn: Connection) -> Result<(Self, Arc<Wakeups>), Error> {
        let owner = owner::Handle::spawn(conn)?;
        let wakeups = Arc::<Wakeups>::default();
        let (controls, bounds, unique) = Default::default();
        Ok((Sqlite { owner, controls, bounds, unique, wakeups: Arc::clone(&wakeups) }, wakeups))
    }

    /// Deletes the keys of unique jobs that nobody holds any more, some of them now and then.
    async fn sweep_unique(&self) -> Result<(), Error> {
        while let Some((name, key)) = self.unique.begin() {
            let seen = self.owner.read(move |conn| unique::look(conn, &name, &key)).await?;
            let last = seen.last().map(|((name, key, _), _)| (name.clone(), key.clone()));
            let count = seen.len();
            let free: Vec<_> = seen.into_iter().filter(|(_, free)| *free).map(|(key, _)| key).collect();
            self.unique.ended(count, free.len(), last);
            if !free.is_empty() {
                self.owner.write(Lazy, move |conn| unique::delete(conn, &free)).await?;
            }
        }
        Ok(())
    }
}

impl Backend for Sqlite {}

impl Store for Sqlite {
    async fn migrate(&self) -> Result<(), Error> {
        self.owner.write(Synced, open::migrate).await
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        self.owner.read(open::is_migrated).await
    }

    async fn admit(&self, queue: &'static str, jobs: usize) -> Result<(), Error> {
        self.make_room(queue, jobs).await
    }

    fn control(&self, queue: &str) -> Control {
        self.controls.get(queue)
    }

    async fn push(&self, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
        self.owner.write(Synced, move |conn| push::insert(conn, &jobs)).await
    }

    async fn exchange(&self, done: Vec<Completion>, want: Option<Want<'_>>) -> Result<Exchanged, Error> {
        let want = want.map(|want| (want.queue.to_owned(), want.limit, want.lease));
        let durability = if done.is_empty() { Lazy } else { Synced };
        let queue = want.as_ref().map(|want| want.0.clone()).filter(|_| done.is_empty());
        let ended: Vec<JobId> =
            done.iter().filter(|done| done.kept || done.awaited).map(|done| done.lease.job).collect();
        let look = move |conn: &Connection| match queue {
            Some(queue) if !fetch::is_any_ready(conn, &queue)? => Ok(Some(Exchanged::default())),
            _ => Ok(None),
        };
        let exchange = move |conn: &Connection| {
            let (completed, freed) = done::complete(conn, &done)?;
            let (jobs, again) = match want {
                Some((queue, limit, lease)) => keyed::fetch(conn, &queue, limit, lease)?,
                None => Default::default(),
            };
            Ok(Exchanged { completed, jobs, again, freed })
        };
        let mut exchanged = self.owner.look_then_write(durability, look, exchange).await?;
        self.wakeups.waiters.ended(ended);
        self.tell(std::mem::take(&mut exchanged.freed));
        Ok(exchanged)
    }

    async fn upkeep(&self, upkeep: Upkeep) -> Result<Kept, Error> {
        self.controls.set(self.owner.read(limits::controls).await?);
        self.sweep_unique().await?;
        let mut kept = Kept::default();
        // Others get their turn between two rounds.
        for _ in 0..MAX_ROUNDS {
            let round = move |conn: &Connection| upkeep::round(conn, upkeep);
            let upkeep::Round { kept: found, new, more } =
                self.owner.look_then_write(Lazy, upkeep::look, round).await?;
            self.tell(new);
            kept.rescued += found.rescued;
            kept.buried += found.buried;
            kept.promoted += found.promoted;
            kept.next_due = found.next_due;
            if !more {
                break;
            }
        }
        Ok(kept)
    }

    async fn extend(&self, leases: Vec<Lease>, lease: Duration) -> Result<Vec<Lease>, Error> {
        self.owner.write(Lazy, move |conn| settle::extend(conn, leases, lease)).await
    }

    async fn report(&self, progress: Vec<(Lease, String)>) -> Result<usize, Error> {
        self.owner.write(Lazy, move |conn| progress::report(conn, &progress)).await
    }

    async fn release(&self, leases: Vec<Lease>) -> Result<usize, Error> {
        self.owner.write(Synced, move |conn| settle::release(conn, &leases)).await
    }

    async fn retry(&self, retries: Vec<Retry>) -> Result<usize, Error> {
        self.owner.write(Synced, move |conn| settle::retry(conn, &retries)).await
    }

    async fn bury(&self, burials: Vec<Burial>) -> Result<usize, Error> {
        let ended: Vec<JobId> = burials.iter().map(|burial| burial.lease.job).collect();
        let (buried, freed) = self.owner.write(Synced, move |conn| settle::bury(conn, &burials)).await?;
        self.wakeups.waiters.ended(ended);
        self.tell(freed);
        Ok(buried)
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.owner.read(stats).await
    }

    async fn dead(&self, limit: usize) -> Result<Vec<DeadJob>, Error> {
        self.owner.read(move |conn| dead(conn, limit)).await
    }

    async fn retry_dead(&self, id: JobId) -> Result<bool, Error> {
        Ok(self.revive(vec![id.get()]).await? == 1)
    }

    async fn observe(&self, holder: i64, queues: &[&str], hold: Duration) -> Result<Vec<Observed>, Error> {
        inspect::observe(&self.owner, holder, queues, hold).await
    }

    // SQLite has no signal between processes; `listen` looks for what others have changed.
    fn announce(&self, _notice: Notice) {}

    fn listen(&self, wakeups: Arc<Wakeups>) -> impl Future<Output = ()> + Send {
        listen(self.owner.clone(), wakeups)
    }
}

/// How often a worker looks whether another process has written to the file: a look into shared memory, no more.
const LOOK: Duration = Duration::from_millis(20);

/// Wakes all workers of this process when any other connection has committed, whatever it was.
async fn listen(owner: owner::Handle, wakeups: Arc<Wakeups>) {
    let mut seen = None;
    loop {
        let look = |conn: &Connection| {
            // It changes with the commits of other connections only.
            conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get::<_, i64>(0))
        };
        if let Ok(version) = owner.read(look).await
            && seen.replace(version).is_some_and(|seen| seen != version)
        {
            wakeups.wake(None);
        }
        sleep(LOOK).await;
    }
}

/// The next of the numbers that name jobs, leases and the order of start: `count` of them, which nobody ever gets again.
fn draw(conn: &Connection, count: usize) -> rusqlite::Result<Range<i64>> {
    const DRAW: &str = "UPDATE greenwave_jobs_sequence SET last = last + ?1 RETURNING last";
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let last: i64 = conn.prepare_cached(DRAW)?.query_row([count], |row| row.get(0))?;
    Ok(last - count + 1..last + 1)
}

/// SQLite's own clock, for several rows or statements.
fn now_ms(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached(concat!("SELECT ", now!()))?.query_row([], |row| row.get(0))
}

fn stats(conn: &Connection) -> rusqlite::Result<QueueStats> {
    const STATS: &str = "
        SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1),
               count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 3),
               (SELECT count(*) FROM greenwave_jobs_dead)
        FROM greenwave_jobs";
    conn.query_row(STATS, [], |row| {
        let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
        Ok(QueueStats {
            ready: count(0)?,
            scheduled: count(1)?,
            running: count(2)?,
            blocked: count(3)?,
            dead: count(4)?,
        })
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
