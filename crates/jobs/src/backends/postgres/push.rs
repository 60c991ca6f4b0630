use sqlx::PgConnection;

use crate::error::postgres;
use crate::job::NewJob;
use crate::{Error, JobId};

// clock_timestamp(), not now(): in a long transaction the job's delay begins when it is pushed.

pub(super) async fn one(conn: &mut PgConnection, job: NewJob) -> Result<JobId, Error> {
    const PUSH: &str = "
        INSERT INTO greenwave_jobs (queue, name, payload, priority, max_attempts, state, run_at)
        VALUES ($1, $2, $3::text::json, $4, $5, CASE WHEN $6 > 0 THEN 1 ELSE 0 END,
                clock_timestamp() + $6 * interval '1 millisecond')
        RETURNING id";
    let id: i64 = sqlx::query_scalar(PUSH)
        .bind(job.queue)
        .bind(job.name)
        .bind(job.payload)
        .bind(job.priority)
        .bind(job.max_attempts)
        .bind(job.delay_ms)
        .fetch_one(conn)
        .await
        .map_err(postgres)?;
    Ok(id.into())
}

pub(super) async fn many(conn: &mut PgConnection, jobs: Vec<NewJob>) -> Result<Vec<JobId>, Error> {
    const PUSH: &str = "
        INSERT INTO greenwave_jobs (queue, name, payload, priority, max_attempts, state, run_at)
        SELECT queue, name, payload::json, priority, max_attempts, CASE WHEN delay > 0 THEN 1 ELSE 0 END,
               clock_timestamp() + delay * interval '1 millisecond'
        FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::integer[], $6::bigint[])
            AS pushed (queue, name, payload, priority, max_attempts, delay)
        RETURNING id";
    let mut ids: Vec<i64> = sqlx::query_scalar(PUSH)
        .bind(jobs.iter().map(|job| job.queue).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.name).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.payload.as_str()).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.priority).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.max_attempts).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.delay_ms).collect::<Vec<_>>())
        .fetch_all(conn)
        .await
        .map_err(postgres)?;
    // unnest keeps the order of the arrays, and the ids are drawn in the order of insertion.
    ids.sort_unstable();
    Ok(ids.into_iter().map(JobId::from).collect())
}
