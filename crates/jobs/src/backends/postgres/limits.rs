//! What holds for a named queue: limits, pauses, and what this process knows of them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::runtime::Handle;

use super::Postgres;
use crate::Error;
use crate::backends::limits::LimitStore;
use crate::backends::{Control, SqlBackend};
use crate::deadline::in_time;
use crate::error::postgres;
use crate::limits::{Admission, Bounds, QueueLimits, read};

/// In a fetch's predicate: the queue of this parameter may be fetched from without its lock.
macro_rules! unruled {
    ($queue:literal) => {
        concat!(
            "NOT EXISTS (SELECT FROM greenwave_jobs_queues WHERE name = ",
            $queue,
            " AND (paused OR limits - 'max_waiting' <> '{}'))"
        )
    };
}
pub(super) use unruled;

/// What a process knows of a queue whose jobs it fetches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) paused: bool,
    limited: bool,
    /// Once there was a job with a key: there will be more.
    keyed: bool,
}

impl Rule {
    /// True if jobs are to be fetched by turns, or within limits.
    pub(super) fn is_ruled(self) -> bool {
        self.limited || self.keyed
    }
}

/// The rules of the queues that this process fetches from. They are never relied on to let something pass: the
/// statement that fetches from plain queues finds nothing where there are rules, and then they are looked up.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    rules: HashMap<String, Rule>,
    looked: Option<Instant>,
}

/// How often a process looks whether something has changed.
const INTERVAL: Duration = Duration::from_millis(500);

impl Rules {
    pub(super) fn get(&self, queue: &str) -> Rule {
        let mut known = self.lock();
        match known.rules.get(queue) {
            Some(rule) => *rule,
            None => *known.rules.entry(queue.to_owned()).or_default(),
        }
    }

    pub(super) fn control(&self, queue: &str) -> Control {
        self.lock()
            .rules
            .get(queue)
            .map_or(Control::default(), |rule| Control { paused: rule.paused, limited: rule.limited })
    }

    fn pause(&self, queue: &str, paused: bool) {
        if let Some(rule) = self.lock().rules.get_mut(queue) {
            rule.paused = paused;
        }
    }

    /// Looks up one queue.
    pub(super) async fn look(&self, conn: &mut PgConnection, queue: &str) -> Result<Rule, sqlx::Error> {
        self.read(conn, vec![queue.to_owned()]).await?;
        Ok(self.get(queue))
    }

    /// Looks up all of them, now and then.
    pub(super) async fn refresh(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        let queues: Vec<String> = {
            let mut known = self.lock();
            if known.looked.is_some_and(|looked| looked.elapsed() < INTERVAL) {
                return Ok(());
            }
            known.looked = Some(Instant::now());
            known.rules.keys().cloned().collect()
        };
        if queues.is_empty() { Ok(()) } else { self.read(conn, queues).await }
    }

    async fn read(&self, conn: &mut PgConnection, queues: Vec<String>) -> Result<(), sqlx::Error> {
        const READ: &str = "
            SELECT mine.name, coalesce(q.paused, false), coalesce(q.limits - 'max_waiting' <> '{}', false),
                mine.keyed OR EXISTS (
                    SELECT FROM greenwave_jobs WHERE state = 0 AND key IS NOT NULL AND queue = mine.name)
            FROM unnest($1::text[], $2::bool[]) AS mine (name, keyed)
            LEFT JOIN greenwave_jobs_queues q USING (name)";
        let keyed: Vec<bool> = queues.iter().map(|queue| self.get(queue).keyed).collect();
        let rows: Vec<(String, bool, bool, bool)> =
            sqlx::query_as(READ).bind(queues).bind(keyed).fetch_all(conn).await?;
        let mut known = self.lock();
        known.rules.extend(
            rows.into_iter().map(|(name, paused, limited, keyed)| (name, Rule { paused, limited, keyed })),
        );
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqlBackend for Postgres {}

impl LimitStore for Postgres {
    async fn set_limits(&self, queue: &str, limits: Option<&QueueLimits>) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO greenwave_jobs_queues (name, limits) VALUES ($1, $2::text::jsonb)
            ON CONFLICT (name) DO UPDATE SET limits = excluded.limits";
        let limits = limits.map(serde_json::to_string).transpose().map_err(crate::limits::invalid)?;
        sqlx::query(SET).bind(queue).bind(limits).execute(&self.pool).await.map_err(postgres)?;
        self.bounds.forget(queue);
        Ok(())
    }

    async fn limits(&self, queue: &str) -> Result<Option<QueueLimits>, Error> {
        const GET: &str = "SELECT limits::text FROM greenwave_jobs_queues WHERE name = $1";
        let limits: Option<Option<String>> =
            sqlx::query_scalar(GET).bind(queue).fetch_optional(&self.pool).await.map_err(postgres)?;
        limits.flatten().as_deref().map(read).transpose()
    }

    async fn set_paused(&self, queue: &str, paused: bool) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO greenwave_jobs_queues (name, paused) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET paused = excluded.paused";
        sqlx::query(SET).bind(queue).bind(paused).execute(&self.pool).await.map_err(postgres)?;
        self.rules.pause(queue, paused);
        Ok(())
    }

    async fn paused(&self) -> Result<Vec<String>, Error> {
        const PAUSED: &str = "SELECT name FROM greenwave_jobs_queues WHERE paused ORDER BY name";
        sqlx::query_scalar(PAUSED).fetch_all(&self.pool).await.map_err(postgres)
    }
}

impl Postgres {
    /// Asks for room for a push over the queue's own connections.
    pub(super) async fn make_room(&self, queue: &'static str, jobs: usize) -> Result<(), Error> {
        match self.bounds.admit(queue, jobs) {
            Admission::Known(known) => known,
            Admission::Unknown => {
                let mut lane = self.pushing.take().await.map_err(postgres)?;
                count(&self.bounds, &mut lane, queue).await.map_err(postgres)?;
                self.pushing.give(lane);
                self.bounds.admit_counted(queue, jobs)
            }
            // It most likely still has none, so that this push need not wait for the answer.
            Admission::Unbounded => {
                if let Ok(runtime) = Handle::try_current() {
                    let store = self.clone();
                    runtime.spawn(in_time(async move {
                        let mut lane = store.pushing.take().await.map_err(postgres)?;
                        count(&store.bounds, &mut lane, queue).await.map_err(postgres)?;
                        store.pushing.give(lane);
                        Ok(())
                    }));
                }
                Ok(())
            }
        }
    }

    /// The same over the caller's connection.
    pub(super) async fn admit_in(
        &self,
        conn: &mut PgConnection,
        queue: &'static str,
        jobs: usize,
    ) -> Result<(), Error> {
        match self.bounds.admit(queue, jobs) {
            Admission::Known(known) => known,
            Admission::Unbounded | Admission::Unknown => {
                count(&self.bounds, conn, queue).await.map_err(postgres)?;
                self.bounds.admit_counted(queue, jobs)
            }
        }
    }
}

/// Counts the ready jobs of a bounded queue, no further than its bound.
async fn count(bounds: &Bounds, conn: &mut PgConnection, queue: &'static str) -> Result<(), sqlx::Error> {
    const COUNT: &str = "
        SELECT bound.max,
            (SELECT count(*) FROM (
                SELECT FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = $1 LIMIT bound.max) AS keyless)
            + (SELECT count(*) FROM (
                SELECT FROM greenwave_jobs WHERE state = 0 AND key IS NOT NULL AND queue = $1 LIMIT bound.max) AS keyed)
        FROM (SELECT (limits ->> 'max_waiting')::bigint AS max FROM greenwave_jobs_queues WHERE name = $1) AS bound
        WHERE bound.max IS NOT NULL";
    let began = Instant::now();
    let row: Option<(i64, i64)> = sqlx::query_as(COUNT).bind(queue).fetch_optional(conn).await?;
    let (max, waiting) =
        row.map_or((None, 0), |(max, waiting)| (Some(max.unsigned_abs()), waiting.unsigned_abs()));
    bounds.counted(queue, max, waiting, began);
    Ok(())
}
