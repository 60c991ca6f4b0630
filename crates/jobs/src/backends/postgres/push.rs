//! Storing jobs: one, many, very many.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::postgres::PgArguments;
use sqlx::query::QueryScalar;

use super::unique;
use crate::Error;
use crate::error::postgres;
use crate::job::{NewJob, Pushed, Start};

/// From so many ready jobs on, COPY is faster than the round trip that draws their ids.
const COPY_FROM: usize = 2000;

// clock_timestamp(), not now(): in a long transaction the job's delay begins when it is pushed, and a time that is past
// is now, which the marks of what is due count on.
macro_rules! insert {
    ($from:literal) => {
        concat!(
            "INSERT INTO greenwave_jobs (queue, name, version, payload, priority, max_attempts, timeout_ms, keep_ms,
                awaited, pending, state, run_at, key, trace)
            SELECT queue, name, version, payload::json, priority, max_attempts, timeout_ms, keep_ms, awaited, pending,
                CASE WHEN state = 1 AND at <= clock_timestamp() THEN 0 ELSE state END,
                greatest(at, clock_timestamp()) + delay * interval '1 millisecond', key, trace FROM ",
            $from,
            " RETURNING id"
        )
    };
}

macro_rules! insert_many {
    ($from:literal) => {
        concat!("WITH stored AS (", insert!($from), ") SELECT array_agg(id) FROM stored")
    };
}

const ONE: &str = insert!(
    "(VALUES ($1::text, $2::text, $3::text, $4::text, $5::text, $6::integer, $7::smallint, $8::integer, $9::smallint,
        $10::timestamptz, $11::bigint, $12::bigint, $13::bigint, $14::bool, $15::integer))
    AS pushed (payload, key, trace, queue, name, version, priority, max_attempts, state, at, delay, timeout_ms,
        keep_ms, awaited, pending)"
);

/// Many that differ in payload, key and trace alone. Arrays that are too short stand for no value.
const ALIKE: &str = insert_many!(
    "unnest($1::text[], $2::text[], $3::text[]) AS own (payload, key, trace)
    CROSS JOIN (VALUES ($4::text, $5::text, $6::integer, $7::smallint, $8::integer, $9::smallint,
        $10::timestamptz, $11::bigint, $12::bigint, $13::bigint, $14::bool, $15::integer))
    AS shape (queue, name, version, priority, max_attempts, state, at, delay, timeout_ms, keep_ms, awaited, pending)"
);

const MIXED: &str = insert_many!(
    "unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::smallint[],
        $8::integer[], $9::smallint[], $10::timestamptz[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bool[],
        $15::integer[])
    AS pushed (payload, key, trace, queue, name, version, priority, max_attempts, state, at, delay, timeout_ms,
        keep_ms, awaited, pending)"
);

/// What the jobs of one kind have in common.
#[derive(PartialEq)]
pub(super) struct Shape {
    pub(super) queue: &'static str,
    pub(super) name: &'static str,
    pub(super) version: i32,
    pub(super) priority: i16,
    pub(super) max_attempts: i32,
    pub(super) state: i16,
    pub(super) at: Option<DateTime<Utc>>,
    pub(super) delay: i64,
    pub(super) timeout_ms: Option<i64>,
    pub(super) keep_ms: i64,
    pub(super) awaited: bool,
    pub(super) pending: i32,
}

impl Shape {
    pub(super) fn of(job: &NewJob) -> Self {
        let (state, at, delay, pending) = match job.start {
            Start::In(0) => (0, None, 0, 0),
            Start::In(ms) => (1, None, ms, 0),
            Start::At(ms) => {
                (1, Some(DateTime::from_timestamp_millis(ms).unwrap_or(DateTime::<Utc>::MAX_UTC)), 0, 0)
            }
            Start::After(pending) => (3, None, 0, pending),
        };
        Shape {
            queue: job.queue,
            name: job.name,
            version: job.version,
            priority: job.priority,
            max_attempts: job.max_attempts,
            state,
            at,
            delay,
            timeout_ms: job.timeout_ms,
            keep_ms: job.keep_ms,
            awaited: job.awaited,
            pending,
        }
    }
}

/// Stores all or none, and answers in order.
pub(super) async fn push(conn: &mut PgConnection, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
    if jobs.iter().any(|job| job.unique.is_some()) {
        return unique::push(conn, &jobs).await.map_err(postgres);
    }
    let mut ids = store(conn, &jobs).await.map_err(postgres)?;
    // The ids are drawn in the order of insertion, which is that of the arrays.
    ids.sort_unstable();
    Ok(ids.into_iter().map(Pushed::new).collect())
}

async fn store(conn: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<i64>, sqlx::Error> {
    let [first, rest @ ..] = jobs else { return Ok(Vec::new()) };
    let shape = Shape::of(first);
    if rest.is_empty() {
        let query = sqlx::query_scalar(ONE)
            .bind(first.payload.as_str())
            .bind(first.key.as_deref())
            .bind(first.trace.as_deref());
        return Ok(vec![bind_shape(query, &shape).fetch_one(conn).await?]);
    }
    if rest.iter().all(|job| Shape::of(job) == shape) {
        if jobs.len() >= COPY_FROM && shape.state == 0 {
            return copy(conn, jobs, &shape).await;
        }
        let query = sqlx::query_scalar(ALIKE)
            .bind(jobs.iter().map(|job| job.payload.as_str()).collect::<Vec<_>>())
            .bind(texts(jobs, |job| job.key.as_deref()))
            .bind(texts(jobs, |job| job.trace.as_deref()));
        return bind_shape(query, &shape).fetch_one(conn).await;
    }
    mixed(conn, jobs).await
}

/// Nothing at all if no job has one.
pub(super) fn texts<'a>(
    jobs: &'a [NewJob],
    text: impl Fn(&'a NewJob) -> Option<&'a str>,
) -> Vec<Option<&'a str>> {
    let some = jobs.iter().any(|job| text(job).is_some());
    if some { jobs.iter().map(text).collect() } else { Vec::new() }
}

type Query<'q, T> = QueryScalar<'q, sqlx::Postgres, T, PgArguments>;

fn bind_shape<'q, T>(query: Query<'q, T>, shape: &Shape) -> Query<'q, T> {
    query
        .bind(shape.queue)
        .bind(shape.name)
        .bind(shape.version)
        .bind(shape.priority)
        .bind(shape.max_attempts)
        .bind(shape.state)
        .bind(shape.at)
        .bind(shape.delay)
        .bind(shape.timeout_ms)
        .bind(shape.keep_ms)
        .bind(shape.awaited)
        .bind(shape.pending)
}

async fn mixed(conn: &mut PgConnection, jobs: &[NewJob]) -> Result<Vec<i64>, sqlx::Error> {
    let shapes: Vec<Shape> = jobs.iter().map(Shape::of).collect();
    sqlx::query_scalar(MIXED)
        .bind(jobs.iter().map(|job| job.payload.as_str()).collect::<Vec<_>>())
        .bind(texts(jobs, |job| job.key.as_deref()))
        .bind(texts(jobs, |job| job.trace.as_deref()))
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
        .fetch_one(conn)
        .await
}

/// Ready jobs of one shape. Their positions are drawn by COPY itself, under its lock; [`super::watermark`] counts on
/// that. All other columns are given, for a default that is not a constant nor a sequence makes COPY insert singly.
async fn copy(conn: &mut PgConnection, jobs: &[NewJob], shape: &Shape) -> Result<Vec<i64>, sqlx::Error> {
    const DRAW: &str = "
        SELECT (extract(epoch FROM clock_timestamp() - timestamptz '2000-01-01 00:00:00+00') * 1000000)::bigint,
            ARRAY(SELECT nextval(drawn.sequence)
                FROM (SELECT pg_get_serial_sequence('greenwave_jobs', 'id')::regclass AS sequence OFFSET 0) AS drawn,
                    generate_series(1, $1::bigint))";
    const COPY: &str = "
        COPY greenwave_jobs (id, payload, key, trace, queue, name, version, priority, max_attempts, state, run_at,
            created_at, timeout_ms, keep_ms, awaited) FROM STDIN (FORMAT binary)";
    let count = i64::try_from(jobs.len()).unwrap_or(i64::MAX);
    let (now, ids): (i64, Vec<i64>) = sqlx::query_as(DRAW).bind(count).fetch_one(&mut *conn).await?;
    let mut rows = Rows::default();
    for (id, job) in ids.iter().zip(jobs) {
        rows.begin(15);
        rows.field(Some(&id.to_be_bytes()));
        rows.field(Some(job.payload.as_bytes()));
        rows.field(job.key.as_deref().map(str::as_bytes));
        rows.field(job.trace.as_deref().map(str::as_bytes));
        rows.field(Some(shape.queue.as_bytes()));
        rows.field(Some(shape.name.as_bytes()));
        rows.field(Some(&shape.version.to_be_bytes()));
        rows.field(Some(&shape.priority.to_be_bytes()));
        rows.field(Some(&shape.max_attempts.to_be_bytes()));
        rows.field(Some(&shape.state.to_be_bytes()));
        rows.field(Some(&now.to_be_bytes()));
        rows.field(Some(&now.to_be_bytes()));
        rows.field(shape.timeout_ms.map(i64::to_be_bytes).as_ref().map(|bytes| &bytes[..]));
        rows.field(Some(&shape.keep_ms.to_be_bytes()));
        rows.field(Some(&[u8::from(shape.awaited)]));
    }
    let mut copy = conn.copy_in_raw(COPY).await?;
    copy.send(rows.end()).await?;
    copy.finish().await?;
    Ok(ids)
}

/// PostgreSQL's binary format of COPY: a header, rows of fields that tell their length, a trailer.
struct Rows(Vec<u8>);

impl Default for Rows {
    fn default() -> Self {
        Rows(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec())
    }
}

impl Rows {
    fn begin(&mut self, fields: i16) {
        self.0.extend(fields.to_be_bytes());
    }

    fn field(&mut self, value: Option<&[u8]>) {
        // A longer value than PostgreSQL bears is refused by it, by its length.
        let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
        self.0.extend(length.to_be_bytes());
        self.0.extend(value.unwrap_or_default());
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend((-1i16).to_be_bytes());
        self.0
    }
}
