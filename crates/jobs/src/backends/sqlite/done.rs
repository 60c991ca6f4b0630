//! Completed jobs: those that are kept move to a table of their own, until their time is over.

use rusqlite::{Connection, params};

use super::{now, now_ms, workflow};
use crate::backends::{Completion, MAINTENANCE_BATCH};

/// Completes jobs that are still held under their lease. Answers how many were, and which queues have something new.
pub(super) fn complete(conn: &Connection, done: &[Completion]) -> rusqlite::Result<(usize, Vec<String>)> {
    let mut delete = conn.prepare_cached("DELETE FROM greenwave_jobs WHERE id = ?1 AND lease_id = ?2")?;
    let (mut completed, mut awaited) = (0, Vec::new());
    let now = if done.iter().any(|completion| completion.kept) { now_ms(conn)? } else { 0 };
    for completion in done {
        if completion.kept {
            keep(conn, completion, now)?;
        }
        let deleted = delete.execute([completion.lease.job.get(), completion.lease.id])?;
        completed += deleted;
        if completion.awaited && deleted == 1 {
            awaited.push((completion.lease.job.get(), completion.kept));
        }
    }
    Ok((completed, workflow::ended(conn, &awaited)?))
}

fn keep(conn: &Connection, completion: &Completion, now: i64) -> rusqlite::Result<usize> {
    const KEEP: &str = "
        INSERT INTO greenwave_jobs_done
            (id, queue, name, version, payload, result, attempts, pushed_at, completed_at, expires_at)
        SELECT id, queue, name, version, payload, ?3, failures + 1, created_at, ?4, ?4 + keep_ms
        FROM greenwave_jobs WHERE id = ?1 AND lease_id = ?2 AND keep_ms > 0";
    let Completion { lease, result, .. } = completion;
    conn.prepare_cached(KEEP)?.execute(params![lease.job.get(), lease.id, result, now])
}

pub(super) fn is_any_expired(conn: &Connection) -> rusqlite::Result<bool> {
    const EXPIRED: &str =
        concat!("SELECT EXISTS (SELECT 1 FROM greenwave_jobs_done WHERE expires_at <= ", now!(), ")");
    conn.prepare_cached(EXPIRED)?.query_row([], |row| row.get(0))
}

/// Deletes a batch of those whose time is over.
pub(super) fn purge(conn: &Connection) -> rusqlite::Result<usize> {
    const PURGE: &str = concat!(
        "DELETE FROM greenwave_jobs_done WHERE id IN (
            SELECT id FROM greenwave_jobs_done WHERE expires_at <= ",
        now!(),
        " ORDER BY expires_at LIMIT ?1)"
    );
    conn.prepare_cached(PURGE)?.execute([MAINTENANCE_BATCH])
}
