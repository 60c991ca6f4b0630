//! Unique jobs: their keys are claimed in the statement that stores them.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::push::{Shape, texts};
use crate::job::{NewJob, Pushed};
use crate::unique::{Claim, Sweep, claims};

/// Stores a batch in which some are unique, all or none, and answers in order.
pub(super) async fn push(conn: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<Pushed>, sqlx::Error> {
    const DRAW: &str = "
        SELECT nextval(pg_get_serial_sequence('greenwave_jobs', 'id')::regclass) FROM generate_series(1, $1::bigint)";
    const PUSH: &str = "
        WITH claimed AS MATERIALIZED (
            SELECT claim, holder FROM greenwave_jobs_claim($17, $18, $19, $20, $21)),
        stored AS (
            INSERT INTO greenwave_jobs (id, payload, key, trace, queue, name, version, priority, max_attempts, state,
                run_at, timeout_ms, keep_ms, awaited, pending)
            SELECT id, payload::json, key, trace, queue, name, version, priority, max_attempts,
                CASE WHEN state = 1 AND at <= clock_timestamp() THEN 0 ELSE state END,
                greatest(at, clock_timestamp()) + delay * interval '1 millisecond', timeout_ms, keep_ms, awaited,
                pending
            FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[],
                $8::smallint[], $9::integer[], $10::smallint[], $11::timestamptz[], $12::bigint[], $13::bigint[],
                $14::bigint[], $15::bool[], $16::integer[])
                AS pushed (id, payload, key, trace, queue, name, version, priority, max_attempts, state, at, delay,
                    timeout_ms, keep_ms, awaited, pending)
            WHERE id <> ALL(SELECT claim FROM claimed WHERE holder <> claim))
        SELECT claim, holder FROM claimed";
    let (claims, repeats) = claims(jobs);
    let count = i64::try_from(jobs.len()).unwrap_or(i64::MAX);
    let ids: Vec<i64> = sqlx::query_scalar(DRAW).bind(count).fetch_all(&mut *conn).await?;
    // Those that repeat a key of this batch are not stored; they have the answer of the first.
    let repeated: HashMap<usize, usize> = repeats.into_iter().collect();
    let stored = || ids.iter().zip(jobs).enumerate().filter(|(at, _)| !repeated.contains_key(at));
    let own: Vec<NewJob> = stored().map(|(_, (_, job))| job.clone()).collect();
    let shapes: Vec<Shape> = own.iter().map(Shape::of).collect();
    let claim_ids = claims.iter().filter_map(|claim| ids.get(claim.at).copied());
    let held: Vec<(i64, i64)> = sqlx::query_as(PUSH)
        .bind(stored().map(|(_, (id, _))| *id).collect::<Vec<_>>())
        .bind(own.iter().map(|job| job.payload.as_str()).collect::<Vec<_>>())
        .bind(texts(&own, |job| job.key.as_deref()))
        .bind(texts(&own, |job| job.trace.as_deref()))
        .bind(shapes.iter().map(|shape| shape.queue).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.name).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.version).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.priority).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.max_attempts).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.state).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.at).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.delay).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.timeout_ms).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.keep_ms).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.awaited).collect::<Vec<_>>())
        .bind(shapes.iter().map(|shape| shape.pending).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.name).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.key).collect::<Vec<_>>())
        .bind(claim_ids.collect::<Vec<_>>())
        .bind(claims.iter().map(|claim: &Claim<'_>| claim.window_ms).collect::<Vec<_>>())
        .bind(claims.iter().map(|claim| claim.states).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    let holders: HashMap<i64, i64> = held.into_iter().collect();
    let answer = |(at, id): (usize, &i64)| {
        let first = repeated.get(&at).and_then(|first| ids.get(*first));
        let holder = holders.get(first.unwrap_or(id)).or(first).unwrap_or(id);
        Pushed { id: (*holder).into(), existed: holder != id }
    };
    Ok(ids.iter().enumerate().map(answer).collect())
}

/// Deletes the keys among the next ones that no job holds, nor will hold.
pub(super) async fn sweep(conn: &mut PgConnection, sweep: &Sweep) -> Result<(), sqlx::Error> {
    // The id is compared once more when the row is locked: somebody may have taken it over.
    const SWEEP: &str = "
        WITH seen AS MATERIALIZED (
            SELECT name, key, job_id, until, states FROM greenwave_jobs_unique
            WHERE (name, key) > ($1, $2) ORDER BY name, key LIMIT $3),
        free AS MATERIALIZED (
            SELECT s.name, s.key, s.job_id FROM seen s
            LEFT JOIN greenwave_jobs j ON j.id = s.job_id
            LEFT JOIN greenwave_jobs_dead d ON d.id = s.job_id
            WHERE s.until <= clock_timestamp()
                OR j.id IS NULL AND s.states & CASE WHEN d.id IS NULL THEN 4 ELSE 8 END = 0),
        gone AS (
            DELETE FROM greenwave_jobs_unique WHERE ctid = ANY(ARRAY(
                SELECT u.ctid FROM greenwave_jobs_unique u JOIN free f USING (name, key)
                WHERE u.job_id = f.job_id FOR UPDATE OF u SKIP LOCKED))
            RETURNING name)
        SELECT (SELECT count(*) FROM seen), (SELECT count(*) FROM gone),
            (SELECT max(name) FROM seen), (SELECT max(key) FROM seen WHERE name = (SELECT max(name) FROM seen))";
    while let Some((name, key)) = sweep.begin() {
        let (seen, gone, name, key): (i64, i64, Option<String>, Option<String>) = sqlx::query_as(SWEEP)
            .bind(name)
            .bind(key)
            .bind(i64::try_from(Sweep::BATCH).unwrap_or(i64::MAX))
            .fetch_one(&mut *conn)
            .await?;
        let count = |count: i64| usize::try_from(count).unwrap_or(0);
        sweep.ended(count(seen), count(gone), name.zip(key));
    }
    Ok(())
}
