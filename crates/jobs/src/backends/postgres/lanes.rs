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

/// How long a connection keeps its plans. PostgreSQL plans a prepared statement for the size that the table has then,
/// and keeps the plan when an empty table has got a million rows, until somebody analyses it.
const PLANS_LAST: Duration = Duration::from_secs(5);

/// A statement that takes so long may have such a plan; it is planned anew, at most once a second.
const SLOW: Duration = Duration::from_millis(50);
const PLANS_LAST_IF_SLOW: Duration = Duration::from_secs(1);

/// A few connections that were taken from a pool for good, so that its hooks have run on them.
#[derive(Debug)]
pub(super) struct Lanes {
    pool: PgPool,
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
    planned: Instant,
    taken: Instant,
    slow: bool,
}

impl Lanes {
    /// At most so many.
    pub(super) fn new(pool: PgPool, count: usize) -> Self {
        Lanes { pool, places: Arc::new(Semaphore::new(count)), idle: Mutex::default() }
    }

    /// One that is free, or a new one; waits while all are in use.
    pub(super) async fn take(&self) -> Result<Lane, sqlx::Error> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| sqlx::Error::PoolClosed)?;
        while let Some(mut lane) = self.pop() {
            if lane.taken.elapsed() > FRESH && lane.ping().await.is_err() {
                continue;
            }
            lane.refresh_plans().await?;
            lane.taken = Instant::now();
            lane.place = Some(place);
            return Ok(lane);
        }
        let conn = self.pool.acquire().await?.detach();
        let now = Instant::now();
        let marks = Watermark::default();
        Ok(Lane { conn, marks, place: Some(place), born: now, planned: now, taken: now, slow: false })
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
        lane.slow |= lane.taken.elapsed() > SLOW;
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
    async fn refresh_plans(&mut self) -> Result<(), sqlx::Error> {
        let limit = if self.slow { PLANS_LAST_IF_SLOW } else { PLANS_LAST };
        if self.planned.elapsed() > limit {
            self.conn.clear_cached_statements().await?;
            self.planned = Instant::now();
            self.slow = false;
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
