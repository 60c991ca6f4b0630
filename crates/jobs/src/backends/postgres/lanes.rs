//! Connections of the queue's own. A statement through sqlx's pool costs a ping before it and another after it; a
//! connection that is kept costs neither, and remembers what it has learned of the queue.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::watermark::Watermark;

/// A connection that was used so lately is not asked first whether it lives.
const FRESH: Duration = Duration::from_secs(1);

/// Older ones are replaced, as in sqlx's pool.
const MAX_AGE: Duration = Duration::from_secs(30 * 60);

/// What the connections of a kind are for. PostgreSQL plans a prepared statement for the sizes that its tables have
/// then, and keeps the plan when an empty table has got a million rows; so neither kind lets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The caller's settings hold.
    Pushing,
    /// Exchanges: few statements, of which there is one good plan each, and that without regard to sizes: by the index.
    /// A nested loop compares each job of a batch with each other one.
    Fetching,
    /// Many statements, each of them seldom: planned each time.
    Settling,
}

impl Use {
    const fn settings(self) -> &'static str {
        match self {
            Use::Pushing => "",
            Use::Fetching => {
                "SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_nestloop = off;
                 SET plan_cache_mode = force_generic_plan"
            }
            Use::Settling => {
                "SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off;
                 SET plan_cache_mode = force_custom_plan"
            }
        }
    }
}

/// So many leases are drawn from one number of the sequence.
const LEASES: i64 = 1 << 24;

/// A few connections that were taken from a pool for good, so that its hooks have run on them.
#[derive(Debug)]
pub(super) struct Lanes {
    pool: PgPool,
    kind: Use,
    places: Arc<Semaphore>,
    idle: Mutex<Vec<Lane>>,
}

/// One of them while it is used. Dropped instead of [given back](Lanes::give), it is closed: after an error, or with a
/// statement that may still be under way.
#[derive(Debug)]
pub(super) struct Lane {
    conn: PgConnection,
    /// What this session knows. It ends with the session, and so with the server, after whose crash numbers that were
    /// drawn may be drawn again.
    marks: Watermark,
    /// None while it is idle.
    place: Option<OwnedSemaphorePermit>,
    born: Instant,
    taken: Instant,
    /// The last lease id that was drawn, and how many more there are.
    lease: i64,
    leases: i64,
    /// False after `synchronous_commit` was switched off.
    durable: bool,
}

impl Lanes {
    /// At most so many.
    pub(super) fn new(pool: PgPool, kind: Use, count: usize) -> Self {
        Lanes { pool, kind, places: Arc::new(Semaphore::new(count)), idle: Mutex::default() }
    }

    /// One that is free, or a new one; waits while all are in use.
    pub(super) async fn take(&self) -> Result<Lane, sqlx::Error> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        while let Some(mut lane) = self.pop() {
            if lane.taken.elapsed() > FRESH && lane.ping().await.is_err() {
                continue;
            }
            lane.taken = Instant::now();
            lane.place = Some(place);
            return Ok(lane);
        }
        let mut conn = self.pool.acquire().await?.detach();
        let settings = self.kind.settings();
        if !settings.is_empty() {
            sqlx::raw_sql(settings).execute(&mut conn).await?;
        }
        let (now, marks) = (Instant::now(), Watermark::default());
        let place = Some(place);
        Ok(Lane { conn, marks, place, born: now, taken: now, lease: 0, leases: 0, durable: true })
    }

    fn pop(&self) -> Option<Lane> {
        let mut idle = self.lock();
        if self.pool.is_closed() {
            idle.clear();
        }
        idle.retain(|lane| lane.born.elapsed() < MAX_AGE);
        idle.pop()
    }

    /// Takes it back, when all went well with it.
    pub(super) fn give(&self, mut lane: Lane) {
        lane.taken = Instant::now();
        // After the lane is back: whoever gets the place finds it.
        let place = lane.place.take();
        self.lock().push(lane);
        drop(place);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    /// An id that no lease has had or will have, even if a crash of the server undoes the statement that uses it.
    ///
    /// A sequence goes back in a crash to what was flushed. Of what a commit that waited for that has drawn, it never
    /// gives again: such a number of this session's own is the upper part of its lease ids. They are negative; those of
    /// statements that draw an id themselves, and wait for their commit, are not.
    pub(super) async fn draw_lease(&mut self) -> Result<i64, sqlx::Error> {
        // The transaction id is what there is to commit: a draw alone may leave nothing to wait for.
        const DRAW: &str = "SELECT nextval('greenwave_jobs_lease') FROM pg_current_xact_id()";
        if self.leases == 0 {
            self.commit_durably(true).await?;
            let drawn: i64 = sqlx::query_scalar(DRAW).fetch_one(&mut self.conn).await?;
            (self.lease, self.leases) = (drawn.saturating_mul(-LEASES), LEASES);
        }
        self.leases -= 1;
        self.lease = self.lease.saturating_sub(1);
        Ok(self.lease)
    }

    /// Whether commits wait until they are as durable as the pool's connections have it, from now on.
    pub(super) async fn commit_durably(&mut self, durable: bool) -> Result<(), sqlx::Error> {
        if self.durable != durable {
            let sql = if durable { "RESET synchronous_commit" } else { "SET synchronous_commit = off" };
            sqlx::raw_sql(sql).execute(&mut self.conn).await?;
            self.durable = durable;
        }
        Ok(())
    }

    /// The connection and what is known of the queue, at once.
    pub(super) fn parts(&mut self) -> (&mut PgConnection, &mut Watermark) {
        (&mut self.conn, &mut self.marks)
    }
}

impl Deref for Lane {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.conn
    }
}

impl DerefMut for Lane {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.conn
    }
}
