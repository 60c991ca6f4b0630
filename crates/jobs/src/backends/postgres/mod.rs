//! PostgreSQL: rows are locked by `FOR UPDATE SKIP LOCKED`, time is the server's.

mod done;
mod fetch;
mod flows;
mod inspect;
mod keyed;
mod lanes;
mod limits;
mod notify;
mod progress;
mod push;
mod schedules;
mod settle;
mod unique;
mod upkeep;
mod watermark;
mod workflow;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool, Transaction};
use tokio::time::sleep;

use super::{
    Backend, Burial, Completion, Control, Exchanged, Kept, LEASE_ENDED, Lease, LeasedJob, MAINTENANCE_BATCH,
    Retry, Store, Upkeep, Want,
};
use crate::announcer::Announcer;
use crate::backends::inspect::{InspectStore, Observed};
use crate::dead::{DeadJob, DeadReason, read_errors, time};
use crate::error::{chain, postgres};
use crate::job::{NewJob, Pushed};
use crate::limits::Bounds;
use crate::queue::QueueStats;
use crate::unique::Sweep;
use crate::wakeups::{Notice, Wakeups};
use crate::{Error, Job, JobId, PushOptions, Queue, telemetry};
use lanes::{Lanes, Use};

/// A queue in PostgreSQL, over a sqlx pool.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    /// Lanes apart, so that none waits for the others.
    fetching: Arc<Lanes>,
    settling: Arc<Lanes>,
    pushing: Arc<Lanes>,
    cleaning: Arc<done::Cleaning>,
    rules: Arc<limits::Rules>,
    bounds: Arc<Bounds>,
    unique: Arc<Sweep>,
    announcer: Arc<Announcer<notify::Notify>>,
    wakeups: Arc<Wakeups>,
}

const MIGRATIONS: &[(i32, &str)] = &[
    (1, include_str!("../../../migrations/postgres/0001_jobs.sql")),
    (2, include_str!("../../../migrations/postgres/0002_positions_and_options.sql")),
    (3, include_str!("../../../migrations/postgres/0003_done.sql")),
    (4, include_str!("../../../migrations/postgres/0004_limits.sql")),
    (5, include_str!("../../../migrations/postgres/0005_schedules_and_workflows.sql")),
    (6, include_str!("../../../migrations/postgres/0006_admin.sql")),
];

/// "greenwav" in ASCII; whoever migrates the queue holds this advisory lock.
const MIGRATION_LOCK: i64 = 0x6772_6565_6e77_6176;

/// How long those who use the tables have them for themselves, between two tries to change them.
const BETWEEN_MIGRATIONS: Duration = Duration::from_secs(1);

impl Queue<Postgres> {
    /// A queue in the database of this pool. Nothing is sent until the first call.
    ///
    /// What the queue does most goes over connections that it takes out of the pool when they are needed, and keeps:
    /// up to four that push, and four of a worker, which has one more, on which it listens. The pool may open others
    /// in their place, so the server sees as many more than `max_connections`. When the pool is closed, they end at
    /// their next use.
    ///
    /// A push is as durable as `synchronous_commit` says, and so is the end of a job that fails, dies, is kept, or that
    /// others wait for. That a job was leased or deleted is committed with `synchronous_commit = off`: a crash of the
    /// server may undo it for up to three times `wal_writer_delay` (0.6 s by default), and the job runs again.
    pub fn postgres(pool: PgPool) -> Self {
        let lanes = |kind, count| Arc::new(Lanes::new(pool.clone(), kind, count));
        let (fetching, settling, pushing) =
            (lanes(Use::Fetching, 2), lanes(Use::Settling, 2), lanes(Use::Pushing, 4));
        let announcer = Arc::new(Announcer::new(notify::Notify(pool.clone())));
        let wakeups = Arc::<Wakeups>::default();
        let store = Postgres {
            pool,
            fetching,
            settling,
            pushing,
            cleaning: Arc::default(),
            rules: Arc::default(),
            bounds: Arc::default(),
            unique: Arc::default(),
            announcer,
            wakeups: Arc::clone(&wakeups),
        };
        Queue::over(store, wakeups)
    }

    /// Stores a job in the caller's transaction: it exists if and when that commits.
    ///
    /// Call [`Queue::wake`] after the commit, so that no worker waits for its next poll.
    ///
    /// ```no_run
    /// # use greenwave_jobs::{Job, Queue, Postgres};
    /// # async fn f(pool: sqlx::PgPool, queue: Queue<Postgres>, job: impl Job) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut tx = pool.begin().await?;
    /// sqlx::query("INSERT INTO users (name) VALUES ('Ada')").execute(&mut *tx).await?;
    /// queue.push_in(&mut tx, &job).await?;
    /// tx.commit().await?;
    /// queue.wake();
    /// # Ok(())
    /// # }
    /// ```
    pub async fn push_in<J: Job>(&self, conn: &mut PgConnection, job: &J) -> Result<Pushed, Error> {
        self.push_in_with(conn, job, PushOptions::default()).await
    }

    /// As [`push_in`](Self::push_in), with a delay or a priority.
    pub async fn push_in_with<J: Job>(
        &self,
        conn: &mut PgConnection,
        job: &J,
        options: PushOptions,
    ) -> Result<Pushed, Error> {
        let job = self.encode(job, &options)?;
        self.store.admit_in(conn, J::QUEUE, 1).await?;
        let pushed = push::push(conn, vec![job]).await?;
        telemetry::pushed(J::QUEUE, J::NAME, 1);
        pushed.into_iter().next().ok_or(Error::Closed)
    }

    /// Stores many jobs of a type in the caller's transaction, in one statement. Answers with their ids in order.
    pub async fn push_many_in<J: Job>(
        &self,
        conn: &mut PgConnection,
        jobs: &[J],
    ) -> Result<Vec<Pushed>, Error> {
        let encoded = self.encode_all(jobs)?;
        self.store.admit_in(conn, J::QUEUE, encoded.len()).await?;
        let ids = push::push(conn, encoded).await?;
        telemetry::pushed(J::QUEUE, J::NAME, jobs.len());
        Ok(ids)
    }
}

impl Postgres {
    /// Wakes the workers of queues, here and elsewhere.
    fn tell(&self, queues: Vec<String>) {
        for queue in queues {
            let notice = Notice::Ready(Some(queue.into()));
            self.wakeups.tell(&notice);
            self.announcer.announce(notice);
        }
    }
}

impl Backend for Postgres {}

impl Store for Postgres {
    async fn migrate(&self) -> Result<(), Error> {
        migrate(&self.pool).await.map_err(postgres)?;
        if self.cleaning.is_due() {
            let mut lane = self.settling.take().await.map_err(postgres)?;
            self.cleaning.clean(&mut lane).await.map_err(postgres)?;
            self.settling.give(lane);
        }
        Ok(())
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        let mut conn = self.pool.acquire().await.map_err(postgres)?;
        is_migrated(&mut conn).await.map_err(postgres)
    }

    async fn admit(&self, queue: &'static str, jobs: usize) -> Result<(), Error> {
        self.make_room(queue, jobs).await
    }

    fn control(&self, queue: &str) -> Control {
        self.rules.control(queue)
    }

    async fn push(&self, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
        let mut lane = self.pushing.take().await.map_err(postgres)?;
        let pushed = push::push(&mut lane, jobs).await?;
        self.pushing.give(lane);
        Ok(pushed)
    }

    async fn exchange(&self, done: Vec<Completion>, want: Option<Want<'_>>) -> Result<Exchanged, Error> {
        let mut lane = self.fetching.take().await.map_err(postgres)?;
        let ended: Vec<JobId> =
            done.iter().filter(|done| done.kept || done.awaited).map(|done| done.lease.job).collect();
        let mut exchanged = fetch::exchange(&mut lane, &self.rules, done, want).await.map_err(postgres)?;
        self.fetching.give(lane);
        self.wakeups.waiters.ended(ended);
        self.tell(std::mem::take(&mut exchanged.freed));
        Ok(exchanged)
    }

    async fn upkeep(&self, upkeep: Upkeep) -> Result<Kept, Error> {
        let mut lane = self.settling.take().await.map_err(postgres)?;
        let (kept, new) = upkeep::upkeep(&mut lane, upkeep).await?;
        self.tell(new);
        self.rules.refresh(&mut lane).await.map_err(postgres)?;
        unique::sweep(&mut lane, &self.unique).await.map_err(postgres)?;
        if self.cleaning.is_due()
            && let Err(error) = self.cleaning.clean(&mut lane).await
        {
            // Jobs run all the same.
            tracing::warn!(error = chain(&error), "could not make or drop the partitions of the kept jobs");
            return Ok(kept);
        }
        self.settling.give(lane);
        Ok(kept)
    }

    async fn extend(&self, leases: Vec<Lease>, lease: Duration) -> Result<Vec<Lease>, Error> {
        let mut lane = self.settling.take().await.map_err(postgres)?;
        let held = settle::extend(&mut lane, leases, lease).await.map_err(postgres)?;
        self.settling.give(lane);
        Ok(held)
    }

    async fn report(&self, progress: Vec<(Lease, String)>) -> Result<usize, Error> {
        let mut lane = self.settling.take().await.map_err(postgres)?;
        let reported = progress::report(&mut lane, progress).await.map_err(postgres)?;
        self.settling.give(lane);
        Ok(reported)
    }

    async fn release(&self, leases: Vec<Lease>) -> Result<usize, Error> {
        let mut lane = self.settling.take().await.map_err(postgres)?;
        let released = settle::release(&mut lane, leases).await.map_err(postgres)?;
        self.settling.give(lane);
        Ok(released)
    }

    async fn retry(&self, retries: Vec<Retry>) -> Result<usize, Error> {
        let mut lane = self.settling.take().await.map_err(postgres)?;
        let retried = settle::retry(&mut lane, retries).await.map_err(postgres)?;
        self.settling.give(lane);
        Ok(retried)
    }

    async fn bury(&self, burials: Vec<Burial>) -> Result<usize, Error> {
        let mut lane = self.settling.take().await.map_err(postgres)?;
        let ended: Vec<JobId> = burials.iter().map(|burial| burial.lease.job).collect();
        let (buried, freed) = settle::bury(&mut lane, burials).await.map_err(postgres)?;
        self.settling.give(lane);
        self.wakeups.waiters.ended(ended);
        self.tell(freed);
        Ok(buried)
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        const STATS: &str = "
            SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1),
                   count(*) FILTER (WHERE state = 2), count(*) FILTER (WHERE state = 3),
                   (SELECT count(*) FROM greenwave_jobs_dead)
            FROM greenwave_jobs";
        let row: (i64, i64, i64, i64, i64) =
            sqlx::query_as(STATS).fetch_one(&self.pool).await.map_err(postgres)?;
        let [ready, scheduled, running, blocked, dead] =
            [row.0, row.1, row.2, row.3, row.4].map(i64::unsigned_abs);
        Ok(QueueStats { ready, scheduled, running, blocked, dead })
    }

    async fn dead(&self, limit: usize) -> Result<Vec<DeadJob>, Error> {
        dead(&self.pool, limit).await.map_err(postgres)
    }

    async fn retry_dead(&self, id: JobId) -> Result<bool, Error> {
        Ok(self.revive(vec![id.get()]).await? == 1)
    }

    async fn observe(&self, holder: i64, queues: &[&str], hold: Duration) -> Result<Vec<Observed>, Error> {
        inspect::observe(&self.pool, holder, queues, hold).await.map_err(postgres)
    }

    fn announce(&self, notice: Notice) {
        self.announcer.announce(notice);
    }

    fn listen(&self, wakeups: Arc<Wakeups>) -> impl Future<Output = ()> + Send {
        notify::listen(self.pool.clone(), wakeups)
    }
}

async fn migrate(pool: &PgPool) -> Result<(), sqlx::Error> {
    // The quick way out takes no lock: the usual start finds all in place.
    if is_migrated(&mut *pool.acquire().await?).await? {
        return Ok(());
    }
    loop {
        match try_migrate(pool).await {
            Err(error) if done::is_busy(&error) => {
                tracing::info!("a table that is to be changed is in use; the migration waits");
                sleep(BETWEEN_MIGRATIONS).await;
            }
            migrated => return migrated,
        }
    }
}

/// All that is missing, or nothing.
async fn try_migrate(pool: &PgPool) -> Result<(), sqlx::Error> {
    const CREATE: &str = "
        CREATE TABLE IF NOT EXISTS greenwave_jobs_migrations (
            version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())";
    let mut tx = begin(pool).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *tx).await?;
    sqlx::query(CREATE).execute(&mut *tx).await?;
    let applied: i32 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM greenwave_jobs_migrations")
        .fetch_one(&mut *tx)
        .await?;
    // Whoever waits to change a table has all who use it wait too; so it does not wait for long.
    sqlx::query("SET LOCAL lock_timeout = '1s'").execute(&mut *tx).await?;
    for &(version, sql) in MIGRATIONS.iter().filter(|(version, _)| *version > applied) {
        sqlx::raw_sql(sql).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO greenwave_jobs_migrations (version) VALUES ($1)")
            .bind(version)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await
}

/// Opens a transaction in a task of its own, which nobody drops half way.
///
/// Dropped between BEGIN and its answer, sqlx gives the connection back to the pool with the transaction open, and
/// whoever takes it next works in it without knowing. The task ends when BEGIN is answered; if the caller is gone by
/// then, it drops a transaction that sqlx knows of and rolls back.
async fn begin(pool: &PgPool) -> Result<Transaction<'static, sqlx::Postgres>, sqlx::Error> {
    let pool = pool.clone();
    match tokio::spawn(async move { pool.begin().await }).await {
        Ok(begun) => begun,
        Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
        // Only the end of the runtime cancels it.
        Err(_) => Err(sqlx::Error::WorkerCrashed),
    }
}

async fn is_migrated(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('greenwave_jobs_migrations') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await?;
    if !exists {
        return Ok(false);
    }
    // A database that is ahead of this library serves it: migrations only add.
    let newest = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    sqlx::query_scalar("SELECT coalesce(max(version), 0) >= $1 FROM greenwave_jobs_migrations")
        .bind(newest)
        .fetch_one(conn)
        .await
}

async fn dead(pool: &PgPool, limit: usize) -> Result<Vec<DeadJob>, sqlx::Error> {
    const DEAD: &str = "
        SELECT id, queue, name, payload::text, attempts, reason, errors::text,
            (extract(epoch FROM died_at) * 1000)::bigint
        FROM greenwave_jobs_dead ORDER BY died_at DESC, id DESC LIMIT $1";
    type Row = (i64, String, String, String, i32, String, String, i64);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows: Vec<Row> = sqlx::query_as(DEAD).bind(limit).fetch_all(pool).await?;
    let job = |(id, queue, name, payload, attempts, reason, errors, died_at): Row| DeadJob {
        id: id.into(),
        queue,
        name,
        payload,
        attempts: attempts.unsigned_abs(),
        reason: DeadReason::from_code(&reason),
        errors: read_errors(&errors),
        died_at: time(died_at),
    };
    Ok(rows.into_iter().map(job).collect())
}
