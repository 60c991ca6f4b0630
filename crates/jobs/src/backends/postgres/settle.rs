//! What becomes of leased jobs that are not done. All is fenced by the pair of job and lease.
//!
//! The arrays are sorted by job, so that statements which run at once lock rows in the same order. Times are set by
//! `clock_timestamp()`: that of `now()` may be older than the statement's lock, and [`watermark`](super::watermark)
//! counts on it that none is.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::{Burial, Lease, Retry, workflow};
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
pub(super) use appended;

/// Moves what was deleted as `buried` to the dead.
macro_rules! buried {
    ($attempts:literal, $errors:expr) => {
        concat!(
            "INSERT INTO greenwave_jobs_dead (id, queue, name, payload, priority, attempts, max_attempts, reason,
                created_at, version, key, timeout_ms, keep_ms, awaited, trace, progress, scheduled_for, errors)
            SELECT id, queue, name, payload, priority, ",
            $attempts,
            ", max_attempts, reason, created_at, version, key, timeout_ms, keep_ms, awaited, trace, progress,
                scheduled_for, ",
            $errors,
            " FROM buried"
        )
    };
}
pub(super) use buried;

/// Moves what was deleted from the dead as `revived` back, in the order in which it was pushed, so that its positions
/// are in that order too.
macro_rules! revived {
    ($state:literal, $pending:literal) => {
        concat!(
            "INSERT INTO greenwave_jobs (id, queue, name, version, payload, priority, key, run_at, max_attempts, errors,
                created_at, timeout_ms, keep_ms, awaited, trace, progress, scheduled_for, state, pending)
            SELECT id, queue, name, version, payload, priority, key, now(), max_attempts, errors, created_at, timeout_ms,
                keep_ms, awaited, trace, progress, scheduled_for, ",
            $state,
            ", ",
            $pending,
            " FROM revived ORDER BY id"
        )
    };
}
pub(super) use revived;

/// Job ids and lease ids, for two array parameters.
fn columns(mut leases: Vec<Lease>) -> (Vec<i64>, Vec<i64>) {
    leases.sort_unstable();
    leases.iter().map(|lease| (lease.job.get(), lease.id)).unzip()
}

pub(super) fn count(done: sqlx::postgres::PgQueryResult) -> usize {
    usize::try_from(done.rows_affected()).unwrap_or(usize::MAX)
}

pub(super) async fn release(conn: &mut PgConnection, leases: Vec<Lease>) -> Result<usize, sqlx::Error> {
    // A job that is no longer leased, but not yet leased anew, was rescued: that is undone.
    const RELEASE: &str = "
        UPDATE greenwave_jobs j
        SET state = 0, position = nextval('greenwave_jobs_position'), lease_id = NULL, lease_until = NULL,
            crashes = CASE WHEN j.state = 2 THEN j.crashes ELSE j.crashes - 1 END,
            run_at = least(j.run_at, now())
        FROM unnest($1::bigint[], $2::bigint[]) AS done (id, lease_id)
        WHERE j.id = ANY($1) AND j.id = done.id AND j.lease_id = done.lease_id";
    let (jobs, leases) = columns(leases);
    sqlx::query(RELEASE).bind(jobs).bind(leases).execute(conn).await.map(count)
}

pub(super) async fn extend(
    conn: &mut PgConnection,
    leases: Vec<Lease>,
    length: Duration,
) -> Result<Vec<Lease>, sqlx::Error> {
    const EXTEND: &str = "
        UPDATE greenwave_jobs j SET lease_until = (SELECT clock_timestamp()) + $3 * interval '1 millisecond'
        FROM unnest($1::bigint[], $2::bigint[]) AS held (id, lease_id)
        WHERE j.id = ANY($1) AND j.id = held.id AND j.lease_id = held.lease_id AND j.state = 2
        RETURNING j.id, j.lease_id";
    let (jobs, leases) = columns(leases);
    let held: Vec<(i64, i64)> =
        sqlx::query_as(EXTEND).bind(jobs).bind(leases).bind(millis(length)).fetch_all(conn).await?;
    Ok(held.into_iter().map(|(job, id)| Lease { job: job.into(), id }).collect())
}

pub(super) async fn retry(conn: &mut PgConnection, mut retries: Vec<Retry>) -> Result<usize, sqlx::Error> {
    const RETRY: &str = concat!(
        "UPDATE greenwave_jobs j SET state = 1, run_at = clock_timestamp() + failed.delay * interval '1 millisecond',
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
        .execute(conn)
        .await
        .map(count)
}

/// Answers how many it buried, and which queues have something new.
pub(super) async fn bury(
    conn: &mut PgConnection,
    mut burials: Vec<Burial>,
) -> Result<(usize, Vec<String>), sqlx::Error> {
    const BURY: &str = concat!(
        "WITH buried AS (
            DELETE FROM greenwave_jobs j
            USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[])
                AS dead (id, lease_id, reason, error)
            WHERE j.id = ANY($1) AND j.id = dead.id AND j.lease_id = dead.lease_id
            RETURNING j.*, dead.reason, dead.error),
        dead AS (",
        buried!("failures + 1", appended!("buried", "error")),
        ")
        SELECT ARRAY(SELECT id FROM buried), ARRAY(SELECT id FROM buried WHERE awaited)"
    );
    burials.sort_unstable_by_key(|burial| burial.lease);
    let (jobs, leases) = columns(burials.iter().map(|burial| burial.lease).collect());
    let mut tx = conn.begin().await?;
    let (buried, awaited): (Vec<i64>, Vec<i64>) = sqlx::query_as(BURY)
        .bind(jobs)
        .bind(leases)
        .bind(burials.iter().map(|burial| burial.reason.code()).collect::<Vec<_>>())
        .bind(burials.iter().map(|burial| burial.error.as_str()).collect::<Vec<_>>())
        .fetch_one(&mut *tx)
        .await?;
    let freed = workflow::died(&mut tx, &awaited).await?;
    tx.commit().await?;
    Ok((buried.len(), freed))
}
