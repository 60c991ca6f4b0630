//! What becomes of leased jobs. All is fenced by the pair of job and lease.
//!
//! The arrays are sorted by job, so that statements which run at once lock rows in the same order.

use std::time::Duration;

use sqlx::PgPool;

use super::{Burial, LEASE_ENDED, Lease, MAINTENANCE_BATCH, Retry};
use crate::backoff::Backoff;
use crate::dead::DeadReason;
use crate::job::millis;

/// The errors kept with a job are its last ten: this appends one.
macro_rules! appended {
    ($job:literal, $error:literal) => {
        concat!(
            "(CASE WHEN jsonb_array_length(",
            $job,
            ".errors) >= 10 THEN ",
            $job,
            ".errors - 0 ELSE ",
            $job,
            ".errors END) || jsonb_build_object('attempt', ",
            $job,
            ".failures + 1, 'at_ms', ",
            "(extract(epoch FROM now()) * 1000)::bigint, 'error', ",
            $error,
            ")"
        )
    };
}

/// Job ids and lease ids, for two array parameters.
fn columns(mut leases: Vec<Lease>) -> (Vec<i64>, Vec<i64>) {
    leases.sort_unstable();
    leases.iter().map(|lease| (lease.job.get(), lease.id)).unzip()
}

fn count(done: sqlx::postgres::PgQueryResult) -> usize {
    usize::try_from(done.rows_affected()).unwrap_or(usize::MAX)
}

pub(super) async fn complete(pool: &PgPool, leases: Vec<Lease>) -> Result<usize, sqlx::Error> {
    // `id = ANY($1)` says again what the join says, so that the plan is an index scan whatever the statistics are.
    const COMPLETE: &str = "
        DELETE FROM greenwave_jobs j
        USING unnest($1::bigint[], $2::bigint[]) AS done (id, lease_id)
        WHERE j.id = ANY($1) AND j.id = done.id AND j.lease_id = done.lease_id";
    let (jobs, leases) = columns(leases);
    sqlx::query(COMPLETE).bind(jobs).bind(leases).execute(pool).await.map(count)
}

pub(super) async fn release(pool: &PgPool, leases: Vec<Lease>) -> Result<usize, sqlx::Error> {
    // A job that is no longer leased, but not yet leased anew, was rescued: that is undone.
    const RELEASE: &str = "
        UPDATE greenwave_jobs j SET state = 0, position = nextval('greenwave_jobs_position'), lease_id = NULL, lease_until = NULL,
            crashes = CASE WHEN j.state = 2 THEN j.crashes ELSE j.crashes - 1 END,
            run_at = least(j.run_at, now())
        FROM unnest($1::bigint[], $2::bigint[]) AS done (id, lease_id)
        WHERE j.id = ANY($1) AND j.id = done.id AND j.lease_id = done.lease_id";
    let (jobs, leases) = columns(leases);
    sqlx::query(RELEASE).bind(jobs).bind(leases).execute(pool).await.map(count)
}

pub(super) async fn extend(
    pool: &PgPool,
    leases: Vec<Lease>,
    length: Duration,
) -> Result<Vec<Lease>, sqlx::Error> {
    const EXTEND: &str = "
        UPDATE greenwave_jobs j SET lease_until = now() + $3 * interval '1 millisecond'
        FROM unnest($1::bigint[], $2::bigint[]) AS held (id, lease_id)
        WHERE j.id = ANY($1) AND j.id = held.id AND j.lease_id = held.lease_id AND j.state = 2
        RETURNING j.id, j.lease_id";
    let (jobs, leases) = columns(leases);
    let held: Vec<(i64, i64)> =
        sqlx::query_as(EXTEND).bind(jobs).bind(leases).bind(millis(length)).fetch_all(pool).await?;
    Ok(held.into_iter().map(|(job, id)| Lease { job: job.into(), id }).collect())
}

pub(super) async fn retry(pool: &PgPool, mut retries: Vec<Retry>) -> Result<usize, sqlx::Error> {
    const RETRY: &str = concat!(
        "UPDATE greenwave_jobs j SET state = 1, run_at = now() + failed.delay * interval '1 millisecond',
            lease_id = NULL, lease_until = NULL, crashes = 0,
            failures = j.failures + CASE WHEN failed.error IS NULL THEN 0 ELSE 1 END,
            errors = CASE WHEN failed.error IS NULL THEN j.errors ELSE ",
        appended!("j", "failed.error"),
        " END FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[])
            AS failed (id, lease_id, delay, error)
        WHERE j.id = ANY($1) AND j.id = failed.id AND j.lease_id = failed.lease_id"
    );
    retries.sort_unstable_by_key(|retry| retry.lease);
    let (jobs, leases) = columns(retries.iter().map(|retry| retry.lease).collect());
    sqlx::query(RETRY)
        .bind(jobs)
        .bind(leases)
        .bind(retries.iter().map(|retry| millis(retry.delay)).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.error.as_deref()).collect::<Vec<_>>())
        .execute(pool)
        .await
        .map(count)
}

pub(super) async fn bury(pool: &PgPool, mut burials: Vec<Burial>) -> Result<usize, sqlx::Error> {
    const BURY: &str = concat!(
        "WITH buried AS (
            DELETE FROM greenwave_jobs j
            USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])
                AS dead (id, lease_id, reason, error)
            WHERE j.id = ANY($1) AND j.id = dead.id AND j.lease_id = dead.lease_id
            RETURNING j.*, dead.reason, dead.error)
        INSERT INTO greenwave_jobs_dead
            (id, queue, name, payload, priority, attempts, max_attempts, reason, created_at, errors)
        SELECT id, queue, name, payload, priority, failures + 1, max_attempts, reason, created_at, ",
        appended!("buried", "error"),
        " FROM buried"
    );
    burials.sort_unstable_by_key(|burial| burial.lease);
    let (jobs, leases) = columns(burials.iter().map(|burial| burial.lease).collect());
    sqlx::query(BURY)
        .bind(jobs)
        .bind(leases)
        .bind(burials.iter().map(|burial| burial.reason.code()).collect::<Vec<_>>())
        .bind(burials.iter().map(|burial| burial.error.as_str()).collect::<Vec<_>>())
        .execute(pool)
        .await
        .map(count)
}

/// Answers how many it buried and how many are ready now.
pub(super) async fn promote(pool: &PgPool, max_crashes: i32) -> Result<(usize, usize), sqlx::Error> {
    const BURY: &str = "
        WITH buried AS (
            DELETE FROM greenwave_jobs
            WHERE id = ANY(ARRAY(
                SELECT id FROM greenwave_jobs WHERE state = 1 AND run_at <= now() AND crashes >= $1
                ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED))
            RETURNING *)
        INSERT INTO greenwave_jobs_dead
            (id, queue, name, payload, priority, attempts, max_attempts, reason, created_at, errors)
        SELECT id, queue, name, payload, priority, failures, max_attempts, $3, created_at, errors FROM buried";
    const PROMOTE: &str = "
        UPDATE greenwave_jobs SET state = 0, position = nextval('greenwave_jobs_position')
        WHERE id = ANY(ARRAY(
            SELECT id FROM greenwave_jobs WHERE state = 1 AND run_at <= now() AND crashes < $1
            ORDER BY run_at LIMIT $2 FOR UPDATE SKIP LOCKED))";
    let reason = DeadReason::Crashed.code();
    let buried =
        sqlx::query(BURY).bind(max_crashes).bind(MAINTENANCE_BATCH).bind(reason).execute(pool).await?;
    let promoted = sqlx::query(PROMOTE).bind(max_crashes).bind(MAINTENANCE_BATCH).execute(pool).await?;
    Ok((count(buried), count(promoted)))
}

pub(super) async fn rescue(pool: &PgPool, backoff: Backoff) -> Result<usize, sqlx::Error> {
    // The lease id stays: if the old worker lives and settles the job before another takes it, that counts.
    const RESCUE: &str = concat!(
        "UPDATE greenwave_jobs j SET state = 1, lease_until = NULL, crashes = j.crashes + 1,
            run_at = now() + least($3::float8 * power(2, least(j.crashes, 30)), $4::float8)
                * (0.5 + random() / 2) * interval '1 millisecond',
            errors = ",
        appended!("j", "$2::text"),
        " WHERE id = ANY(ARRAY(
            SELECT id FROM greenwave_jobs WHERE state = 2 AND lease_until < now()
            ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED))"
    );
    let Backoff { base, max } = backoff;
    sqlx::query(RESCUE)
        .bind(MAINTENANCE_BATCH)
        .bind(LEASE_ENDED)
        .bind(base.as_secs_f64() * 1000.0)
        .bind(max.as_secs_f64() * 1000.0)
        .execute(pool)
        .await
        .map(count)
}
