//! The log and the ranges that are taken of it.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Row};

use super::{
    super::{Aside, Ends, Fate, Names, Relayed, Take, Taken, WINDOW, millis},
    borrowed::Borrowed,
    rows,
};

/// Moves events from the outbox to the log, in the order in which they were published.
///
/// The head's row is locked first, so one relay works at a time, and what it moves becomes visible before anything with
/// a later position does. A transaction that took its place in the outbox early and commits late is simply moved later.
pub(super) async fn relay(pool: &PgPool, limit: u32) -> sqlx::Result<Relayed> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "WITH head AS MATERIALIZED (
             SELECT last FROM greenwave_event_head WHERE EXISTS (SELECT FROM greenwave_event_outbox)
             FOR UPDATE SKIP LOCKED
         ), moved AS (
             DELETE FROM greenwave_event_outbox WHERE position = ANY (ARRAY (
                 SELECT position FROM greenwave_event_outbox WHERE EXISTS (SELECT FROM head)
                 ORDER BY position LIMIT $1))
             RETURNING position, id, event, version, key, payload, created_at
         ), counted AS (
             SELECT count(*) AS moved FROM moved
         ), logged AS (
             INSERT INTO greenwave_event_log (position, id, event, version, key, payload, published_at)
             SELECT (SELECT last FROM head) + row_number() OVER (ORDER BY position),
                 id, event, version, key, payload, created_at
             FROM moved
         ), raised AS (
             UPDATE greenwave_event_head SET last = last + moved FROM counted WHERE moved > 0
         )
         SELECT event, count(*), (SELECT moved FROM counted) FROM moved GROUP BY event",
    )
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    let more = rows.first().is_some_and(|row| row.2 >= i64::from(limit));
    Ok(Relayed {
        events: rows.into_iter().map(|(event, count, _)| (event, count.unsigned_abs())).collect(),
        more,
    })
}

pub(super) async fn ends(pool: &PgPool) -> sqlx::Result<Ends> {
    let (last, first) = sqlx::query_as(
        "SELECT last, coalesce((SELECT min(position) FROM greenwave_event_log), last + 1)
         FROM greenwave_event_head",
    )
    .fetch_one(pool)
    .await?;
    Ok(Ends { last, first })
}

pub(super) async fn look(pool: &PgPool, position: i64) -> sqlx::Result<Option<(i64, i64)>> {
    sqlx::query_as(
        "SELECT position, (extract(epoch FROM logged_at) * 1000)::bigint FROM greenwave_event_log
         WHERE position >= $1 ORDER BY position LIMIT 1",
    )
    .bind(position)
    .fetch_optional(pool)
    .await
}

pub(super) async fn expire(
    pool: &PgPool,
    age: Duration,
    hard_age: Option<Duration>,
    limit: u32,
) -> sqlx::Result<u64> {
    // Positions follow time, so the old ones are the first.
    sqlx::query(
        "WITH oldest AS (
             SELECT position, logged_at FROM greenwave_event_log ORDER BY position LIMIT $3
         ), passed AS (
             SELECT coalesce(min(position), 9223372036854775807) AS position,
                 coalesce(min(held), 9223372036854775807) AS held
             FROM (
                 SELECT position, NULL::bigint AS held FROM greenwave_event_cursor
                 UNION ALL SELECT first - 1, CASE WHEN lease_until > now() THEN first - 1 END
                 FROM greenwave_event_range) taken
         )
         DELETE FROM greenwave_event_log WHERE position = ANY (ARRAY (
             SELECT o.position FROM oldest o, passed p
             WHERE o.logged_at < now() - $1 * interval '1 millisecond' AND o.position <= p.position
                OR o.logged_at < now() - $2 * interval '1 millisecond' AND o.position <= p.held))",
    )
    .bind(millis(age))
    .bind(hard_age.map(millis))
    .bind(i64::from(limit))
    .execute(pool)
    .await
    .map(|done| done.rows_affected())
}

/// Takes a range. The cursor's lock makes the takers of a subscription pass one after another.
const TAKE: &str = "\
    WITH cur AS MATERIALIZED (
        SELECT c.position, h.last FROM greenwave_event_cursor c, greenwave_event_head h
        WHERE c.name = $1 AND c.position < h.last
          AND NOT ($5 AND EXISTS (
              SELECT FROM greenwave_event_range r WHERE r.name = $1 AND r.lease_id <> ALL ($7)))
        FOR UPDATE OF c
    ), span AS MATERIALIZED (
        SELECT position, last, least(last, $6 + greatest(position, coalesce((
            SELECT l.position - 1 FROM greenwave_event_log l WHERE l.position > cur.position
            ORDER BY l.position LIMIT 1), last))) AS upto
        FROM cur
    ), found AS MATERIALIZED (
        SELECT l.*, $5 AND l.key IS NOT NULL AND EXISTS (
            SELECT FROM greenwave_event_delivery d WHERE d.subscription = $1 AND d.key = l.key
              AND hashtextextended(d.key, 0) = hashtextextended(l.key, 0)) AS blocked
        FROM greenwave_event_log l
        WHERE l.position > (SELECT position FROM span) AND l.position <= (SELECT upto FROM span)
          AND l.event = ANY (ARRAY (SELECT event FROM greenwave_event_subscription WHERE name = $1))
        ORDER BY l.position LIMIT $2
    ), stop AS MATERIALIZED (
        SELECT CASE WHEN count(*) < $2 THEN (SELECT upto FROM span) ELSE max(position) END AS upto FROM found
    ), moved AS (
        UPDATE greenwave_event_cursor SET position = stop.upto FROM stop, span WHERE name = $1
    ), behind AS (
        INSERT INTO greenwave_event_delivery
            (subscription, event, event_id, version, key, payload, published_at, position)
        SELECT $1, event, id, version, key, payload, published_at, position FROM found WHERE blocked
    ), range AS (
        INSERT INTO greenwave_event_range (name, first, last, aside, owner, lease_until)
        SELECT $1, span.position + 1, stop.upto, ARRAY (SELECT position FROM found WHERE blocked), $4,
            now() + $3 * interval '1 millisecond'
        FROM span, stop WHERE EXISTS (SELECT FROM found WHERE NOT blocked)
        RETURNING lease_id
    )
    SELECT (SELECT lease_id FROM range) AS lease_id, span.last - stop.upto AS lag, f.position, f.event,
        f.id AS event_id, f.version, f.key, f.payload::text,
        (extract(epoch FROM f.published_at) * 1000)::bigint AS published
    FROM span CROSS JOIN stop LEFT JOIN found f ON NOT f.blocked ORDER BY f.position";

pub(super) async fn take(pool: &PgPool, want: &Take) -> sqlx::Result<Taken> {
    if !want.ordered {
        return take_on(&mut *pool.acquire().await?, want).await;
    }
    // Who has ranges and who waits for a retry must be seen as it is once the cursor is held: in one statement both
    // would be as they were before.
    let mut borrowed = Borrowed::acquire(pool).await?;
    let mut tx = borrowed.begin().await?;
    sqlx::query("SELECT FROM greenwave_event_cursor WHERE name = $1 FOR UPDATE")
        .bind(&*want.subscription)
        .execute(&mut *tx)
        .await?;
    let taken = take_on(&mut tx, want).await?;
    tx.commit().await?;
    Ok(taken)
}

async fn take_on(connection: &mut PgConnection, want: &Take) -> sqlx::Result<Taken> {
    let rows = sqlx::query(TAKE)
        .bind(&*want.subscription)
        .bind(i64::from(want.count))
        .bind(millis(want.lease))
        .bind(want.owner)
        .bind(want.ordered)
        .bind(WINDOW)
        .bind(&want.known)
        .fetch_all(connection)
        .await?;
    let Some(first) = rows.first() else { return Ok(Taken::default()) };
    let lag: i64 = first.try_get("lag")?;
    let lease: Option<i64> = first.try_get("lease_id")?;
    let mut taken =
        Taken { lease: lease.unwrap_or_default(), deliveries: Vec::new(), lag: lag.unsigned_abs() };
    if lease.is_some() {
        let mut names = Names::new(&want.subscription);
        taken.deliveries.reserve(rows.len());
        for row in &rows {
            taken.deliveries.push(rows::ranged(row, taken.lease, &mut names)?);
        }
    }
    Ok(taken)
}

pub(super) async fn renew(pool: &PgPool, ranges: &[(i64, i64)], lease: Duration) -> sqlx::Result<Vec<i64>> {
    let (leases, firsts): (Vec<i64>, Vec<i64>) = ranges.iter().copied().unzip();
    sqlx::query_scalar(
        "UPDATE greenwave_event_range r
         SET lease_until = now() + $3 * interval '1 millisecond', first = greatest(first, n.first_left)
         FROM unnest($1::bigint[], $2::bigint[]) AS n (lease, first_left) WHERE r.lease_id = n.lease
         RETURNING r.lease_id",
    )
    .bind(leases)
    .bind(firsts)
    .bind(millis(lease))
    .fetch_all(pool)
    .await
}

pub(super) async fn complete(pool: &PgPool, leases: &[i64]) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar("DELETE FROM greenwave_event_range WHERE lease_id = ANY ($1) RETURNING lease_id")
        .bind(leases)
        .fetch_all(pool)
        .await
}

pub(super) async fn set_aside(pool: &PgPool, lease: i64, aside: &[Aside]) -> sqlx::Result<bool> {
    let mut delays = Vec::with_capacity(aside.len());
    let mut errors = Vec::with_capacity(aside.len());
    let mut dead = Vec::with_capacity(aside.len());
    for Aside { fate, .. } in aside {
        let (delay, error, died) = match fate {
            Fate::Ready => (None, None, false),
            Fate::Retry(delay, error) => (Some(millis(*delay)), Some(error.as_str()), false),
            Fate::Dead(error) => (None, Some(error.as_str()), true),
        };
        delays.push(delay);
        errors.push(error);
        dead.push(died);
    }
    let held: i64 = sqlx::query_scalar(concat!(
        "WITH held AS MATERIALIZED (
             SELECT name, aside FROM greenwave_event_range WHERE lease_id = $1 FOR UPDATE
         ), range AS (
             UPDATE greenwave_event_range r SET aside = r.aside || $2 FROM held WHERE r.lease_id = $1
         ), gone AS MATERIALIZED (
             SELECT r.name, l.*, a.attempts, a.delay, a.error, a.dead, CASE WHEN a.error IS NULL THEN '[]' ELSE
                 jsonb_build_array(jsonb_build_object('attempt', a.attempts, 'at', ",
        now_ms!(),
        ", 'error', a.error)) END AS errors
             FROM held r, unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::boolean[])
                 AS a (position, attempts, delay, error, dead)
             JOIN greenwave_event_log l USING (position)
             WHERE position <> ALL (r.aside)
         ), retried AS (
             INSERT INTO greenwave_event_delivery (subscription, event, event_id, version, key, payload,
                 published_at, position, attempt, due_at, error, errors)
             SELECT name, event, id, version, key, payload, published_at, position, attempts,
                 now() + delay * interval '1 millisecond', error, errors
             FROM gone WHERE NOT dead ORDER BY position
         ), buried AS (
             INSERT INTO greenwave_event_dead (id, subscription, event, event_id, version, key, payload,
                 published_at, position, attempt, error, errors)
             SELECT nextval('greenwave_event_delivery_id_seq'), name, event, id, version, key, payload,
                 published_at, position, attempts, error, errors
             FROM gone WHERE dead
         )
         SELECT count(*) FROM held"
    ))
    .bind(lease)
    .bind(aside.iter().map(|aside| aside.position).collect::<Vec<_>>())
    .bind(aside.iter().map(|aside| i64::from(aside.attempts)).collect::<Vec<_>>())
    .bind(delays)
    .bind(errors)
    .bind(dead)
    .fetch_one(pool)
    .await?;
    Ok(held > 0)
}

pub(super) async fn split(pool: &PgPool, lease: i64, positions: &[i64]) -> sqlx::Result<bool> {
    let held: i64 = sqlx::query_scalar(
        "WITH gone AS (
             DELETE FROM greenwave_event_range WHERE lease_id = $1 RETURNING name
         ), split AS (
             INSERT INTO greenwave_event_delivery
                 (subscription, event, event_id, version, key, payload, published_at, position)
             SELECT g.name, l.event, l.id, l.version, l.key, l.payload, l.published_at, l.position
             FROM gone g, greenwave_event_log l WHERE l.position = ANY ($2) ORDER BY l.position
         )
         SELECT count(*) FROM gone",
    )
    .bind(lease)
    .bind(positions)
    .fetch_one(pool)
    .await?;
    Ok(held > 0)
}

/// Makes deliveries of what is left of ranges whose processes did not renew them.
pub(super) async fn split_expired(pool: &PgPool) -> sqlx::Result<()> {
    sqlx::query(
        "WITH gone AS (
             DELETE FROM greenwave_event_range WHERE lease_id = ANY (ARRAY (
                 SELECT lease_id FROM greenwave_event_range WHERE lease_until <= now()
                 ORDER BY lease_id LIMIT 10 FOR UPDATE SKIP LOCKED))
             RETURNING *
         )
         INSERT INTO greenwave_event_delivery
             (subscription, event, event_id, version, key, payload, published_at, position)
         SELECT g.name, l.event, l.id, l.version, l.key, l.payload, l.published_at, l.position
         FROM gone g
         JOIN greenwave_event_log l ON l.position BETWEEN g.first AND g.last AND l.position <> ALL (g.aside)
         JOIN greenwave_event_subscription s ON s.name = g.name AND s.event = l.event
         ORDER BY l.position",
    )
    .execute(pool)
    .await
    .map(drop)
}
