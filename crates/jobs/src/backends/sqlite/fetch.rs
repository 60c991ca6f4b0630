use std::time::Duration;

use rusqlite::{Connection, Row, params};

use super::{draw, now_ms};
use crate::backends::{Lease, LeasedJob};
use crate::dead::time;
use crate::job::millis;

pub(super) fn is_any_ready(conn: &Connection, queue: &str) -> rusqlite::Result<bool> {
    const READY: &str = "
        SELECT EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = ?1)
            OR EXISTS (SELECT 1 FROM greenwave_jobs WHERE state = 0 AND key IS NOT NULL AND queue = ?1)";
    conn.prepare_cached(READY)?.query_row([queue], |row| row.get(0))
}

/// What [`leased`] reads.
macro_rules! columns {
    () => {
        "id, name, version, payload, failures, max_attempts, timeout_ms, run_at, trace, awaited, keep_ms > 0, crashes, scheduled_for"
    };
}
pub(super) use columns;

/// Leases ready jobs without a key, and answers with them in the order of their start.
pub(super) fn fetch(
    conn: &Connection,
    queue: &str,
    limit: usize,
    lease: Duration,
) -> rusqlite::Result<Vec<LeasedJob>> {
    const READY: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = ?1 ORDER BY priority, position LIMIT ?2"
    );
    let now = now_ms(conn)?;
    let id = draw(conn, 1)?.start;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut ready = conn.prepare_cached(READY)?;
    let jobs = ready.query_map(params![queue, limit], |row| leased(row, id, now))?;
    let jobs = jobs.collect::<rusqlite::Result<Vec<_>>>()?;
    take(conn, &jobs, now.saturating_add(millis(lease)))?;
    Ok(jobs)
}

/// A row of these columns, under lease `id`.
pub(super) fn leased(row: &Row<'_>, id: i64, now: i64) -> rusqlite::Result<LeasedJob> {
    Ok(LeasedJob {
        lease: Lease { job: row.get::<_, i64>(0)?.into(), id },
        name: row.get(1)?,
        version: row.get(2)?,
        payload: row.get(3)?,
        failures: row.get(4)?,
        max_attempts: row.get(5)?,
        timeout: row.get::<_, Option<i64>>(6)?.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        waited: Duration::from_millis(now.saturating_sub(row.get(7)?).try_into().unwrap_or(0)),
        trace: row.get(8)?,
        awaited: row.get(9)?,
        kept: row.get(10)?,
        crashes: row.get(11)?,
        scheduled_for: row.get::<_, Option<i64>>(12)?.map(time),
    })
}

/// Leases ready jobs that the same transaction has read.
pub(super) fn take(conn: &Connection, jobs: &[LeasedJob], until: i64) -> rusqlite::Result<()> {
    const TAKE: &str = "UPDATE greenwave_jobs SET state = 2, lease_id = ?2, lease_until = ?3 WHERE id = ?1";
    let mut update = conn.prepare_cached(TAKE)?;
    jobs.iter().try_for_each(|job| update.execute([job.lease.job.get(), job.lease.id, until]).map(drop))
}
