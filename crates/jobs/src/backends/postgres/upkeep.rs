//! What nobody waits for: jobs that are due become ready, jobs whose lease ended come back, and what kills its workers
//! is parked.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};

use super::lanes::Lane;
use super::settle::{appended, buried};
use super::watermark::{Mark, Watermark, look};
use super::{Kept, LEASE_ENDED, MAINTENANCE_BATCH, Upkeep, schedules, workflow};
use crate::Error;
use crate::backoff::Backoff;
use crate::dead::DeadReason;
use crate::error::postgres;

/// What there is to do.
struct Work {
    /// In how long the first scheduled job is due.
    due_in: Option<Duration>,
    /// In how long the first schedule ticks.
    tick_in: Option<Duration>,
    /// True if a lease has ended.
    ended: bool,
}

/// One round trip when there is nothing to do. Answers too which queues have something new.
pub(super) async fn upkeep(lane: &mut Lane, upkeep: Upkeep) -> Result<(Kept, Vec<String>), Error> {
    let (conn, marks) = lane.parts();
    let mut work = find(conn, marks).await.map_err(postgres)?;
    if work.tick_in != Some(Duration::ZERO) {
        return keep(conn, marks, work, upkeep).await.map_err(postgres);
    }
    let mut new = schedules::tick(conn).await?;
    work = find(conn, marks).await.map_err(postgres)?;
    // One that could not have its turn waits for the next upkeep.
    work.tick_in = work.tick_in.filter(|tick_in| !tick_in.is_zero());
    let (kept, freed) = keep(conn, marks, work, upkeep).await.map_err(postgres)?;
    new.extend(freed);
    Ok((kept, new))
}

async fn keep(
    conn: &mut PgConnection,
    marks: &mut Watermark,
    mut work: Work,
    upkeep: Upkeep,
) -> Result<(Kept, Vec<String>), sqlx::Error> {
    let (mut kept, mut freed) = (Kept::default(), Vec::new());
    if work.ended {
        kept.rescued = rescue(conn, marks, upkeep.backoff).await?;
    }
    if work.due_in == Some(Duration::ZERO) {
        (kept.buried, kept.promoted, freed) = promote(conn, marks, upkeep.max_crashes).await?;
    }
    if kept != Kept::default() {
        work = Work { tick_in: work.tick_in, ..find(conn, marks).await? };
    }
    kept.next_due = work.due_in.into_iter().chain(work.tick_in).min();
    Ok((kept, freed))
}

async fn find(conn: &mut PgConnection, marks: &mut Watermark) -> Result<Work, sqlx::Error> {
    // The last year of four digits is late enough; of what somebody has set to infinity chrono knows nothing.
    const FIND: &str = look!(
        "(SELECT least(run_at, '9999-01-01 00:00+00') FROM greenwave_jobs WHERE state = 1 AND run_at >= $1 ORDER BY run_at LIMIT 1),
         (SELECT least(lease_until, '9999-01-01 00:00+00') FROM greenwave_jobs WHERE state = 2 AND lease_until >= $2 ORDER BY lease_until LIMIT 1),
         (SELECT min(least(next_at, '9999-01-01 00:00+00')) FROM greenwave_jobs_schedules WHERE NOT paused)"
    );
    type At = Option<DateTime<Utc>>;
    type Row = (i64, DateTime<Utc>, Vec<String>, At, At, At);
    let (due_from, leased_from) = marks.times();
    let settled = marks.settled().time;
    let (position, time, holders, due, ends, tick): Row =
        sqlx::query_as(FIND).bind(due_from).bind(leased_from).fetch_one(conn).await?;
    marks.due_from = due.map_or(settled, |due| due.min(settled)).max(due_from);
    marks.leased_from = ends.map_or(settled, |ends| ends.min(settled)).max(leased_from);
    marks.looked(Mark { position, time }, holders);
    let wait = |at: DateTime<Utc>| (at - time).to_std().unwrap_or_default();
    Ok(Work { due_in: due.map(wait), tick_in: tick.map(wait), ended: ends.is_some_and(|ends| ends < time) })
}

/// Answers how many it buried, how many are ready now, and which queues have something new besides.
async fn promote(
    conn: &mut PgConnection,
    marks: &Watermark,
    max_crashes: u32,
) -> Result<(usize, usize, Vec<String>), sqlx::Error> {
    const PROMOTE: &str = concat!(
        "WITH due AS (
            SELECT id, crashes >= $1 AS crashed FROM greenwave_jobs
            WHERE state = 1 AND run_at >= $2 AND run_at <= now()
            ORDER BY run_at LIMIT $3 FOR UPDATE SKIP LOCKED),
        ready AS (
            UPDATE greenwave_jobs SET state = 0, position = nextval('greenwave_jobs_position')
            WHERE id = ANY(ARRAY(SELECT id FROM due WHERE NOT crashed)) RETURNING id),
        buried AS (
            DELETE FROM greenwave_jobs j WHERE id = ANY(ARRAY(SELECT id FROM due WHERE crashed))
            RETURNING j.*, $4::text AS reason),
        dead AS (",
        buried!("failures", "errors"),
        ")
        SELECT (SELECT count(*) FROM ready), ARRAY(SELECT id FROM buried), ARRAY(SELECT id FROM buried WHERE awaited)"
    );
    let mut tx = conn.begin().await?;
    let (ready, buried, awaited): (i64, Vec<i64>, Vec<i64>) = sqlx::query_as(PROMOTE)
        .bind(i32::try_from(max_crashes).unwrap_or(i32::MAX))
        .bind(marks.due_from)
        .bind(MAINTENANCE_BATCH)
        .bind(DeadReason::Crashed.code())
        .fetch_one(&mut *tx)
        .await?;
    let freed = workflow::died(&mut tx, &awaited).await?;
    tx.commit().await?;
    Ok((buried.len(), usize::try_from(ready).unwrap_or(0), freed))
}

async fn rescue(conn: &mut PgConnection, marks: &Watermark, backoff: Backoff) -> Result<usize, sqlx::Error> {
    // The lease id stays: if the old worker lives and settles the job before another takes it, that counts.
    const RESCUE: &str = concat!(
        "UPDATE greenwave_jobs j SET state = 1, lease_until = NULL, crashes = j.crashes + 1,
            run_at = clock_timestamp() + least($3::float8 * power(2, least(j.crashes, 30)), $4::float8)
                * (0.5 + random() / 2) * interval '1 millisecond',
            errors = ",
        appended!("j", "$2::text"),
        " WHERE id = ANY(ARRAY(
            SELECT id FROM greenwave_jobs
            WHERE state = 2 AND lease_until >= $5 AND lease_until < now()
            ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED))"
    );
    let Backoff { base, max } = backoff;
    let done = sqlx::query(RESCUE)
        .bind(MAINTENANCE_BATCH)
        .bind(LEASE_ENDED)
        .bind(base.as_secs_f64() * 1000.0)
        .bind(max.as_secs_f64() * 1000.0)
        .bind(marks.leased_from)
        .execute(conn)
        .await?;
    Ok(super::settle::count(done))
}
