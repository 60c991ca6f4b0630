use sqlx::PgConnection;
use sqlx::types::chrono::DateTime;

use crate::Error;
use crate::error::postgres;
use crate::job::{NewJob, Pushed, Start};

// clock_timestamp(), not now(): in a long transaction the job's delay begins when it is pushed.

/// Stores all or none, and answers in order.
pub(super) async fn push(conn: &mut PgConnection, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
    const PUSH: &str = "
        INSERT INTO greenwave_jobs (queue, name, version, payload, priority, max_attempts, state, run_at, timeout_ms,
            keep_ms, key, trace, awaited, pending)
        SELECT queue, name, version, payload::json, priority, max_attempts, state,
            coalesce(at, clock_timestamp()) + delay * interval '1 millisecond', timeout_ms, keep_ms, key, trace,
            awaited, pending
        FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[], $5::smallint[], $6::integer[], $7::smallint[],
            $8::timestamptz[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[], $13::text[], $14::bool[],
            $15::integer[])
            AS pushed (queue, name, version, payload, priority, max_attempts, state, at, delay, timeout_ms, keep_ms,
                key, trace, awaited, pending)
        RETURNING id";
    let (mut states, mut ats, mut delays, mut pendings) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for job in &jobs {
        let (state, at, delay, pending) = match job.start {
            Start::In(0) => (0i16, None, 0, 0),
            Start::In(ms) => (1, None, ms, 0),
            Start::At(ms) => (1, DateTime::from_timestamp_millis(ms), 0, 0),
            Start::After(pending) => (3, None, 0, pending),
        };
        states.push(state);
        ats.push(at);
        delays.push(delay);
        pendings.push(pending);
    }
    let mut ids: Vec<i64> = sqlx::query_scalar(PUSH)
        .bind(jobs.iter().map(|job| job.queue).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.name).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.version).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.payload.as_str()).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.priority).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.max_attempts).collect::<Vec<_>>())
        .bind(states)
        .bind(ats)
        .bind(delays)
        .bind(jobs.iter().map(|job| job.timeout_ms).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.keep_ms).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.key.as_deref()).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.trace.as_deref()).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.awaited).collect::<Vec<_>>())
        .bind(pendings)
        .fetch_all(conn)
        .await
        .map_err(postgres)?;
    // unnest keeps the order of the arrays, and the ids are drawn in the order of insertion.
    ids.sort_unstable();
    Ok(ids.into_iter().map(Pushed::new).collect())
}
