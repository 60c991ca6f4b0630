use rusqlite::{Connection, params};

use crate::backends::Lease;

/// Stores how far jobs have come, and answers how many it still found under their lease.
pub(super) fn report(conn: &Connection, progress: &[(Lease, String)]) -> rusqlite::Result<usize> {
    const REPORT: &str =
        "UPDATE greenwave_jobs SET progress = ?3 WHERE id = ?1 AND lease_id = ?2 AND state = 2";
    let mut update = conn.prepare_cached(REPORT)?;
    progress.iter().map(|(lease, json)| update.execute(params![lease.job.get(), lease.id, json])).sum()
}
