//! Jobs that wait for others. The edges are the truth; a blocked job's `pending` counts those that have not ended.
//! A workflow's jobs come into being together, each after those it waits for, so that ids rise along the edges.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::settle::{buried, delete, delete_dead, revived};
use super::{draw, now, push};
use crate::backends::flows::{Edge, abandoned};
use crate::dead::DeadReason;
use crate::job::{NewJob, Pushed};

/// Stores all or none. The savepoint is a transaction of its own if the caller is in none.
pub(super) fn push(conn: &Connection, jobs: &[NewJob], edges: &[Edge]) -> rusqlite::Result<Vec<Pushed>> {
    conn.execute_batch("SAVEPOINT greenwave_jobs_workflow")?;
    let pushed = insert(conn, jobs, edges);
    if pushed.is_err() && !conn.is_autocommit() {
        conn.execute_batch("ROLLBACK TO greenwave_jobs_workflow")?;
    }
    if !conn.is_autocommit() {
        conn.execute_batch("RELEASE greenwave_jobs_workflow")?;
    }
    pushed
}

fn insert(conn: &Connection, jobs: &[NewJob], edges: &[Edge]) -> rusqlite::Result<Vec<Pushed>> {
    const LINK: &str =
        "INSERT INTO greenwave_jobs_dependency (before_id, after_id, anyway) VALUES (?1, ?2, ?3)";
    let pushed = push::insert(conn, jobs)?;
    let id = |place: usize| pushed.get(place).map_or(0, |pushed| pushed.id.get());
    let mut link = conn.prepare_cached(LINK)?;
    for edge in edges {
        link.execute(params![id(edge.before), id(edge.after), edge.anyway])?;
    }
    Ok(pushed)
}

/// Jobs of workflows are completed; each with whether it is kept. In the transaction that completes them. Answers with
/// the queues that have something new once it commits.
pub(super) fn ended(conn: &Connection, completed: &[(i64, bool)]) -> rusqlite::Result<Vec<String>> {
    // The edge to a kept job stays, for its result may be read, until the one that waited is completed itself.
    const KEEP: &str = "
        UPDATE greenwave_jobs_dependency SET ended = 1 WHERE before_id = ?1 AND NOT ended RETURNING after_id";
    const DROP: &str =
        "DELETE FROM greenwave_jobs_dependency WHERE before_id = ?1 AND NOT ended RETURNING after_id";
    const OWN: &str = "DELETE FROM greenwave_jobs_dependency WHERE after_id = ?1";
    if completed.is_empty() {
        return Ok(Vec::new());
    }
    let (mut keep, mut drop) = (conn.prepare_cached(KEEP)?, conn.prepare_cached(DROP)?);
    let mut own = conn.prepare_cached(OWN)?;
    let mut freed = BTreeMap::new();
    for (id, kept) in completed {
        let end = if *kept { &mut keep } else { &mut drop };
        for after in end.query_map([id], |row| row.get::<_, i64>(0))? {
            *freed.entry(after?).or_insert(0) += 1;
        }
        own.execute([id])?;
    }
    unblock(conn, freed)
}

/// Counts down what jobs wait for; those that wait no more become ready.
fn unblock(conn: &Connection, freed: BTreeMap<i64, i64>) -> rusqlite::Result<Vec<String>> {
    const UNBLOCK: &str = concat!(
        "UPDATE greenwave_jobs SET pending = pending - ?2, state = iif(pending > ?2, 3, 0),
            position = iif(pending > ?2, position, ?3), run_at = iif(pending > ?2, run_at, ",
        now!(),
        ") WHERE id = ?1 AND state = 3 RETURNING queue, state"
    );
    if freed.is_empty() {
        return Ok(Vec::new());
    }
    let mut update = conn.prepare_cached(UNBLOCK)?;
    let mut queues = BTreeSet::new();
    let positions = draw(conn, freed.len())?;
    for ((id, ended), position) in freed.into_iter().zip(positions) {
        let row = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
        if let Some((queue, 0)) = update.query_row([id, ended, position], row).optional()? {
            queues.insert(queue);
        }
    }
    Ok(queues.into_iter().collect())
}

/// Jobs of workflows are dead: what waits for them dies too, and what waits for that; what runs anyway waits for them
/// no more. In the transaction that buries them.
pub(super) fn died(conn: &Connection, ids: &[i64]) -> rusqlite::Result<Vec<String>> {
    const AFTER: &str = "
        SELECT after_id, anyway FROM greenwave_jobs_dependency WHERE before_id = ?1 AND NOT ended ORDER BY after_id";
    const END: &str = "
        UPDATE greenwave_jobs_dependency SET ended = 1 WHERE before_id = ?1 AND after_id = ?2";
    const BURY: &str = concat!(
        buried!(
            "failures",
            "?2",
            concat!(
                "json_insert(errors, '$[#]', json_object('attempt', 0, 'at_ms', ",
                now!(),
                ", 'error', ?3))"
            )
        ),
        "id = ?1 AND state = 3"
    );
    let mut freed = BTreeMap::new();
    let mut dead: Vec<i64> = ids.to_vec();
    while let Some(before) = dead.pop() {
        let after: Vec<(i64, bool)> = conn
            .prepare_cached(AFTER)?
            .query_map([before], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (after, anyway) in after {
            if anyway {
                conn.prepare_cached(END)?.execute([before, after])?;
                *freed.entry(after).or_insert(0) += 1;
                continue;
            }
            let why = (after, DeadReason::Abandoned.code(), abandoned(before));
            if conn.prepare_cached(BURY)?.execute(params![why.0, why.1, why.2])? == 1 {
                delete(conn, after)?;
                dead.push(after);
            }
        }
    }
    unblock(conn, freed)
}

/// Dead jobs of workflows have come back, and stand ready: they wait again for what lives and has not ended, and no
/// longer for what is dead. What was abandoned because of them comes back too, unless something else that it waits for
/// is dead. In the transaction that brings them back.
pub(super) fn revived(conn: &Connection, ids: &[i64]) -> rusqlite::Result<()> {
    const FORGET: &str = "
        DELETE FROM greenwave_jobs_dependency WHERE after_id = ?1 AND NOT ended
            AND before_id NOT IN (SELECT id FROM greenwave_jobs)";
    const BLOCK: &str = "
        UPDATE greenwave_jobs SET state = 3,
            pending = (SELECT count(*) FROM greenwave_jobs_dependency WHERE after_id = ?1 AND NOT ended)
        WHERE id = ?1 AND state = 0
            AND EXISTS (SELECT 1 FROM greenwave_jobs_dependency WHERE after_id = ?1 AND NOT ended)";
    const AFTER: &str = "
        SELECT d.after_id FROM greenwave_jobs_dependency d JOIN greenwave_jobs_dead dead ON dead.id = d.after_id
        WHERE d.before_id = ?1 AND NOT d.ended AND dead.reason = ?2
            AND NOT EXISTS (SELECT 1 FROM greenwave_jobs_dependency other WHERE other.after_id = d.after_id
                AND NOT other.ended
                AND NOT EXISTS (SELECT 1 FROM greenwave_jobs j WHERE j.id = other.before_id))";
    const REVIVE: &str =
        revived!("3", "(SELECT count(*) FROM greenwave_jobs_dependency WHERE after_id = ?1 AND NOT ended)");
    for id in ids {
        conn.prepare_cached(FORGET)?.execute([id])?;
        conn.prepare_cached(BLOCK)?.execute([id])?;
    }
    let mut back: Vec<i64> = ids.to_vec();
    while let Some(before) = back.pop() {
        let after: Vec<i64> = conn
            .prepare_cached(AFTER)?
            .query_map(params![before, DeadReason::Abandoned.code()], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for id in after {
            // Its position is drawn when it becomes ready.
            conn.prepare_cached(REVIVE)?.execute([id, 0])?;
            delete_dead(conn, id)?;
            back.push(id);
        }
    }
    Ok(())
}
