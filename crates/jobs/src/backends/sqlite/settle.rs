//! What becomes of leased jobs that are not completed. All is fenced by the pair of job and lease.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{draw, now, workflow};
use crate::backends::{Burial, Lease, Retry};
use crate::dead::DeadReason;
use crate::job::millis;

/// The errors kept with a job are its last ten: this appends one.
macro_rules! appended {
    ($error:literal) => {
        concat!(
            "json_insert(iif(json_array_length(errors) >= 10, json_remove(errors, '$[0]'), errors), '$[#]',
            json_object('attempt', failures + 1, 'at_ms', ",
            crate::backends::sqlite::now!(),
            ", 'error', ",
            $error,
            "))"
        )
    };
}
pub(super) use appended;

/// Copies a job to the dead; the caller adds which, and deletes it afterwards.
macro_rules! buried {
    ($attempts:literal, $reason:literal, $errors:expr) => {
        concat!(
            "INSERT INTO greenwave_jobs_dead
                (id, queue, name, version, payload, priority, max_attempts, timeout_ms, keep_ms, awaited, created_at,
                key, trace, progress, scheduled_for, died_at, attempts, reason, errors)
            SELECT id, queue, name, version, payload, priority, max_attempts, timeout_ms, keep_ms, awaited, created_at,
                key, trace, progress, scheduled_for, ",
            crate::backends::sqlite::now!(), ", ", $attempts, ", ", $reason, ", ", $errors,
            " FROM greenwave_jobs WHERE "
        )
    };
}
pub(super) use buried;

/// Copies the dead job `?1` back, at position `?2`; the caller deletes it afterwards.
macro_rules! revived {
    ($state:literal, $pending:literal) => {
        concat!(
            "INSERT INTO greenwave_jobs
                (id, queue, name, version, payload, priority, key, run_at, max_attempts, errors, created_at, timeout_ms,
                keep_ms, awaited, trace, progress, scheduled_for, position, state, pending)
            SELECT id, queue, name, version, payload, priority, key, ",
            crate::backends::sqlite::now!(),
            ", max_attempts, errors, created_at, timeout_ms, keep_ms, awaited, trace, progress, scheduled_for, ?2, ",
            $state,
            ", ",
            $pending,
            " FROM greenwave_jobs_dead WHERE id = ?1"
        )
    };
}
pub(super) use revived;

pub(super) fn release(conn: &Connection, leases: &[Lease]) -> rusqlite::Result<usize> {
    // A job that is no longer leased, but not yet leased anew, was rescued: that is undone.
    const RELEASE: &str = concat!(
        "UPDATE greenwave_jobs SET state = 0, position = ?3, lease_id = NULL, lease_until = NULL,
            crashes = iif(state = 2, crashes, crashes - 1), run_at = min(run_at, ",
        now!(),
        ") WHERE id = ?1 AND lease_id = ?2"
    );
    let positions = draw(conn, leases.len())?;
    let mut update = conn.prepare_cached(RELEASE)?;
    let mut run = |(lease, position): (&Lease, i64)| update.execute([lease.job.get(), lease.id, position]);
    leases.iter().zip(positions).map(&mut run).sum()
}

pub(super) fn extend(
    conn: &Connection,
    leases: Vec<Lease>,
    length: Duration,
) -> rusqlite::Result<Vec<Lease>> {
    const EXTEND: &str = concat!(
        "UPDATE greenwave_jobs SET lease_until = ",
        now!(),
        " + ?3 WHERE id = ?1 AND lease_id = ?2 AND state = 2"
    );
    let mut update = conn.prepare_cached(EXTEND)?;
    let mut held = leases;
    let mut failed = Ok(());
    held.retain(|lease| match update.execute([lease.job.get(), lease.id, millis(length)]) {
        Ok(rows) => rows == 1,
        Err(error) => {
            failed = Err(error);
            false
        }
    });
    failed.map(|()| held)
}

pub(super) fn retry(conn: &Connection, retries: &[Retry]) -> rusqlite::Result<usize> {
    const RETRY: &str = concat!(
        "UPDATE greenwave_jobs SET state = 1, run_at = ",
        now!(),
        " + ?3, lease_id = NULL, lease_until = NULL, crashes = 0, failures = failures + (?4 IS NOT NULL),
            errors = iif(?4 IS NULL, errors, ",
        appended!("?4"),
        ") WHERE id = ?1 AND lease_id = ?2"
    );
    let mut update = conn.prepare_cached(RETRY)?;
    let mut run = |Retry { lease, delay, error }: &Retry| {
        update.execute(params![lease.job.get(), lease.id, millis(*delay), error])
    };
    retries.iter().map(&mut run).sum()
}

/// Answers how many it buried, and which queues have something new.
pub(super) fn bury(conn: &Connection, burials: &[Burial]) -> rusqlite::Result<(usize, Vec<String>)> {
    const BURY: &str = concat!(buried!("failures + 1", "?3", appended!("?4")), "id = ?1 AND lease_id = ?2");
    let mut insert = conn.prepare_cached(BURY)?;
    let (mut buried, mut awaited) = (0, Vec::new());
    for Burial { lease, awaited: is_awaited, reason, error } in burials {
        if insert.execute(params![lease.job.get(), lease.id, reason.code(), error])? == 1 {
            delete(conn, lease.job.get())?;
            buried += 1;
            if *is_awaited {
                awaited.push(lease.job.get());
            }
        }
    }
    Ok((buried, workflow::died(conn, &awaited)?))
}

/// Buries a job, whoever holds it, without an attempt that failed.
pub(super) fn bury_unfailed(conn: &Connection, id: i64, reason: DeadReason) -> rusqlite::Result<()> {
    const BURY: &str = concat!(buried!("failures", "?2", "errors"), "id = ?1");
    conn.prepare_cached(BURY)?.execute(params![id, reason.code()])?;
    delete(conn, id)
}

/// Takes away a job that was buried.
pub(super) fn delete(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM greenwave_jobs WHERE id = ?1")?.execute([id]).map(drop)
}

/// Takes away a dead job that was revived; true if others wait for it or it for others.
pub(super) fn delete_dead(conn: &Connection, id: i64) -> rusqlite::Result<bool> {
    conn.prepare_cached("DELETE FROM greenwave_jobs_dead WHERE id = ?1 RETURNING awaited")?
        .query_row([id], |row| row.get(0))
}
