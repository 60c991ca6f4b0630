use rusqlite::{Connection, params};

use super::{draw, now_ms, unique};
use crate::job::{NewJob, Pushed, Start};

/// Stores all or none, and answers in order. The savepoint is a transaction of its own if the caller is in none.
pub(super) fn push(conn: &Connection, jobs: &[NewJob]) -> rusqlite::Result<Vec<Pushed>> {
    conn.prepare_cached("SAVEPOINT greenwave_jobs_push")?.execute([])?;
    let pushed = insert(conn, jobs);
    if pushed.is_err() && !conn.is_autocommit() {
        conn.prepare_cached("ROLLBACK TO greenwave_jobs_push")?.execute([])?;
    }
    if !conn.is_autocommit() {
        conn.prepare_cached("RELEASE greenwave_jobs_push")?.execute([])?;
    }
    pushed
}

/// Stores jobs in the transaction that is open.
pub(super) fn insert(conn: &Connection, jobs: &[NewJob]) -> rusqlite::Result<Vec<Pushed>> {
    const PUSH: &str = "
        INSERT INTO greenwave_jobs
            (id, position, queue, name, version, payload, priority, max_attempts, state, run_at, created_at,
            timeout_ms, keep_ms, key, trace, awaited, pending)
        VALUES (?1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    let now = now_ms(conn)?;
    let ids = draw(conn, jobs.len())?;
    let mut insert = conn.prepare_cached(PUSH)?;
    let mut pushed = Vec::with_capacity(jobs.len());
    for (id, job) in ids.zip(jobs) {
        if let Some(holder) = unique::claim(conn, job, id, now)? {
            pushed.push(Pushed { id: holder.into(), existed: true });
            continue;
        }
        let (state, run_at, pending) = match job.start {
            Start::In(0) => (0, now, 0),
            Start::In(ms) => (1, now.saturating_add(ms), 0),
            Start::At(ms) => (1, ms, 0),
            Start::After(pending) => (3, now, pending),
        };
        let NewJob { queue, name, version, payload, priority, max_attempts, timeout_ms, keep_ms, .. } = job;
        let NewJob { key, trace, awaited, .. } = job;
        insert.execute(params![
            id,
            queue,
            name,
            version,
            payload,
            priority,
            max_attempts,
            state,
            run_at,
            now,
            timeout_ms,
            keep_ms,
            key,
            trace,
            awaited,
            pending
        ])?;
        pushed.push(Pushed::new(id));
    }
    Ok(pushed)
}
