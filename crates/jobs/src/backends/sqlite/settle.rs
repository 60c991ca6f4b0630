//! What becomes of leased jobs. All is fenced by the pair of job and lease.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{Burial, LEASE_ENDED, Lease, MAINTENANCE_BATCH, Retry, now};
use crate::backoff::Backoff;
use crate::dead::DeadReason;
use crate::job::millis;

/// The errors kept with a job are its last ten: this appends one.
macro_rules! appended {
    ($error:literal) => {
        concat!(
            "json_insert(iif(json_array_length(errors) >= 10, json_remove(errors, '$[0]'), errors), '$[#]',
            json_object('attempt', failures + 1, 'at_ms', ",
            now!(),
            ", 'error', ",
            $error,
            "))"
        )
    };
}

/// Copies a job to the dead; the caller adds which, and deletes it afterwards.
macro_rules! bury {
    ($attempts:literal, $reason:literal, $errors:expr) => {
        concat!(
            "INSERT INTO greenwave_jobs_dead
                (id, queue, name, payload, priority, max_attempts, created_at, died_at, attempts, reason, errors)
            SELECT id, queue, name, payload, priority, max_attempts, created_at, ",
            now!(), ", ", $attempts, ", ", $reason, ", ", $errors,
            " FROM greenwave_jobs WHERE "
        )
    };
}

pub(super) fn complete(conn: &Connection, leases: &[Lease]) -> rusqlite::Result<usize> {
    let mut delete = conn.prepare_cached("DELETE FROM greenwave_jobs WHERE id = ?1 AND lease_id = ?2")?;
    leases.iter().map(|lease| delete.execute([lease.job.get(), lease.id])).sum()
}

pub(super) fn release(conn: &Connection, leases: &[Lease]) -> rusqlite::Result<usize> {
    // A job that is no longer leased, but not yet leased anew, was rescued: that is undone.
    const RELEASE: &str = concat!(
        "
        UPDATE greenwave_jobs SET state = 0, lease_id = NULL, lease_until = NULL,
            crashes = iif(state = 2, crashes, crashes - 1), run_at = min(run_at, ",
        now!(),
        ") WHERE id = ?1 AND lease_id = ?2"
    );
    let mut update = conn.prepare_cached(RELEASE)?;
    leases.iter().map(|lease| update.execute([lease.job.get(), lease.id])).sum()
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
        " + ?3, lease_id = NULL, lease_until = NULL, failures = failures + (?4 IS NOT NULL), crashes = 0, errors = iif(?4 IS NULL, errors, ",
        appended!("?4"),
        ") WHERE id = ?1 AND lease_id = ?2"
    );
    let mut update = conn.prepare_cached(RETRY)?;
    let mut run = |Retry { lease, delay, error }: &Retry| {
        update.execute(params![lease.job.get(), lease.id, millis(*delay), error])
    };
    retries.iter().map(&mut run).sum()
}

pub(super) fn bury(conn: &Connection, burials: &[Burial]) -> rusqlite::Result<usize> {
    const BURY: &str = concat!(bury!("failures + 1", "?3", appended!("?4")), "id = ?1 AND lease_id = ?2");
    let mut insert = conn.prepare_cached(BURY)?;
    let mut buried = 0;
    for Burial { lease, reason, error, .. } in burials {
        buried += insert.execute(params![lease.job.get(), lease.id, reason.code(), error])?;
        complete(conn, &[*lease])?;
    }
    Ok(buried)
}

pub(super) fn is_any_due(conn: &Connection) -> rusqlite::Result<bool> {
    const DUE: &str =
        concat!("SELECT EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 1 AND run_at <= ", now!(), ")");
    conn.prepare_cached(DUE)?.query_row([], |row| row.get(0))
}

/// Answers how many it buried and how many are ready now.
pub(super) fn promote(conn: &Connection, max_crashes: u32) -> rusqlite::Result<(usize, usize)> {
    macro_rules! due {
        ($crashes:literal) => {
            concat!("state = 1 AND run_at <= ", now!(), " AND crashes ", $crashes)
        };
    }
    const BURY: &str = concat!(bury!("failures", "?2", "errors"), due!(">= ?1"));
    const DELETE: &str = concat!(
        "DELETE FROM greenwave_jobs WHERE ",
        due!(">= ?1"),
        " AND EXISTS (SELECT 1 FROM greenwave_jobs_dead d WHERE d.id = greenwave_jobs.id)"
    );
    const PROMOTE: &str = concat!(
        "UPDATE greenwave_jobs SET state = 0 WHERE id IN (SELECT id FROM greenwave_jobs WHERE ",
        due!("< ?1"),
        " ORDER BY run_at LIMIT ?2)"
    );
    let buried = conn.prepare_cached(BURY)?.execute(params![max_crashes, DeadReason::Crashed.code()])?;
    if buried > 0 {
        conn.execute(DELETE, [max_crashes])?;
    }
    let promoted = conn.prepare_cached(PROMOTE)?.execute(params![max_crashes, MAINTENANCE_BATCH])?;
    Ok((buried, promoted))
}

pub(super) fn is_any_expired(conn: &Connection) -> rusqlite::Result<bool> {
    const EXPIRED: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 2 AND lease_until < ",
        now!(),
        ")"
    );
    conn.prepare_cached(EXPIRED)?.query_row([], |row| row.get(0))
}

pub(super) fn rescue(conn: &Connection, backoff: Backoff) -> rusqlite::Result<usize> {
    // The lease id stays: if the old worker lives and settles the job before another takes it, that counts.
    const RESCUE: &str = concat!(
        "UPDATE greenwave_jobs SET state = 1, lease_until = NULL, crashes = crashes + 1, run_at = ",
        now!(),
        " + min(?3 << min(crashes, 24), ?4) * (1000 + abs(random() % 1001)) / 2000, errors = ",
        appended!("?2"),
        " WHERE id IN (
            SELECT id FROM greenwave_jobs WHERE state = 2 AND lease_until < ",
        now!(),
        " ORDER BY lease_until LIMIT ?1)"
    );
    let Backoff { base, max } = backoff;
    conn.prepare_cached(RESCUE)?.execute(params![MAINTENANCE_BATCH, LEASE_ENDED, millis(base), millis(max)])
}
