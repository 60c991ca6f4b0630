//! Inspection and its actions.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::settle::{buried, revived};
use super::{Postgres, begin, workflow};
use crate::backends::inspect::{Cancelled, Counted, InspectStore, Looked, MAX_SCAN, Observed, Table};
use crate::dead::{DeadReason, read_errors, time};
use crate::error::postgres;
use crate::inspect::{JobDetails, JobFilter, JobState, JobSummary, json};
use crate::{Error, JobId};

/// Milliseconds since 1970.
macro_rules! ms {
    ($time:literal) => {
        concat!("(extract(epoch FROM ", $time, ") * 1000)::bigint")
    };
}

/// The columns of a summary, in the order in which they are read.
macro_rules! summary {
    (live) => {
        concat!(
            "id, queue, name, state, priority, key, failures, max_attempts, ",
            ms!("created_at"),
            " AS pushed_ms, ",
            ms!("coalesce(lease_until, run_at)"),
            " AS at_ms, NULL::text AS reason, errors -> -1 ->> 'error' AS error"
        )
    };
    (dead) => {
        concat!(
            "id, queue, name, 5::smallint AS state, priority, key, attempts AS failures, max_attempts, ",
            ms!("created_at"),
            " AS pushed_ms, ",
            ms!("died_at"),
            " AS at_ms, reason, errors -> -1 ->> 'error' AS error"
        )
    };
    (done) => {
        concat!(
            "id, queue, name, 4::smallint AS state, NULL::smallint AS priority, key, attempts - 1 AS failures,
            NULL::integer AS max_attempts, ",
            ms!("pushed_at"),
            " AS pushed_ms, ",
            ms!("completed_at"),
            " AS at_ms, NULL::text AS reason, NULL::text AS error"
        )
    };
}

/// Looks at a bounded number of rows from the newest down, of which it answers with those that match.
///
/// The primary key is to be read backwards. Where nothing is known of a new table, the planner takes a range with two
/// ends for a small part of it, and sorts that; so without a first id there is no second end.
macro_rules! look {
    ($columns:expr, $all:literal, $table:literal, $from:literal, $state:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM (SELECT ",
            $all,
            " FROM ",
            $table,
            " WHERE id < $1 AND ",
            $from,
            "
                ORDER BY id DESC LIMIT $8) scanned
            WHERE ($3::text IS NULL OR queue = $3) AND ($4::text IS NULL OR name = $4)
                AND ($5::text IS NULL OR key = $5) AND ",
            $state,
            " ORDER BY id DESC LIMIT $7"
        )
    };
}

/// The last row that a look saw, if there may be more.
macro_rules! floor {
    ($table:literal, $from:literal) => {
        concat!(
            "SELECT id FROM ",
            $table,
            " WHERE id < $1 AND ",
            $from,
            " ORDER BY id DESC OFFSET $3 LIMIT 1"
        )
    };
}

/// Without a first id and with one: the look, and its floor.
macro_rules! looks {
    ($columns:expr, $all:literal, $table:literal, $state:literal) => {
        [
            look!($columns, $all, $table, "$2::bigint IS NOT NULL", $state),
            look!($columns, $all, $table, "id >= $2", $state),
            floor!($table, "$2::bigint IS NOT NULL"),
            floor!($table, "id >= $2"),
        ]
    };
}

const LIVE: [&str; 4] = looks!(summary!(live), "*", "greenwave_jobs", "($6::smallint IS NULL OR state = $6)");
const DEAD: [&str; 4] = looks!(summary!(dead), "*", "greenwave_jobs_dead", "coalesce($6, 5) = 5");
const DONE: [&str; 4] =
    looks!(summary!(done), "*, NULL::text AS key", "greenwave_jobs_done", "coalesce($6, 4) = 4");

impl InspectStore for Postgres {
    async fn look(&self, table: Table, filter: &JobFilter) -> Result<Looked, Error> {
        look(&self.pool, table, filter).await.map_err(postgres)
    }

    async fn job(&self, id: JobId) -> Result<Option<JobDetails>, Error> {
        job(&self.pool, id).await.map_err(postgres)
    }

    async fn cancel(&self, ids: Vec<i64>) -> Result<Vec<Cancelled>, Error> {
        // Rows are locked in the order in which workers lock them.
        const CANCEL: &str = concat!(
            "WITH buried AS (
                DELETE FROM greenwave_jobs WHERE id = ANY(ARRAY(
                    SELECT id FROM greenwave_jobs WHERE id = ANY($1) ORDER BY id FOR UPDATE))
                RETURNING *, $2::text AS reason),
            dead AS (",
            buried!("failures", "errors"),
            ") SELECT id, state = 2, awaited FROM buried"
        );
        let mut tx = begin(&self.pool).await.map_err(postgres)?;
        let cancelled: Vec<(i64, bool, bool)> = sqlx::query_as(CANCEL)
            .bind(ids)
            .bind(DeadReason::Cancelled.code())
            .fetch_all(&mut *tx)
            .await
            .map_err(postgres)?;
        let awaited: Vec<i64> =
            cancelled.iter().filter(|(.., awaited)| *awaited).map(|(id, ..)| *id).collect();
        let freed = workflow::died(&mut tx, &awaited).await.map_err(postgres)?;
        tx.commit().await.map_err(postgres)?;
        self.wakeups.waiters.ended(cancelled.iter().map(|(id, ..)| (*id).into()));
        self.tell(freed);
        Ok(cancelled.into_iter().map(|(id, ran, _)| Cancelled { id: id.into(), ran }).collect())
    }

    async fn revive(&self, ids: Vec<i64>) -> Result<u64, Error> {
        const REVIVE: &str = concat!(
            "WITH revived AS (DELETE FROM greenwave_jobs_dead WHERE id = ANY($1) RETURNING *) ",
            revived!("0", "0"),
            " RETURNING id, awaited"
        );
        let mut tx = begin(&self.pool).await.map_err(postgres)?;
        let revived: Vec<(i64, bool)> =
            sqlx::query_as(REVIVE).bind(ids).fetch_all(&mut *tx).await.map_err(postgres)?;
        let awaited: Vec<i64> = revived.iter().filter(|(_, awaited)| *awaited).map(|(id, _)| *id).collect();
        workflow::revived(&mut tx, &awaited).await.map_err(postgres)?;
        tx.commit().await.map_err(postgres)?;
        Ok(revived.len() as u64)
    }

    async fn discard(&self, ids: Vec<i64>) -> Result<u64, Error> {
        const DISCARD: &str = "
            WITH discarded AS (DELETE FROM greenwave_jobs_dead WHERE id = ANY($1) RETURNING id),
            forgotten AS (
                DELETE FROM greenwave_jobs_dependency
                WHERE before_id IN (TABLE discarded) OR after_id IN (TABLE discarded))
            SELECT count(*) FROM discarded";
        let discarded: i64 =
            sqlx::query_scalar(DISCARD).bind(ids).fetch_one(&self.pool).await.map_err(postgres)?;
        Ok(discarded.unsigned_abs())
    }

    async fn count(&self) -> Result<Vec<Counted>, Error> {
        const COUNT: &str = "
            SELECT queue, name, state, count(*),
                extract(epoch FROM now() - min(run_at) FILTER (WHERE state = 0))::float8
            FROM greenwave_jobs GROUP BY queue, name, state
            UNION ALL
            SELECT queue, name, 5::smallint, count(*), NULL FROM greenwave_jobs_dead GROUP BY queue, name";
        type Row = (String, String, i16, i64, Option<f64>);
        let rows: Vec<Row> = sqlx::query_as(COUNT).fetch_all(&self.pool).await.map_err(postgres)?;
        let counted = |(queue, name, state, jobs, oldest): Row| Counted {
            queue,
            name,
            state: JobState::from_code(state),
            jobs: jobs.unsigned_abs(),
            oldest: oldest.map(age),
        };
        Ok(rows.into_iter().map(counted).collect())
    }
}

/// A clock that is set back makes no negative age.
fn age(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl FromRow<'_, PgRow> for JobSummary {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let reason: Option<String> = row.try_get("reason")?;
        Ok(JobSummary {
            id: row.try_get::<i64, _>("id")?.into(),
            queue: row.try_get("queue")?,
            name: row.try_get("name")?,
            state: JobState::from_code(row.try_get("state")?),
            priority: row
                .try_get::<Option<i16>, _>("priority")?
                .and_then(|priority| priority.try_into().ok()),
            key: row.try_get("key")?,
            failures: row.try_get::<i32, _>("failures")?.unsigned_abs(),
            max_attempts: row.try_get::<Option<i32>, _>("max_attempts")?.map(i32::unsigned_abs),
            pushed_at: time(row.try_get("pushed_ms")?),
            at: time(row.try_get("at_ms")?),
            reason: reason.map(|reason| DeadReason::from_code(&reason)),
            error: row.try_get("error")?,
        })
    }
}

impl FromRow<'_, PgRow> for JobDetails {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let millis = |ms: i64| Duration::from_millis(ms.unsigned_abs());
        let value = |column| Ok::<_, sqlx::Error>(row.try_get::<Option<String>, _>(column)?.map(json));
        Ok(JobDetails {
            summary: JobSummary::from_row(row)?,
            version: row.try_get::<i32, _>("version")?.unsigned_abs(),
            payload: json(row.try_get("payload")?),
            errors: read_errors(&row.try_get::<String, _>("errors")?),
            crashes: row.try_get::<i32, _>("crashes")?.unsigned_abs(),
            progress: value("progress")?,
            result: value("result")?,
            lease: row.try_get("lease_id")?,
            pending: row.try_get::<i32, _>("pending")?.unsigned_abs(),
            awaited: row.try_get("awaited")?,
            timeout: row.try_get::<Option<i64>, _>("timeout_ms")?.map(millis),
            keep: millis(row.try_get("keep_ms")?),
            trace: row.try_get("trace")?,
        })
    }
}

async fn look(pool: &PgPool, table: Table, filter: &JobFilter) -> Result<Looked, sqlx::Error> {
    let [look, look_from, floor, floor_from] = match table {
        Table::Live => LIVE,
        Table::Dead => DEAD,
        Table::Done => DONE,
    };
    let (look, floor) = if filter.from.is_some() { (look_from, floor_from) } else { (look, floor) };
    let from = filter.from.map_or(i64::MIN, JobId::get);
    let below = filter.below();
    let jobs: Vec<JobSummary> = sqlx::query_as(look)
        .bind(below)
        .bind(from)
        .bind(&filter.queue)
        .bind(&filter.name)
        .bind(&filter.key)
        .bind(filter.state.map(JobState::code))
        .bind(i64::try_from(filter.limit).unwrap_or(i64::MAX))
        .bind(MAX_SCAN)
        .fetch_all(pool)
        .await?;
    let floor = match jobs.last() {
        Some(last) if jobs.len() >= filter.limit => Some(last.id.get()),
        _ => {
            let floor = sqlx::query_scalar(floor).bind(below).bind(from).bind(MAX_SCAN - 1);
            floor.fetch_optional(pool).await?
        }
    };
    Ok(Looked { jobs, floor })
}

async fn job(pool: &PgPool, id: JobId) -> Result<Option<JobDetails>, sqlx::Error> {
    const LIVE: &str = concat!(
        "SELECT ",
        summary!(live),
        ", version, payload::text, errors::text, crashes, progress::text, NULL::text AS result, lease_id, pending,
            awaited, timeout_ms, keep_ms, trace FROM greenwave_jobs WHERE id = $1"
    );
    const DEAD: &str = concat!(
        "SELECT ",
        summary!(dead),
        ", version, payload::text, errors::text, 0 AS crashes, progress::text, NULL::text AS result,
            NULL::bigint AS lease_id, 0 AS pending, awaited, timeout_ms, keep_ms, trace
        FROM greenwave_jobs_dead WHERE id = $1"
    );
    const DONE: &str = concat!(
        "SELECT ",
        summary!(done),
        ", version, payload::text, '[]' AS errors, 0 AS crashes, NULL::text AS progress, result::text,
            NULL::bigint AS lease_id, 0 AS pending, false AS awaited, NULL::bigint AS timeout_ms,
            (extract(epoch FROM expires_at - completed_at) * 1000)::bigint AS keep_ms, NULL::text AS trace
        FROM (SELECT *, NULL::text AS key FROM greenwave_jobs_done WHERE id = $1) done"
    );
    for sql in [LIVE, DEAD, DONE] {
        if let Some(job) = sqlx::query_as(sql).bind(id.get()).fetch_optional(pool).await? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// Claims the queues that nobody else observes, and measures them.
pub(super) async fn observe(
    pool: &PgPool,
    holder: i64,
    queues: &[&str],
    hold: Duration,
) -> Result<Vec<Observed>, sqlx::Error> {
    const CLAIM: &str = "
        INSERT INTO greenwave_jobs_observers AS o (queue, holder, until)
        SELECT queue, $2, now() + $3 * interval '1 millisecond' FROM unnest($1::text[]) AS mine (queue)
        WHERE NOT EXISTS (
            SELECT 1 FROM greenwave_jobs_observers other
            WHERE other.queue = mine.queue AND other.holder <> $2 AND other.until >= now())
        ORDER BY queue
        ON CONFLICT (queue) DO UPDATE SET holder = excluded.holder, until = excluded.until
            WHERE o.holder = excluded.holder OR o.until < now()
        RETURNING queue";
    // The head of each priority is the oldest of it; of jobs with keys, which have no such order, ten thousand are asked.
    const MEASURE: &str = "
        SELECT q,
            (SELECT count(*) FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = q)
                + (SELECT count(*) FROM greenwave_jobs WHERE state = 0 AND key IS NOT NULL AND queue = q),
            (SELECT count(*) FROM greenwave_jobs_dead WHERE queue = q),
            extract(epoch FROM now() - least(
                (SELECT min(head.run_at) FROM generate_series(0, 9) AS p, LATERAL (
                    SELECT run_at FROM greenwave_jobs
                    WHERE state = 0 AND key IS NULL AND queue = q AND priority = p::smallint
                    ORDER BY position LIMIT 1) head),
                (SELECT min(run_at) FROM (
                    SELECT run_at FROM greenwave_jobs
                    WHERE state = 0 AND key IS NOT NULL AND queue = q LIMIT 10000) some_keyed)))::float8
        FROM unnest($1::text[]) AS q";
    let claimed: Vec<String> = sqlx::query_scalar(CLAIM)
        .bind(queues)
        .bind(holder)
        .bind(crate::job::millis(hold))
        .fetch_all(pool)
        .await?;
    if claimed.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<(String, i64, i64, Option<f64>)> =
        sqlx::query_as(MEASURE).bind(claimed).fetch_all(pool).await?;
    let observed = |(queue, ready, dead, oldest): (String, i64, i64, Option<f64>)| Observed {
        queue,
        ready: ready.unsigned_abs(),
        dead: dead.unsigned_abs(),
        oldest: oldest.map(age),
    };
    Ok(rows.into_iter().map(observed).collect())
}
