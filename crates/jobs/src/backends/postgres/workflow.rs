//! Jobs that wait for others. The edges are the truth; a blocked job's `pending` counts those that have not ended.
//!
//! Ends take an advisory lock together, deaths and revivals take it alone: these follow the edges from job to job, and
//! must see them at rest. A workflow's jobs come into being together, each after those it waits for, so that ids rise
//! along the edges.

use sqlx::PgConnection;

use super::push;
use super::settle::{buried, revived};
use crate::Error;
use crate::backends::flows::{Edge, abandoned};
use crate::dead::DeadReason;
use crate::error::postgres;
use crate::job::{NewJob, Pushed};

/// "greenflo" in ASCII.
const EDGES_LOCK: i64 = 0x6772_6565_6e66_6c6f;

/// Takes the lock. Of edges that were stored a moment ago PostgreSQL has no statistics; it takes a batch of jobs to match
/// them all, and would read a million of them for each.
macro_rules! lock {
    ($function:literal) => {
        concat!(
            "SELECT ",
            $function,
            "($1), set_config('enable_seqscan', 'off', true), set_config('enable_nestloop', 'on', true)"
        )
    };
}

/// Edges stored by one statement.
const EDGE_BATCH: usize = 50_000;

pub(super) async fn push(
    conn: &mut PgConnection,
    jobs: Vec<NewJob>,
    edges: &[Edge],
) -> Result<Vec<Pushed>, Error> {
    const LINK: &str = "
        INSERT INTO greenwave_jobs_dependency (before_id, after_id, anyway)
        SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::boolean[])";
    let pushed = push::push(&mut *conn, jobs).await?;
    let id = |place: usize| pushed.get(place).map_or(0, |pushed| pushed.id.get());
    for edges in edges.chunks(EDGE_BATCH) {
        sqlx::query(LINK)
            .bind(edges.iter().map(|edge| id(edge.before)).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| id(edge.after)).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.anyway).collect::<Vec<_>>())
            .execute(&mut *conn)
            .await
            .map_err(postgres)?;
    }
    Ok(pushed)
}

/// Jobs of workflows are completed; each with whether it is kept. In the transaction that completes them, after the
/// statement that does. Answers with the queues that have something new once it commits.
pub(super) async fn ended(
    conn: &mut PgConnection,
    completed: &[(i64, bool)],
) -> Result<Vec<String>, sqlx::Error> {
    // The edge to a kept job stays, for its result may be read, until the one that waited is completed itself.
    const END: &str = "
        WITH kept AS (
            UPDATE greenwave_jobs_dependency SET ended = true WHERE before_id = ANY ($1) AND NOT ended
            RETURNING after_id),
        gone AS (
            DELETE FROM greenwave_jobs_dependency WHERE before_id = ANY ($2) AND NOT ended RETURNING after_id),
        own AS (DELETE FROM greenwave_jobs_dependency WHERE after_id = ANY ($3))
        SELECT after_id, count(*)::integer FROM (TABLE kept UNION ALL TABLE gone) AS ended GROUP BY after_id
        ORDER BY after_id";
    if completed.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query(lock!("pg_advisory_xact_lock_shared")).bind(EDGES_LOCK).execute(&mut *conn).await?;
    let ids =
        |kept: bool| completed.iter().filter(|(_, is)| *is == kept).map(|(id, _)| *id).collect::<Vec<_>>();
    let freed: Vec<(i64, i32)> = sqlx::query_as(END)
        .bind(ids(true))
        .bind(ids(false))
        .bind(completed.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        .fetch_all(&mut *conn)
        .await?;
    unblock(conn, freed).await
}

/// Counts down what jobs wait for; those that wait no more become ready.
async fn unblock(conn: &mut PgConnection, freed: Vec<(i64, i32)>) -> Result<Vec<String>, sqlx::Error> {
    const LOCK: &str = "SELECT id FROM greenwave_jobs WHERE id = ANY ($1) ORDER BY id FOR UPDATE";
    const UNBLOCK: &str = "
        UPDATE greenwave_jobs j SET pending = j.pending - freed.ended,
            state = CASE WHEN j.pending > freed.ended THEN 3 ELSE 0 END,
            position = CASE WHEN j.pending > freed.ended THEN j.position ELSE nextval('greenwave_jobs_position') END,
            run_at = CASE WHEN j.pending > freed.ended THEN j.run_at ELSE now() END
        FROM unnest($1::bigint[], $2::integer[]) AS freed (id, ended)
        WHERE j.id = ANY ($1) AND j.id = freed.id AND j.state = 3
        RETURNING j.queue, j.state";
    if freed.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, counts): (Vec<i64>, Vec<i32>) = freed.into_iter().unzip();
    // Two that complete what the same jobs wait for lock these in one order.
    if ids.len() > 1 {
        sqlx::query(LOCK).bind(&ids).execute(&mut *conn).await?;
    }
    let touched: Vec<(String, i16)> = sqlx::query_as(UNBLOCK).bind(ids).bind(counts).fetch_all(conn).await?;
    let mut queues: Vec<String> =
        touched.into_iter().filter(|(_, state)| *state == 0).map(|(queue, _)| queue).collect();
    queues.sort_unstable();
    queues.dedup();
    Ok(queues)
}

/// Jobs of workflows are dead: what waits for them dies too, and what waits for that; what runs anyway waits for them
/// no more. In the transaction that buries them, after the statement that does.
pub(super) async fn died(conn: &mut PgConnection, ids: &[i64]) -> Result<Vec<String>, sqlx::Error> {
    const DOOMED: &str = "
        WITH RECURSIVE doomed (id, because) AS (
            SELECT after_id, before_id FROM greenwave_jobs_dependency
            WHERE before_id = ANY ($1) AND NOT ended AND NOT anyway
            UNION
            SELECT d.after_id, d.before_id FROM doomed JOIN greenwave_jobs_dependency d ON d.before_id = doomed.id
            WHERE NOT d.ended AND NOT d.anyway)
        SELECT id, min(because) FROM doomed GROUP BY id ORDER BY id";
    const BURY: &str = concat!(
        "WITH buried AS (
            DELETE FROM greenwave_jobs j USING unnest($1::bigint[], $2::text[]) AS doomed (id, error)
            WHERE j.id = ANY ($1) AND j.id = doomed.id AND j.state = 3
            RETURNING j.*, doomed.error, $3::text AS reason) ",
        buried!(
            "failures",
            "errors || jsonb_build_object('attempt', 0, 'at_ms', (extract(epoch FROM now()) * 1000)::bigint,
                'error', error)"
        )
    );
    const ANYWAY: &str = "
        WITH ended AS (
            UPDATE greenwave_jobs_dependency SET ended = true WHERE before_id = ANY ($1) AND anyway AND NOT ended
            RETURNING after_id)
        SELECT after_id, count(*)::integer FROM ended GROUP BY after_id ORDER BY after_id";
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    lock_alone(conn).await?;
    let doomed: Vec<(i64, i64)> = sqlx::query_as(DOOMED).bind(ids).fetch_all(&mut *conn).await?;
    let mut dead = ids.to_vec();
    if !doomed.is_empty() {
        let errors: Vec<String> = doomed.iter().map(|(_, because)| abandoned(*because)).collect();
        let doomed: Vec<i64> = doomed.into_iter().map(|(id, _)| id).collect();
        let bury = sqlx::query(BURY).bind(&doomed).bind(errors).bind(DeadReason::Abandoned.code());
        bury.execute(&mut *conn).await?;
        dead.extend(doomed);
    }
    let freed = sqlx::query_as(ANYWAY).bind(dead).fetch_all(&mut *conn).await?;
    unblock(conn, freed).await
}

/// Dead jobs of workflows have come back, and stand ready: they wait again for what lives and has not ended, and no
/// longer for what is dead. What was abandoned because of them comes back too, unless something else that it waits for
/// is dead. In the transaction that brings them back, after the statement that does.
pub(super) async fn revived(conn: &mut PgConnection, ids: &[i64]) -> Result<(), sqlx::Error> {
    const FORGET: &str = "
        DELETE FROM greenwave_jobs_dependency d WHERE after_id = ANY ($1) AND NOT ended
            AND NOT EXISTS (SELECT FROM greenwave_jobs j WHERE j.id = d.before_id)";
    const BLOCK: &str = "
        UPDATE greenwave_jobs j SET state = 3, pending = waits.count
        FROM (SELECT after_id, count(*)::integer FROM greenwave_jobs_dependency
              WHERE after_id = ANY ($1) AND NOT ended GROUP BY after_id) AS waits
        WHERE j.id = waits.after_id AND j.state = 0";
    const REVIVE: &str = concat!(
        "WITH revived AS (
            DELETE FROM greenwave_jobs_dead WHERE reason = $2 AND id IN (
                SELECT d.after_id FROM greenwave_jobs_dependency d WHERE d.before_id = ANY ($1) AND NOT d.ended
                    AND NOT EXISTS (SELECT FROM greenwave_jobs_dependency other WHERE other.after_id = d.after_id
                        AND NOT other.ended
                        AND NOT EXISTS (SELECT FROM greenwave_jobs j WHERE j.id = other.before_id)))
            RETURNING *) ",
        revived!(
            "3",
            "(SELECT count(*) FROM greenwave_jobs_dependency d WHERE d.after_id = revived.id AND NOT d.ended)"
        ),
        " RETURNING id"
    );
    if ids.is_empty() {
        return Ok(());
    }
    lock_alone(conn).await?;
    sqlx::query(FORGET).bind(ids).execute(&mut *conn).await?;
    sqlx::query(BLOCK).bind(ids).execute(&mut *conn).await?;
    let mut back = ids.to_vec();
    // As deep as the workflow.
    while !back.is_empty() {
        let revive = sqlx::query_scalar(REVIVE).bind(back).bind(DeadReason::Abandoned.code());
        back = revive.fetch_all(&mut *conn).await?;
    }
    Ok(())
}

async fn lock_alone(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(lock!("pg_advisory_xact_lock")).bind(EDGES_LOCK).execute(conn).await.map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
