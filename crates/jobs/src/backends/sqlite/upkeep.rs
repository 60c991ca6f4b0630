//! What becomes of jobs by the passing of time alone.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::settle::{self, appended};
use super::{done, draw, now, now_ms, schedules, workflow};
use crate::backends::{Kept, LEASE_ENDED, MAINTENANCE_BATCH, Upkeep};
use crate::backoff::Backoff;
use crate::dead::DeadReason;
use crate::job::millis;

/// What one transaction of upkeep did.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) kept: Kept,
    /// The queues that have something new besides.
    pub(super) new: Vec<String>,
    /// True if there may be more of the same.
    pub(super) more: bool,
}

/// A round without work if there is none: three look-ups in indexes.
pub(super) fn look(conn: &Connection) -> rusqlite::Result<Option<Round>> {
    const NEEDED: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 1 AND run_at <= ",
        now!(),
        ") OR EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 2 AND lease_until < ",
        now!(),
        ")"
    );
    let needed: bool = conn.prepare_cached(NEEDED)?.query_row([], |row| row.get(0))?;
    if needed || done::is_any_expired(conn)? || schedules::is_any_due(conn)? {
        return Ok(None);
    }
    let kept = Kept { next_due: next_due(conn)?, ..Kept::default() };
    Ok(Some(Round { kept, ..Round::default() }))
}

/// A batch of each kind.
pub(super) fn round(conn: &Connection, upkeep: Upkeep) -> rusqlite::Result<Round> {
    let mut new = schedules::tick(conn)?;
    let (buried, promoted, freed) = promote(conn, upkeep.max_crashes)?;
    new.extend(freed);
    let rescued = rescue(conn, upkeep.backoff)?;
    let purged = done::purge(conn)?;
    let full = |count: usize| i64::try_from(count).is_ok_and(|count| count >= MAINTENANCE_BATCH);
    Ok(Round {
        kept: Kept { rescued, buried, promoted, next_due: next_due(conn)? },
        new,
        more: full(buried + promoted) || full(rescued) || full(purged),
    })
}

/// In how long the next scheduled job is due, or the next schedule.
fn next_due(conn: &Connection) -> rusqlite::Result<Option<Duration>> {
    const NEXT: &str = concat!("SELECT min(run_at) - ", now!(), " FROM greenwave_jobs WHERE state = 1");
    let ms: Option<i64> = conn.prepare_cached(NEXT)?.query_row([], |row| row.get(0))?;
    let due = ms.map(|ms| Duration::from_millis(ms.try_into().unwrap_or(0)));
    Ok(due.into_iter().chain(schedules::next(conn)?).min())
}

/// Answers how many it buried, how many are ready now, and which queues have something new besides.
fn promote(conn: &Connection, max_crashes: u32) -> rusqlite::Result<(usize, usize, Vec<String>)> {
    const DUE: &str = concat!(
        "SELECT id, crashes >= ?1, awaited FROM greenwave_jobs WHERE state = 1 AND run_at <= ",
        now!(),
        " ORDER BY run_at, id LIMIT ?2"
    );
    const READY: &str = "UPDATE greenwave_jobs SET state = 0, position = ?2 WHERE id = ?1";
    let mut due = conn.prepare_cached(DUE)?;
    let due = due.query_map(params![max_crashes, MAINTENANCE_BATCH], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    let due = due.collect::<rusqlite::Result<Vec<(i64, bool, bool)>>>()?;
    if due.is_empty() {
        return Ok((0, 0, Vec::new()));
    }
    let mut ready = conn.prepare_cached(READY)?;
    let (mut buried, mut promoted, mut died) = (0, 0, Vec::new());
    for ((id, crashed, awaited), position) in due.iter().zip(draw(conn, due.len())?) {
        if *crashed {
            settle::bury_unfailed(conn, *id, DeadReason::Crashed)?;
            buried += 1;
            died.extend(awaited.then_some(*id));
        } else {
            promoted += ready.execute([*id, position])?;
        }
    }
    Ok((buried, promoted, workflow::died(conn, &died)?))
}

fn rescue(conn: &Connection, backoff: Backoff) -> rusqlite::Result<usize> {
    // The lease id stays: if the old worker lives and settles the job before another takes it, that counts.
    const RESCUE: &str = concat!(
        "UPDATE greenwave_jobs SET state = 1, lease_until = NULL, crashes = crashes + 1, run_at = ?5
            + min(?3 << min(crashes, 24), ?4) * (1000 + abs(random() % 1001)) / 2000, errors = ",
        appended!("?2"),
        " WHERE id IN (
            SELECT id FROM greenwave_jobs WHERE state = 2 AND lease_until < ?5 ORDER BY lease_until LIMIT ?1)"
    );
    let Backoff { base, max } = backoff;
    let now = now_ms(conn)?;
    conn.prepare_cached(RESCUE)?.execute(params![
        MAINTENANCE_BATCH,
        LEASE_ENDED,
        millis(base),
        millis(max),
        now
    ])
}
