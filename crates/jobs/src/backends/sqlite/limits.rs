//! What holds for a named queue: limits and pauses. The file is at hand, so each fetch reads it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, params};

use super::Sqlite;
use super::owner::Durability::Synced;
use crate::Error;
use crate::backends::limits::LimitStore;
use crate::backends::{Control, SqlBackend};
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

/// What holds for each queue for which anything does.
pub(super) fn controls(conn: &Connection) -> rusqlite::Result<HashMap<String, Control>> {
    let mut names = conn.prepare_cached("SELECT name FROM greenwave_jobs_queues")?;
    let names = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    let control = |name: String| {
        let Rule { paused, limits } = rule(conn, &name)?;
        Ok((name, Control { paused, limited: limits.hold_back() }))
    };
    names.into_iter().map(control).collect()
}

/// What held for the queues when this process last looked.
#[derive(Debug, Default)]
pub(super) struct Controls(Mutex<HashMap<String, Control>>);

impl Controls {
    pub(super) fn get(&self, queue: &str) -> Control {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(queue).copied().unwrap_or_default()
    }

    pub(super) fn set(&self, controls: HashMap<String, Control>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = controls;
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
        self.controls.set(self.owner.read(controls).await?);
        Ok(())
    }

    async fn paused(&self) -> Result<Vec<String>, Error> {
        const PAUSED: &str = "SELECT name FROM greenwave_jobs_queues WHERE paused ORDER BY name";
        self.owner.read(|conn| conn.prepare_cached(PAUSED)?.query_map([], |row| row.get(0))?.collect()).await
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
