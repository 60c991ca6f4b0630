//! What becomes of leased jobs. All is fenced by the pair of job and lease.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{Burial, LEASE_ENDED, Lease, MAINTENANCE_BATCH, Retry, now};
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
    ($attempts:literal, $reason:literal, $error:literal) => {
        concat!(
            "INSERT INTO greenwave_jobs_dead
                (id, queue, name, payload, priority, max_attempts, created_at, died_at, attempts, reason, errors)
            SELECT id, queue, name, payload, priority, max_attempts, created_at, ",
            now!(), ", ", $attempts, ", ", $reason, ", ", appended!($error),
            " FROM greenwave_jobs WHERE "
        )
    };
}

pub(super) fn complete(conn: &Connection, leases: &[Lease]) -> rusqlite::Result<usize> {
    let mut delete = conn.prepare_cached("DELETE FROM greenwave_jobs WHERE id = ?1 AND lease_id = ?2")?;
    leases.iter().map(|lease| delete.execute([lease.job.get(), lease.id])).sum()
}

pub(super) fn release(conn: &Connection, leases: &[Lease]) -> rusqlite::Result<usize> {
    const RELEASE: &str = "
        UPDATE greenwave_jobs SET state = 0, lease_id = NULL, lease_until = NULL
        WHERE id = ?1 AND lease_id = ?2";
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
        " + ?3, lease_id = NULL, lease_until = NULL, failures = failures + 1, errors = ",
        appended!("?4"),
        " WHERE id = ?1 AND lease_id = ?2"
    );
    let mut update = conn.prepare_cached(RETRY)?;
    let mut run = |Retry { lease, delay, error }: &Retry| {
        update.execute(params![lease.job.get(), lease.id, millis(*delay), error])
    };
    retries.iter().map(&mut run).sum()
}

pub(super) fn bury(conn: &Connection, burials: &[Burial]) -> rusqlite::Result<usize> {
    const BURY: &str = concat!(bury!("failures + 1", "?3", "?4"), "id = ?1 AND lease_id = ?2");
    let mut insert = conn.prepare_cached(BURY)?;
    let mut buried = 0;
    for Burial { lease, reason, error } in burials {
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

pub(super) fn promote(conn: &Connection) -> rusqlite::Result<usize> {
    const PROMOTE: &str = concat!(
        "UPDATE greenwave_jobs SET state = 0 WHERE id IN (
            SELECT id FROM greenwave_jobs WHERE state = 1 AND run_at <= ",
        now!(),
        " ORDER BY run_at LIMIT ?1)"
    );
    conn.prepare_cached(PROMOTE)?.execute([MAINTENANCE_BATCH])
}

pub(super) fn is_any_expired(conn: &Connection) -> rusqlite::Result<bool> {
    const EXPIRED: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 2 AND lease_until < ",
        now!(),
        ")"
    );
    conn.prepare_cached(EXPIRED)?.query_row([], |row| row.get(0))
}

pub(super) fn rescue(conn: &Connection, max_crashes: u32) -> rusqlite::Result<()> {
    macro_rules! too_often {
        () => {
            concat!("state = 2 AND lease_until < ", now!(), " AND crashes + 1 >= ?1")
        };
    }
    const BURY: &str = concat!(bury!("failures", "?2", "?3"), too_often!());
    const DELETE: &str = "
        DELETE FROM greenwave_jobs
        WHERE state = 2 AND EXISTS (SELECT 1 FROM greenwave_jobs_dead d WHERE d.id = greenwave_jobs.id)";
    // The lease id stays: if the old worker lives and completes the job before another takes it, it is done.
    const RESCUE: &str = concat!(
        "UPDATE greenwave_jobs SET state = 0, lease_until = NULL, crashes = crashes + 1, errors = ",
        appended!("?2"),
        " WHERE id IN (
            SELECT id FROM greenwave_jobs WHERE state = 2 AND lease_until < ",
        now!(),
        " AND crashes + 1 < ?3 ORDER BY lease_until LIMIT ?1)"
    );
    if conn.execute(BURY, params![max_crashes, DeadReason::Crashed.code(), LEASE_ENDED])? > 0 {
        conn.execute(DELETE, [])?;
    }
    conn.prepare_cached(RESCUE)?.execute(params![MAINTENANCE_BATCH, LEASE_ENDED, max_crashes])?;
    Ok(())
}
