//! Schedules. A turn is one transaction: it moves the schedule on and pushes its jobs, so each tick runs once.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::{now, now_ms, push};
use crate::Error;
use crate::backends::flows::{Turn, turn_failed};
use crate::dead::time;
use crate::job::NewJob;
use crate::schedule::{Schedule, ScheduleStatus, ticked};

/// The outer error rolls back.
pub(super) fn put(
    conn: &Connection,
    name: &str,
    schedule: &Schedule,
    job: &NewJob,
) -> rusqlite::Result<Result<bool, Error>> {
    // A changed job keeps the next tick, a changed definition does not.
    const PUT: &str = "
        INSERT INTO greenwave_jobs_schedules AS s (name, definition, job, next_at) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, job = excluded.job,
            next_at = iif(s.definition = excluded.definition, s.next_at, excluded.next_at)
        WHERE (s.definition, s.job) <> (excluded.definition, excluded.job)";
    let next = match schedule.after(now_ms(conn)?) {
        Ok(next) => next,
        Err(error) => return Ok(Err(error)),
    };
    let stored = conn.execute(PUT, params![name, schedule.to_json(), job.to_json(), next])?;
    Ok(Ok(stored == 1))
}

pub(super) fn delete(conn: &Connection, name: &str) -> rusqlite::Result<bool> {
    Ok(conn.execute("DELETE FROM greenwave_jobs_schedules WHERE name = ?1", [name])? == 1)
}

pub(super) fn list(conn: &Connection) -> rusqlite::Result<Vec<ScheduleStatus>> {
    const LIST: &str = "
        SELECT name, definition, job, next_at, last_at, paused FROM greenwave_jobs_schedules ORDER BY name";
    let mut statement = conn.prepare(LIST)?;
    let rows = statement.query_map([], |row| {
        Ok(ScheduleStatus {
            next: time(row.get(3)?),
            last: row.get::<_, Option<i64>>(4)?.map(time),
            paused: row.get(5)?,
            ..ScheduleStatus::read(row.get(0)?, row.get(1)?, &row.get::<_, String>(2)?)
        })
    })?;
    rows.collect()
}

pub(super) fn pause(conn: &Connection, name: &str, paused: bool) -> rusqlite::Result<Result<bool, Error>> {
    const READ: &str = "SELECT definition, paused FROM greenwave_jobs_schedules WHERE name = ?1";
    const PAUSE: &str = "
        UPDATE greenwave_jobs_schedules SET paused = ?2, next_at = coalesce(?3, next_at) WHERE name = ?1";
    let row = conn.query_row(READ, [name], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)));
    let Some((definition, was)) = row.optional()? else { return Ok(Ok(false)) };
    // What passed during a pause is not missed.
    let now = now_ms(conn)?;
    let after = |definition: &str| Schedule::from_json(definition)?.after(now);
    let next = match (was && !paused).then(|| after(&definition)).transpose() {
        Ok(next) => next,
        Err(error) => return Ok(Err(error)),
    };
    conn.execute(PAUSE, params![name, paused, next])?;
    Ok(Ok(true))
}

pub(super) fn is_any_due(conn: &Connection) -> rusqlite::Result<bool> {
    const DUE: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM greenwave_jobs_schedules WHERE NOT paused AND next_at <= ",
        now!(),
        ")"
    );
    conn.prepare_cached(DUE)?.query_row([], |row| row.get(0))
}

/// Gives every schedule its turn whose time has come. Answers with the queues that have something new.
pub(super) fn tick(conn: &Connection) -> rusqlite::Result<Vec<String>> {
    const DUE: &str = "
        SELECT name, definition, job, next_at FROM greenwave_jobs_schedules WHERE NOT paused AND next_at <= ?1
        ORDER BY next_at";
    let now = now_ms(conn)?;
    let due: Vec<Turn> = conn
        .prepare_cached(DUE)?
        .query_map([now], |row| {
            let (name, definition, job, next_at) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            Ok(Turn { name, definition, job, next_at, now })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let mut queues = Vec::new();
    for turn in due {
        conn.execute_batch("SAVEPOINT turn")?;
        match take(conn, &turn) {
            Ok(pushed) => queues.extend(pushed.into_iter().map(str::to_owned)),
            Err(error) => {
                conn.execute_batch("ROLLBACK TO turn")?;
                turn_failed(&turn.name, now, &error);
            }
        }
        conn.execute_batch("RELEASE turn")?;
    }
    queues.sort_unstable();
    queues.dedup();
    Ok(queues)
}

fn take(conn: &Connection, turn: &Turn) -> Result<Vec<&'static str>, Error> {
    const ADVANCE: &str = "
        UPDATE greenwave_jobs_schedules SET next_at = ?2, last_at = coalesce(?3, last_at) WHERE name = ?1";
    const MARK: &str = "UPDATE greenwave_jobs SET scheduled_for = ?2 WHERE id = ?1";
    let ticks = turn.ticks()?;
    let push = || {
        conn.prepare_cached(ADVANCE)?.execute(params![turn.name, ticks.next, ticks.ticks.last()])?;
        for (pushed, tick) in push::insert(conn, &ticks.jobs)?.iter().zip(&ticks.ticks) {
            if !pushed.existed {
                conn.prepare_cached(MARK)?.execute([pushed.id.get(), *tick])?;
            }
        }
        Ok(())
    };
    push().map_err(Error::Sqlite)?;
    ticked(&turn.name, &ticks);
    Ok(ticks.jobs.into_iter().map(|job| job.queue).collect())
}

/// In how long the next tick is; nothing if it is due already, and cannot have its turn now.
pub(super) fn next(conn: &Connection) -> rusqlite::Result<Option<Duration>> {
    const NEXT: &str = concat!(
        "SELECT min(next_at) - ",
        now!(),
        " FROM greenwave_jobs_schedules WHERE NOT paused AND next_at > ",
        now!()
    );
    let ms: Option<i64> = conn.prepare_cached(NEXT)?.query_row([], |row| row.get(0))?;
    Ok(ms.map(|ms| Duration::from_millis(ms.unsigned_abs())))
}
