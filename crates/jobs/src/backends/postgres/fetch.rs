//! The exchange: what is done goes, what comes next is leased, in one statement.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};

use super::keyed;
use super::lanes::Lane;
use super::limits::{Rules, unruled};
use super::watermark::{Mark, Watermark, look};
use super::{Completion, Exchanged, Lease, LeasedJob, Want, workflow};
use crate::job::millis;

// `id = ANY($1)` says again what the join says, so that the plan is an index scan whatever the statistics are.
macro_rules! complete {
    () => {
        "DELETE FROM greenwave_jobs j USING unnest($1::bigint[], $2::bigint[]) AS done (id, lease_id)
         WHERE j.id = ANY($1) AND j.id = done.id AND j.lease_id = done.lease_id"
    };
    (kept) => {
        "gone AS (
            DELETE FROM greenwave_jobs j USING unnest($1::bigint[], $2::bigint[], $3::text[])
                AS done (id, lease_id, result)
            WHERE j.id = ANY($1) AND j.id = done.id AND j.lease_id = done.lease_id
            RETURNING j.*, done.result),
        kept AS (
            INSERT INTO greenwave_jobs_done (id, queue, name, version, payload, result, attempts, pushed_at,
                completed_at, expires_at)
            SELECT id, queue, name, version, payload, result::json, failures + 1, created_at, clock_timestamp(),
                clock_timestamp() + keep_ms * interval '1 millisecond'
            FROM gone WHERE keep_ms > 0)"
    };
}

// ANY(ARRAY(…)), because a join with the selection lets a generic plan scan the whole table. The time is a subquery, so
// that it is read once for the statement. Each priority is a range of the index of its own; the next is only looked at
// when those before it do not fill the limit. The count comes first, so that a job which was rescued, and is done after
// all, is gone before it could be taken again.
macro_rules! take {
    () => {
        concat!(
            "UPDATE greenwave_jobs SET state = 2, lease_id = $8,
                lease_until = (SELECT clock_timestamp() + $4 * interval '1 millisecond')
            WHERE ctid = ANY(ARRAY(
                SELECT ready.ctid FROM unnest($5::bigint[]) WITH ORDINALITY AS floors (floor, number)
                CROSS JOIN LATERAL (
                    SELECT ctid FROM greenwave_jobs
                    WHERE state = 0 AND key IS NULL AND queue = $6 AND priority = (number - 1)::smallint
                        AND position >= floor
                    ORDER BY position LIMIT $7 FOR UPDATE SKIP LOCKED) AS ready
                WHERE (SELECT count(*) FROM gone) >= 0 AND ",
            unruled!("$6"),
            "
                LIMIT $7))
            RETURNING "
        )
    };
}

macro_rules! taken {
    () => {
        "id, lease_id, name, version, payload, failures, max_attempts, timeout_ms, run_at, trace, awaited, keep_ms > 0,
            priority, position, crashes, scheduled_for"
    };
}

/// Always answers with a row.
macro_rules! exchange {
    ($gone:expr) => {
        concat!(
            "WITH ",
            $gone,
            ", taken AS (",
            take!(),
            taken!(),
            ") SELECT (SELECT count(*) FROM gone), (SELECT clock_timestamp()), taken.*
            FROM (SELECT) AS always LEFT JOIN taken ON true"
        )
    };
}

macro_rules! gone {
    () => {
        concat!("gone AS (", complete!(), " AND $3::text[] IS NULL RETURNING j.id)")
    };
}

const COMPLETE: &str = complete!();
const COMPLETE_KEPT: &str = concat!("WITH ", complete!(kept), " SELECT count(*) FROM gone");
const EXCHANGE: &str = exchange!(gone!());
const EXCHANGE_KEPT: &str = exchange!(complete!(kept));

/// Completes and leases. Where there are rules, what is plainly done goes with the fetch under the queue's lock, and
/// all else before it.
pub(super) async fn exchange(
    lane: &mut Lane,
    rules: &Rules,
    done: Vec<Completion>,
    want: Option<Want<'_>>,
) -> Result<Exchanged, sqlx::Error> {
    let Some(wanted) = want else { return plain(lane, done, None).await };
    let mut rule = rules.get(wanted.queue);
    // Somebody may have resumed it.
    if rule.paused {
        rule = rules.look(lane, wanted.queue).await?;
    }
    if rule.paused {
        return plain(lane, done, None).await;
    }
    if !rule.is_ruled() {
        let exchanged = plain(lane, done, want).await?;
        // It found nothing: is there something that it must not see?
        if !exchanged.jobs.is_empty() || !rules.look(lane, wanted.queue).await?.is_ruled() {
            return Ok(exchanged);
        }
        lane.commit_durably(true).await?;
        let ruled = keyed::exchange(lane, &[], wanted).await?;
        return Ok(Exchanged { jobs: ruled.jobs, again: ruled.again, ..exchanged });
    }
    // It draws its lease id itself.
    lane.commit_durably(true).await?;
    if is_lasting(&done) {
        let exchanged = plain(lane, done, None).await?;
        let ruled = keyed::exchange(lane, &[], wanted).await?;
        return Ok(Exchanged { jobs: ruled.jobs, again: ruled.again, ..exchanged });
    }
    let mut done: Vec<Lease> = done.into_iter().map(|completion| completion.lease).collect();
    done.sort_unstable();
    keyed::exchange(lane, &done, wanted).await
}

/// In a transaction of its own only where one of those that are done is part of a workflow.
async fn plain(
    lane: &mut Lane,
    mut done: Vec<Completion>,
    want: Option<Want<'_>>,
) -> Result<Exchanged, sqlx::Error> {
    let lease_id = match want {
        Some(_) => lane.draw_lease().await?,
        None => 0,
    };
    // A lease or a deletion that a crash of the server undoes only has the job run again.
    lane.commit_durably(is_lasting(&done)).await?;
    let (conn, marks) = lane.parts();
    if let Some(Want { queue, .. }) = want
        && marks.is_sweep_due(queue)
    {
        sweep(conn, marks, queue).await?;
    }
    // Sorted, so that statements which run at once lock rows in the same order.
    done.sort_unstable_by_key(|completion| completion.lease);
    if done.iter().any(|completion| completion.awaited) {
        let mut tx = conn.begin().await?;
        let (completed, freed) = complete_awaited(&mut tx, &done).await?;
        // What became ready by it may be leased at once.
        let exchanged = match want {
            Some(_) => run(&mut tx, marks, &[], want, lease_id).await?,
            None => Exchanged::default(),
        };
        tx.commit().await?;
        return Ok(Exchanged { completed, freed, ..exchanged });
    }
    run(conn, marks, &done, want, lease_id).await
}

/// True if somebody may already have seen that one of these is done.
fn is_lasting(done: &[Completion]) -> bool {
    done.iter().any(|completion| completion.awaited || completion.kept)
}

/// Completes jobs of which some are part of a workflow.
async fn complete_awaited(
    conn: &mut PgConnection,
    done: &[Completion],
) -> Result<(usize, Vec<String>), sqlx::Error> {
    const COMPLETE: &str = concat!("WITH ", complete!(kept), " SELECT id, keep_ms > 0, awaited FROM gone");
    let (jobs, leases) = columns(done);
    let gone: Vec<(i64, bool, bool)> = sqlx::query_as(COMPLETE)
        .bind(jobs)
        .bind(leases)
        .bind(done.iter().map(|completion| completion.result.as_deref()).collect::<Vec<_>>())
        .fetch_all(&mut *conn)
        .await?;
    let awaited: Vec<(i64, bool)> =
        gone.iter().filter(|(_, _, awaited)| *awaited).map(|(id, kept, _)| (*id, *kept)).collect();
    Ok((gone.len(), workflow::ended(conn, &awaited).await?))
}

/// Job ids and lease ids, for two array parameters.
fn columns(done: &[Completion]) -> (Vec<i64>, Vec<i64>) {
    done.iter().map(|completion| (completion.lease.job.get(), completion.lease.id)).unzip()
}

async fn run(
    conn: &mut PgConnection,
    marks: &mut Watermark,
    done: &[Completion],
    want: Option<Want<'_>>,
    lease_id: i64,
) -> Result<Exchanged, sqlx::Error> {
    let (jobs, leases) = columns(done);
    let kept = done.iter().any(|completion| completion.kept);
    let results =
        kept.then(|| done.iter().map(|completion| completion.result.as_deref()).collect::<Vec<_>>());
    let Some(Want { queue, limit, lease }) = want else {
        let completed = if kept {
            sqlx::query_scalar(COMPLETE_KEPT).bind(jobs).bind(leases).bind(results).fetch_one(conn).await?
        } else if jobs.is_empty() {
            0
        } else {
            let done = sqlx::query(COMPLETE).bind(jobs).bind(leases).execute(conn).await?;
            done.rows_affected().try_into().unwrap_or(i64::MAX)
        };
        return Ok(Exchanged { completed: usize::try_from(completed).unwrap_or(0), ..Exchanged::default() });
    };
    let rows = sqlx::query(if kept { EXCHANGE_KEPT } else { EXCHANGE })
        .bind(jobs)
        .bind(leases)
        .bind(results)
        .bind(millis(lease))
        .bind(marks.floors_to_fetch(queue))
        .bind(queue)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .bind(lease_id)
        .fetch_all(conn)
        .await?;
    let completed: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    let mut taken = rows.iter().filter_map(|row| read(row).transpose()).collect::<Result<Vec<_>, _>>()?;
    marks.fetched(queue, taken.iter().map(|(order, _)| *order));
    taken.sort_unstable_by_key(|(order, _)| *order);
    Ok(Exchanged {
        completed: usize::try_from(completed).unwrap_or(0),
        jobs: taken.into_iter().map(|(_, job)| job).collect(),
        ..Exchanged::default()
    })
}

/// A job, and its priority and position.
type Placed = ((usize, i64), LeasedJob);

/// A leased job, and its priority and position; none of the row that only has the count.
pub(super) fn read(row: &PgRow) -> Result<Option<Placed>, sqlx::Error> {
    let Some(id) = row.try_get_unchecked::<Option<i64>, _>(2)? else { return Ok(None) };
    // Times in microseconds, as they travel.
    let (now, run_at): (i64, i64) = (row.try_get_unchecked(1)?, row.try_get_unchecked(10)?);
    let job = LeasedJob {
        lease: Lease { job: id.into(), id: row.try_get_unchecked(3)? },
        name: row.try_get_unchecked(4)?,
        version: row.try_get_unchecked::<i32, _>(5)?.unsigned_abs(),
        payload: row.try_get_raw(6)?.as_str().map_err(sqlx::Error::Decode)?.to_owned(),
        failures: row.try_get_unchecked::<i32, _>(7)?.unsigned_abs(),
        crashes: row.try_get_unchecked::<i32, _>(16)?.unsigned_abs(),
        max_attempts: row.try_get_unchecked::<i32, _>(8)?.unsigned_abs(),
        timeout: row
            .try_get_unchecked::<Option<i64>, _>(9)?
            .map(|ms| Duration::from_millis(ms.unsigned_abs())),
        waited: Duration::from_micros(u64::try_from(now.saturating_sub(run_at)).unwrap_or(0)),
        trace: row.try_get_unchecked(11)?,
        awaited: row.try_get_unchecked(12)?,
        kept: row.try_get_unchecked(13)?,
        scheduled_for: row.try_get::<Option<DateTime<Utc>>, _>(17)?.map(Into::into),
    };
    let priority = usize::from(row.try_get_unchecked::<i16, _>(14)?.unsigned_abs());
    Ok(Some(((priority, row.try_get_unchecked(15)?), job)))
}

/// Learns where the ready jobs of a queue begin.
async fn sweep(conn: &mut PgConnection, marks: &mut Watermark, queue: &str) -> Result<(), sqlx::Error> {
    const SWEEP: &str = look!(
        "ARRAY(
            SELECT (SELECT position FROM greenwave_jobs
                WHERE state = 0 AND key IS NULL AND queue = $1 AND priority = (number - 1)::smallint
                    AND position >= floor
                ORDER BY position LIMIT 1)
            FROM unnest($2::bigint[]) WITH ORDINALITY AS floors (floor, number) ORDER BY number)"
    );
    let began = Instant::now();
    // What the last look has settled: this statement's snapshot, which is older than its own look, shows all of it.
    let settled = marks.settled();
    let (position, time, holders, first): (i64, DateTime<Utc>, Vec<String>, Vec<Option<i64>>) =
        sqlx::query_as(SWEEP).bind(queue).bind(marks.floors(queue)).fetch_one(conn).await?;
    marks.swept(queue, settled, &first, began.elapsed());
    marks.looked(Mark { position, time }, holders);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
