//! What holds for a named queue: limits and pauses. The file is at hand, so each fetch reads it.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};

use super::Sqlite;
use super::owner::Durability::Synced;
use crate::Error;
use crate::backends::SqlBackend;
use crate::backends::limits::LimitStore;
use crate::limits::{Admission, Bounds, QueueLimits, invalid, read};

/// What holds for a queue.
#[derive(Debug, Default)]
pub(super) struct Rule {
    pub(super) paused: bool,
    pub(super) limits: QueueLimits,
}

pub(super) fn rule(conn: &Connection, queue: &str) -> rusqlite::Result<Rule> {
    const RULE: &str = "SELECT paused, limits FROM greenwave_jobs_queues WHERE name = ?1";
    let row: Option<(bool, Option<String>)> =
        conn.prepare_cached(RULE)?.query_row([queue], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((paused, limits)) = row else { return Ok(Rule::default()) };
    let limits = limits.as_deref().map(read).transpose().map_err(unreadable)?.unwrap_or_default();
    Ok(Rule { paused, limits })
}

fn unreadable(error: Error) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(1, Type::Text, error.into())
}

/// The names of the paused queues.
pub(super) fn paused(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    const PAUSED: &str = "SELECT name FROM greenwave_jobs_queues WHERE paused ORDER BY name";
    conn.prepare_cached(PAUSED)?.query_map([], |row| row.get(0))?.collect()
}

/// The queues that were paused when this process last looked.
#[derive(Debug, Default)]
pub(super) struct Paused(Mutex<HashSet<String>>);

impl Paused {
    pub(super) fn contains(&self, queue: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(queue)
    }

    pub(super) fn set(&self, queues: Vec<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = queues.into_iter().collect();
    }
}

impl SqlBackend for Sqlite {}

impl LimitStore for Sqlite {
    async fn set_limits(&self, queue: &str, limits: Option<&QueueLimits>) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO greenwave_jobs_queues (name, limits) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET limits = excluded.limits";
        let limits = limits.map(serde_json::to_string).transpose().map_err(invalid)?;
        let name = queue.to_owned();
        self.owner.write(Synced, move |conn| conn.execute(SET, params![name, limits])).await?;
        self.bounds.forget(queue);
        Ok(())
    }

    async fn limits(&self, queue: &str) -> Result<Option<QueueLimits>, Error> {
        let queue = queue.to_owned();
        self.owner.read(move |conn| rule(conn, &queue).map(|rule| Some(rule.limits))).await
    }

    async fn set_paused(&self, queue: &str, paused: bool) -> Result<(), Error> {
        const SET: &str = "
            INSERT INTO greenwave_jobs_queues (name, paused) VALUES (?1, ?2)
            ON CONFLICT (name) DO UPDATE SET paused = excluded.paused";
        let queue = queue.to_owned();
        self.owner.write(Synced, move |conn| conn.execute(SET, params![queue, paused])).await?;
        self.paused.set(self.owner.read(self::paused).await?);
        Ok(())
    }

    async fn paused(&self) -> Result<Vec<String>, Error> {
        self.owner.read(paused).await
    }
}

impl Sqlite {
    /// Asks for room for a push over the queue's own connection.
    pub(super) async fn make_room(&self, queue: &'static str, jobs: usize) -> Result<(), Error> {
        if let Admission::Known(known) = self.bounds.admit(queue, jobs) {
            return known;
        }
        let bounds = self.bounds.clone();
        self.owner.read(move |conn| count(&bounds, conn, queue)).await?;
        self.bounds.admit_counted(queue, jobs)
    }

    /// The same over the caller's.
    pub(super) fn make_room_in(
        &self,
        conn: &Connection,
        queue: &'static str,
        jobs: usize,
    ) -> Result<(), Error> {
        if let Admission::Known(known) = self.bounds.admit(queue, jobs) {
            return known;
        }
        count(&self.bounds, conn, queue).map_err(Error::Sqlite)?;
        self.bounds.admit_counted(queue, jobs)
    }
}

/// Counts the ready jobs of a bounded queue, no further than its bound.
fn count(bounds: &Bounds, conn: &Connection, queue: &'static str) -> rusqlite::Result<()> {
    const COUNT: &str = "
        SELECT (SELECT count(*) FROM (
                SELECT 1 FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = ?1 LIMIT ?2))
            + (SELECT count(*) FROM (
                SELECT 1 FROM greenwave_jobs WHERE state = 0 AND key IS NOT NULL AND queue = ?1 LIMIT ?2))";
    let began = Instant::now();
    let max = rule(conn, queue)?.limits.max_waiting;
    let waiting: i64 = match max {
        Some(max) => {
            let max = i64::try_from(max).unwrap_or(i64::MAX);
            conn.prepare_cached(COUNT)?.query_row(params![queue, max], |row| row.get(0))?
        }
        None => 0,
    };
    bounds.counted(queue, max, waiting.unsigned_abs(), began);
    Ok(())
}
