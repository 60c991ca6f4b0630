//! Schedules. A turn is one transaction: it moves the schedule on and pushes its jobs, so each tick runs once.

use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool};

use super::{begin, push};
use crate::Error;
use crate::backends::flows::{Turn, turn_failed};
use crate::error::postgres;
use crate::job::NewJob;
use crate::schedule::{Schedule, ScheduleStatus, ticked};

/// PostgreSQL's clock, in milliseconds since 1970.
const NOW: &str = "SELECT (extract(epoch FROM now()) * 1000)::bigint";

pub(super) async fn put(pool: &PgPool, name: &str, schedule: &Schedule, job: &NewJob) -> Result<bool, Error> {
    // A changed job keeps the next tick, a changed definition does not.
    const PUT: &str = "
        INSERT INTO greenwave_jobs_schedules AS s (name, definition, job, next_at) VALUES ($1, $2, $3, $4)
        ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, job = excluded.job,
            next_at = CASE WHEN s.definition = excluded.definition THEN s.next_at ELSE excluded.next_at END
        WHERE (s.definition, s.job) <> (excluded.definition, excluded.job)";
    let now: i64 = sqlx::query_scalar(NOW).fetch_one(pool).await.map_err(postgres)?;
    let done = sqlx::query(PUT)
        .bind(name)
        .bind(schedule.to_json())
        .bind(job.to_json())
        .bind(timestamp(schedule.after(now)?))
        .execute(pool)
        .await
        .map_err(postgres)?;
    Ok(done.rows_affected() == 1)
}

pub(super) async fn delete(pool: &PgPool, name: &str) -> Result<bool, sqlx::Error> {
    let delete = sqlx::query("DELETE FROM greenwave_jobs_schedules WHERE name = $1").bind(name);
    Ok(delete.execute(pool).await?.rows_affected() == 1)
}

pub(super) async fn list(pool: &PgPool) -> Result<Vec<ScheduleStatus>, sqlx::Error> {
    const LIST: &str = "
        SELECT name, definition, job, next_at, last_at, paused FROM greenwave_jobs_schedules ORDER BY name";
    type Row = (String, String, String, DateTime<Utc>, Option<DateTime<Utc>>, bool);
    let rows: Vec<Row> = sqlx::query_as(LIST).fetch_all(pool).await?;
    let status = |(name, definition, job, next, last, paused): Row| ScheduleStatus {
        next: next.into(),
        last: last.map(Into::into),
        paused,
        ..ScheduleStatus::read(name, definition, &job)
    };
    Ok(rows.into_iter().map(status).collect())
}

pub(super) async fn pause(pool: &PgPool, name: &str, paused: bool) -> Result<bool, Error> {
    const READ: &str = "
        SELECT definition, paused, (extract(epoch FROM now()) * 1000)::bigint
        FROM greenwave_jobs_schedules WHERE name = $1 FOR UPDATE";
    const PAUSE: &str = "
        UPDATE greenwave_jobs_schedules SET paused = $2, next_at = coalesce($3, next_at) WHERE name = $1";
    let mut tx = begin(pool).await.map_err(postgres)?;
    let row: Option<(String, bool, i64)> =
        sqlx::query_as(READ).bind(name).fetch_optional(&mut *tx).await.map_err(postgres)?;
    let Some((definition, was, now)) = row else { return Ok(false) };
    // What passed during a pause is not missed.
    let next = if was && !paused { Some(Schedule::from_json(&definition)?.after(now)?) } else { None };
    let pause = sqlx::query(PAUSE).bind(name).bind(paused).bind(next.map(timestamp));
    pause.execute(&mut *tx).await.map_err(postgres)?;
    tx.commit().await.map_err(postgres)?;
    Ok(true)
}

/// Gives every schedule its turn whose time has come. Answers with the queues that have something new.
pub(super) async fn tick(conn: &mut PgConnection) -> Result<Vec<String>, Error> {
    let mut queues = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    while let Some(turn) = turn(conn, &failed).await? {
        match turn {
            Ok(pushed) => queues.extend(pushed.into_iter().map(str::to_owned)),
            Err(name) => failed.push(name),
        }
    }
    queues.sort_unstable();
    queues.dedup();
    Ok(queues)
}

/// One turn of one schedule: the queues it pushed to, or its name if that failed.
async fn turn(
    conn: &mut PgConnection,
    failed: &[String],
) -> Result<Option<Result<Vec<&'static str>, String>>, Error> {
    const DUE: &str = "
        SELECT name, definition, job, (extract(epoch FROM next_at) * 1000)::bigint,
            (extract(epoch FROM now()) * 1000)::bigint
        FROM greenwave_jobs_schedules WHERE NOT paused AND next_at <= now() AND name <> ALL ($1)
        ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED";
    let mut tx = conn.begin().await.map_err(postgres)?;
    let due: Option<(String, String, String, i64, i64)> =
        sqlx::query_as(DUE).bind(failed).fetch_optional(&mut *tx).await.map_err(postgres)?;
    let Some((name, definition, job, next_at, now)) = due else { return Ok(None) };
    let turn = Turn { name, definition, job, next_at, now };
    match take(&mut tx, &turn).await {
        Ok(queues) => {
            tx.commit().await.map_err(postgres)?;
            Ok(Some(Ok(queues)))
        }
        Err(error) => {
            turn_failed(&turn.name, now, &error);
            tx.rollback().await.map_err(postgres)?;
            Ok(Some(Err(turn.name)))
        }
    }
}

async fn take(conn: &mut PgConnection, turn: &Turn) -> Result<Vec<&'static str>, Error> {
    // By name alone, for its row is locked: a time that somebody set by hand, to the microsecond, equals none of ours.
    const ADVANCE: &str = "
        UPDATE greenwave_jobs_schedules SET next_at = $2, last_at = coalesce($3, last_at) WHERE name = $1";
    const MARK: &str = "
        UPDATE greenwave_jobs j SET scheduled_for = t.at FROM unnest($1::bigint[], $2::timestamptz[]) AS t (id, at)
        WHERE j.id = t.id";
    let ticks = turn.ticks()?;
    sqlx::query(ADVANCE)
        .bind(&turn.name)
        .bind(timestamp(ticks.next))
        .bind(ticks.ticks.last().map(|tick| timestamp(*tick)))
        .execute(&mut *conn)
        .await
        .map_err(postgres)?;
    if ticks.jobs.is_empty() {
        return Ok(Vec::new());
    }
    let pushed = push::push(conn, ticks.jobs.clone()).await?;
    let new = pushed.iter().zip(&ticks.ticks).filter(|(pushed, _)| !pushed.existed);
    let (ids, times): (Vec<i64>, Vec<_>) =
        new.map(|(pushed, tick)| (pushed.id.get(), timestamp(*tick))).unzip();
    sqlx::query(MARK).bind(ids).bind(times).execute(conn).await.map_err(postgres)?;
    ticked(&turn.name, &ticks);
    Ok(ticks.jobs.into_iter().map(|job| job.queue).collect())
}

fn timestamp(unix_ms: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(unix_ms)
}
