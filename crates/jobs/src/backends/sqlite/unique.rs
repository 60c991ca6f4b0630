//! Unique jobs. Nothing is written when a job ends: whoever next wants its key looks what became of it.

use rusqlite::{Connection, OptionalExtension, params};

use super::now_ms;
use crate::job::{NewJob, millis};
use crate::unique::Sweep;

/// The job that has this one's unique key; none if it has none, or is now its own.
pub(super) fn claim(conn: &Connection, job: &NewJob, id: i64, now: i64) -> rusqlite::Result<Option<i64>> {
    const HOLDER: &str = "
        SELECT job_id FROM greenwave_jobs_unique u
        WHERE name = ?1 AND key = ?2 AND (until IS NULL OR until > ?3) AND states & coalesce(
            (SELECT iif(state = 2, 2, 1) FROM greenwave_jobs WHERE id = u.job_id),
            (SELECT 8 FROM greenwave_jobs_dead WHERE id = u.job_id),
            4) <> 0";
    const CLAIM: &str = "
        INSERT INTO greenwave_jobs_unique (name, key, job_id, until, states) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (name, key) DO UPDATE
        SET job_id = excluded.job_id, until = excluded.until, states = excluded.states";
    let Some(unique) = &job.unique else { return Ok(None) };
    let held = params![job.name, unique.key, now];
    let holder = conn.prepare_cached(HOLDER)?.query_row(held, |row| row.get(0)).optional()?;
    if holder.is_none() {
        let until = unique.window.map(|window| now.saturating_add(millis(window)));
        let claim = params![job.name, unique.key, id, until, unique.states.bits()];
        conn.prepare_cached(CLAIM)?.execute(claim)?;
    }
    Ok(holder)
}

/// A key, and the job that had it when it was seen.
pub(super) type Key = (String, String, i64);

/// The keys after one of them, a batch, and which of them no job holds, nor will hold.
pub(super) fn look(conn: &Connection, name: &str, key: &str) -> rusqlite::Result<Vec<(Key, bool)>> {
    const SEEN: &str = "
        SELECT u.name, u.key, u.job_id, coalesce(u.until <= ?4, false)
            OR j.id IS NULL AND u.states & iif(d.id IS NULL, 4, 8) = 0
        FROM greenwave_jobs_unique u
        LEFT JOIN greenwave_jobs j ON j.id = u.job_id
        LEFT JOIN greenwave_jobs_dead d ON d.id = u.job_id
        WHERE (u.name, u.key) > (?1, ?2) ORDER BY u.name, u.key LIMIT ?3";
    let now = now_ms(conn)?;
    let mut seen = conn.prepare_cached(SEEN)?;
    let seen = seen
        .query_map(params![name, key, i64::try_from(Sweep::BATCH).unwrap_or(i64::MAX), now], |row| {
            Ok(((row.get(0)?, row.get(1)?, row.get(2)?), row.get(3)?))
        })?;
    seen.collect()
}

/// Deletes keys, unless another job has taken them over.
pub(super) fn delete(conn: &Connection, keys: &[Key]) -> rusqlite::Result<()> {
    const DELETE: &str = "DELETE FROM greenwave_jobs_unique WHERE name = ?1 AND key = ?2 AND job_id = ?3";
    let mut delete = conn.prepare_cached(DELETE)?;
    keys.iter().try_for_each(|(name, key, job)| delete.execute(params![name, key, job]).map(drop))
}
