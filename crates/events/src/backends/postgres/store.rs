use std::{sync::Arc, time::Duration};

use sqlx::{PgPool, Postgres as Sql, QueryBuilder};

use super::{
    super::{
        Aside, Backlog, Burial, Counted, DeadLetter, Ends, Lag, Registration, Relayed, Retry, Store, Take,
        Taken, Want, millis,
    },
    InTx, Postgres,
    borrowed::Borrowed,
    log, rows,
};
use crate::{
    Error,
    subscription::{Begun, Delivery, Failure},
};

const MIGRATIONS: [(i64, &str); 3] = [
    (1, include_str!("../../../migrations/postgres/0001_outbox_and_deliveries.sql")),
    (2, include_str!("../../../migrations/postgres/0002_log.sql")),
    (3, include_str!("../../../migrations/postgres/0003_inbox.sql")),
];

impl Store for Postgres {
    type InTx = Arc<InTx>;

    async fn migrate(&self) -> Result<(), Error> {
        migrate(&self.pool).await.map_err(Error::store("migrate the tables of events"))
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        sqlx::query_scalar("SELECT to_regclass('greenwave_event_log') IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .map_err(Error::store("look for the tables of events"))
    }

    async fn register(&self, new: &[Registration]) -> Result<(), Error> {
        // In one order, so that of two processes none waits for the other.
        sqlx::query(
            "WITH new AS (
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (name, event, after)
             ), cursors AS (
                 INSERT INTO greenwave_event_cursor (name, position)
                 SELECT name, coalesce(min(after), (SELECT last FROM greenwave_event_head)) FROM new GROUP BY name
                 ORDER BY name ON CONFLICT DO NOTHING
             )
             INSERT INTO greenwave_event_subscription (name, event)
             SELECT name, event FROM new ORDER BY name, event ON CONFLICT DO NOTHING",
        )
        .bind(new.iter().map(|new| new.name.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.event.as_str()).collect::<Vec<_>>())
        .bind(new.iter().map(|new| new.after).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(Error::store("register subscriptions"))
    }

    async fn unregister(&self, name: &str) -> Result<u64, Error> {
        sqlx::query_scalar::<_, i64>(
            "WITH waiting AS (
                 SELECT count(*) AS events FROM greenwave_event_log l, greenwave_event_cursor c
                 WHERE c.name = $1 AND l.position > c.position
                   AND l.event = ANY (ARRAY (SELECT event FROM greenwave_event_subscription WHERE name = $1))
             ), gone AS (
                 DELETE FROM greenwave_event_subscription WHERE name = $1
             ), cursor AS (
                 DELETE FROM greenwave_event_cursor WHERE name = $1
             ), ranges AS (
                 DELETE FROM greenwave_event_range WHERE name = $1
             ), deliveries AS (
                 DELETE FROM greenwave_event_delivery WHERE subscription = $1 RETURNING 1
             )
             SELECT (SELECT events FROM waiting) + (SELECT count(*) FROM deliveries)",
        )
        .bind(name)
        .fetch_one(&self.pool)
        .await
        .map(i64::unsigned_abs)
        .map_err(Error::store("unregister a subscription"))
    }

    async fn relay(&self, limit: u32) -> Result<Relayed, Error> {
        log::relay(&self.pool, limit).await.map_err(Error::store("relay the outbox"))
    }

    async fn ends(&self) -> Result<Ends, Error> {
        log::ends(&self.pool).await.map_err(Error::store("look at the log"))
    }

    async fn look(&self, position: i64) -> Result<Option<(i64, i64)>, Error> {
        log::look(&self.pool, position).await.map_err(Error::store("look at the log"))
    }

    async fn seek(&self, name: &str, position: i64) -> Result<bool, Error> {
        sqlx::query("UPDATE greenwave_event_cursor SET position = $2 WHERE name = $1")
            .bind(name)
            .bind(position)
            .execute(&self.pool)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(Error::store("move a subscription"))
    }

    async fn expire(&self, age: Duration, hard_age: Option<Duration>, limit: u32) -> Result<u64, Error> {
        log::expire(&self.pool, age, hard_age, limit).await.map_err(Error::store("delete old events"))
    }

    async fn take(&self, want: &Take) -> Result<Taken, Error> {
        log::take(&self.pool, want).await.map_err(Error::store("take events"))
    }

    async fn renew_ranges(&self, ranges: &[(i64, i64)], lease: Duration) -> Result<Vec<i64>, Error> {
        log::renew(&self.pool, ranges, lease).await.map_err(Error::store("renew leases"))
    }

    async fn complete_ranges(&self, leases: &[i64]) -> Result<Vec<i64>, Error> {
        log::complete(&self.pool, leases).await.map_err(Error::store("complete events"))
    }

    async fn set_aside(&self, lease: i64, aside: &[Aside]) -> Result<bool, Error> {
        log::set_aside(&self.pool, lease, aside).await.map_err(Error::store("set events aside"))
    }

    async fn split(&self, lease: i64, positions: &[i64]) -> Result<bool, Error> {
        log::split(&self.pool, lease, positions).await.map_err(Error::store("give back events"))
    }

    async fn in_tx_range(
        &self,
        lease: i64,
        batches: Vec<(Arc<InTx>, Vec<Delivery>)>,
        begun: Begun,
    ) -> Result<bool, Failure> {
        let mut borrowed =
            Borrowed::acquire(&self.pool).await.map_err(failed("get a connection for a handler"))?;
        let mut tx = borrowed.begin().await.map_err(failed("begin a handler's transaction"))?;
        begun.set();
        for (handler, deliveries) in batches {
            handler(&mut tx, deliveries).await?;
        }
        // Last, and fenced: a range that was taken from us is no more.
        let ended = sqlx::query("DELETE FROM greenwave_event_range WHERE lease_id = $1")
            .bind(lease)
            .execute(&mut *tx)
            .await
            .map_err(failed("complete events"))?;
        finish(tx, ended.rows_affected() > 0).await
    }

    async fn ready_due(&self) -> Result<(), Error> {
        sqlx::query(
            "UPDATE greenwave_event_delivery SET due_at = NULL, lease_id = NULL WHERE id = ANY (ARRAY (
                 SELECT id FROM greenwave_event_delivery WHERE due_at <= now()
                 ORDER BY due_at LIMIT 1000 FOR UPDATE SKIP LOCKED))",
        )
        .execute(&self.pool)
        .await
        .map_err(Error::store("look for due deliveries"))?;
        log::split_expired(&self.pool).await.map_err(Error::store("look for what others left"))
    }

    async fn claim(&self, wants: &[Want], lease: Duration) -> Result<Vec<Delivery>, Error> {
        // Of one key only the first: what comes after it waits until it is gone.
        let rows = sqlx::query(
            "UPDATE greenwave_event_delivery
             SET due_at = now() + $4 * interval '1 millisecond',
                 lease_id = nextval('greenwave_event_lease')
             WHERE id = ANY (ARRAY (
                 SELECT ready.id
                 FROM unnest($1::text[], $2::text[], $3::bigint[], $5::boolean[]) AS want (subscription, event, count, ordered),
                 LATERAL (
                     SELECT d.id FROM greenwave_event_delivery d
                     WHERE d.subscription = want.subscription AND d.event = want.event AND d.due_at IS NULL
                       AND NOT (want.ordered AND d.key IS NOT NULL AND EXISTS (
                           SELECT FROM greenwave_event_delivery e
                           WHERE e.subscription = d.subscription AND e.key = d.key
                             AND hashtextextended(e.key, 0) = hashtextextended(d.key, 0)
                             AND (coalesce(e.position, 0), e.id) < (coalesce(d.position, 0), d.id)))
                     ORDER BY d.published_at, d.id LIMIT want.count FOR UPDATE SKIP LOCKED
                 ) ready))
             RETURNING id, lease_id, subscription, event, event_id, version, key, payload::text, position,
                 (extract(epoch FROM published_at) * 1000)::bigint AS published, attempt + 1 AS attempt",
        )
        .bind(wants.iter().map(|want| &*want.subscription).collect::<Vec<_>>())
        .bind(wants.iter().map(|want| want.event.as_str()).collect::<Vec<_>>())
        .bind(wants.iter().map(|want| i64::from(want.count)).collect::<Vec<_>>())
        .bind(millis(lease))
        .bind(wants.iter().map(|want| want.ordered).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("take deliveries"))?;
        let deliveries: Result<Vec<Delivery>, sqlx::Error> = rows.iter().map(rows::single).collect();
        let mut deliveries = deliveries.map_err(Error::store("read deliveries"))?;
        deliveries.sort_unstable_by_key(|delivery| (delivery.published_ms, delivery.position));
        Ok(deliveries)
    }

    async fn renew(&self, keys: &[(i64, i64)], lease: Duration) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = keys.iter().copied().unzip();
        sqlx::query_scalar(
            "UPDATE greenwave_event_delivery SET due_at = now() + $3 * interval '1 millisecond'
             WHERE id = ANY ($1) AND (id, lease_id) IN (SELECT * FROM unnest($1::bigint[], $2::bigint[]))
             RETURNING id",
        )
        .bind(ids)
        .bind(leases)
        .bind(millis(lease))
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("renew leases"))
    }

    async fn complete(&self, keys: &[(i64, i64)]) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = keys.iter().copied().unzip();
        sqlx::query_scalar(
            "DELETE FROM greenwave_event_delivery
             WHERE id = ANY ($1) AND (id, lease_id) IN (SELECT * FROM unnest($1::bigint[], $2::bigint[]))
             RETURNING id",
        )
        .bind(ids)
        .bind(leases)
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("complete deliveries"))
    }

    async fn begin(&self, deliveries: &[Counted]) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = deliveries.iter().map(|(key, _)| *key).unzip();
        sqlx::query_scalar(
            "UPDATE greenwave_event_delivery d SET attempt = r.attempt
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS r (id, lease, attempt)
             WHERE d.id = ANY ($1) AND d.id = r.id AND d.lease_id = r.lease
             RETURNING d.id",
        )
        .bind(ids)
        .bind(leases)
        .bind(deliveries.iter().map(|(_, attempt)| i64::from(*attempt)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("begin attempts"))
    }

    async fn release(&self, deliveries: &[Counted]) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = deliveries.iter().map(|(key, _)| *key).unzip();
        sqlx::query_scalar(
            "UPDATE greenwave_event_delivery d SET due_at = NULL, lease_id = NULL, attempt = r.attempts
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS r (id, lease, attempts)
             WHERE d.id = ANY ($1) AND d.id = r.id AND d.lease_id = r.lease
             RETURNING d.id",
        )
        .bind(ids)
        .bind(leases)
        .bind(deliveries.iter().map(|(_, attempts)| i64::from(*attempts)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("give back deliveries"))
    }

    async fn postpone(&self, retries: &[Retry]) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = retries.iter().map(|retry| retry.key).unzip();
        sqlx::query_scalar(concat!(
            "UPDATE greenwave_event_delivery d
             SET due_at = now() + r.delay * interval '1 millisecond', lease_id = NULL, error = r.error,
                 attempt = r.attempts, errors = ",
            added_error!(),
            "
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[])
                 AS r (id, lease, delay, error, attempts)
             WHERE d.id = ANY ($1) AND d.id = r.id AND d.lease_id = r.lease
             RETURNING d.id"
        ))
        .bind(ids)
        .bind(leases)
        .bind(retries.iter().map(|retry| millis(retry.delay)).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.error.as_str()).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| i64::from(retry.attempts)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("postpone deliveries"))
    }

    async fn bury(&self, dead: &[Burial]) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = dead.iter().map(|burial| burial.key).unzip();
        sqlx::query_scalar(concat!(
            "WITH gone AS (
                 DELETE FROM greenwave_event_delivery d
                 USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[]) AS r (id, lease, error, attempts)
                 WHERE d.id = ANY ($1) AND d.id = r.id AND d.lease_id = r.lease
                 RETURNING d.id, subscription, event, event_id, version, key, payload, published_at, position,
                     r.attempts, r.error, ",
            added_error!(),
            " AS errors
             )
             INSERT INTO greenwave_event_dead (id, subscription, event, event_id, version, key, payload,
                 published_at, position, attempt, error, errors)
             SELECT id, subscription, event, event_id, version, key, payload, published_at, position, attempts,
                 error, errors
             FROM gone RETURNING id"
        ))
        .bind(ids)
        .bind(leases)
        .bind(dead.iter().map(|burial| burial.error.as_str()).collect::<Vec<_>>())
        .bind(dead.iter().map(|burial| i64::from(burial.attempts)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("store dead letters"))
    }

    async fn in_tx(
        &self,
        handler: &Arc<InTx>,
        (id, lease): (i64, i64),
        delivery: Delivery,
        begun: Begun,
    ) -> Result<bool, Failure> {
        let mut borrowed =
            Borrowed::acquire(&self.pool).await.map_err(failed("get a connection for a handler"))?;
        // By itself, so that it counts even when the handler takes the process down.
        let counted =
            sqlx::query("UPDATE greenwave_event_delivery SET attempt = $3 WHERE id = $1 AND lease_id = $2")
                .bind(id)
                .bind(lease)
                .bind(i64::from(delivery.attempt))
                .execute(borrowed.connection())
                .await
                .map_err(failed("count an attempt"))?
                .rows_affected()
                > 0;
        if !counted {
            return Ok(false);
        }
        let mut tx = borrowed.begin().await.map_err(failed("begin a handler's transaction"))?;
        begun.set();
        handler(&mut tx, vec![delivery]).await?;
        // Last, and fenced: whoever took the delivery over meanwhile holds it under another lease.
        let ended = sqlx::query("DELETE FROM greenwave_event_delivery WHERE id = $1 AND lease_id = $2")
            .bind(id)
            .bind(lease)
            .execute(&mut *tx)
            .await
            .map_err(failed("complete a delivery"))?;
        finish(tx, ended.rows_affected() > 0).await
    }

    async fn dead_letters(&self, subscription: Option<&str>, limit: u32) -> Result<Vec<DeadLetter>, Error> {
        let rows = sqlx::query(
            "SELECT id, subscription, event, event_id, version, payload::text, attempt, error, errors,
                 (extract(epoch FROM published_at) * 1000)::bigint AS published,
                 (extract(epoch FROM died_at) * 1000)::bigint AS died
             FROM greenwave_event_dead WHERE $1::text IS NULL OR subscription = $1
             ORDER BY died_at DESC, id DESC LIMIT $2",
        )
        .bind(subscription)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("read dead letters"))?;
        let letters: Result<Vec<DeadLetter>, sqlx::Error> = rows.iter().map(rows::dead_letter).collect();
        letters.map_err(Error::store("read dead letters"))
    }

    async fn redeliver(&self, id: i64) -> Result<bool, Error> {
        let mut query = QueryBuilder::new("WITH gone AS (DELETE FROM greenwave_event_dead WHERE id = ");
        query.push_bind(id);
        redeliver(&self.pool, query).await.map(|gone| gone > 0)
    }

    async fn redeliver_all(&self, subscription: &str) -> Result<u64, Error> {
        let mut query =
            QueryBuilder::new("WITH gone AS (DELETE FROM greenwave_event_dead WHERE subscription = ");
        query.push_bind(subscription);
        redeliver(&self.pool, query).await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let (outbox, deliveries, dead): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM greenwave_event_outbox),
                 (SELECT count(*) FROM greenwave_event_delivery) + (
                     SELECT count(*) FROM greenwave_event_cursor c
                     JOIN greenwave_event_subscription s USING (name)
                     JOIN greenwave_event_log l ON l.position > c.position AND l.event = s.event
                 ) + (
                     SELECT count(*) FROM greenwave_event_range r
                     JOIN greenwave_event_subscription s USING (name)
                     JOIN greenwave_event_log l ON l.position BETWEEN r.first AND r.last AND l.event = s.event
                         AND l.position <> ALL (r.aside)),
                 (SELECT count(*) FROM greenwave_event_dead)",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(Error::store("count the backlog"))?;
        Ok(Backlog {
            outbox: outbox.unsigned_abs(),
            deliveries: deliveries.unsigned_abs(),
            dead: dead.unsigned_abs(),
        })
    }

    async fn positions(&self) -> Result<Vec<Lag>, Error> {
        let rows = sqlx::query(
            "SELECT c.name, c.position, h.last - c.position AS behind,
                 (SELECT count(*) FROM greenwave_event_range r WHERE r.name = c.name) AS ranges,
                 (SELECT count(*) FROM greenwave_event_delivery d WHERE d.subscription = c.name) AS retrying,
                 (SELECT count(*) FROM greenwave_event_dead d WHERE d.subscription = c.name) AS dead
             FROM greenwave_event_cursor c, greenwave_event_head h ORDER BY c.name",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("read positions"))?;
        let lags: Result<Vec<Lag>, sqlx::Error> = rows.iter().map(rows::lag).collect();
        lags.map_err(Error::store("read positions"))
    }
}

fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Failure {
    move |error| Failure::Temporary(Error::store(doing)(error).into())
}

async fn finish(tx: sqlx::Transaction<'_, Sql>, held: bool) -> Result<bool, Failure> {
    if held {
        tx.commit().await.map_err(failed("commit a handler's transaction"))?;
    } else {
        tx.rollback().await.map_err(failed("roll back a handler's transaction"))?;
    }
    Ok(held)
}

async fn redeliver(pool: &PgPool, mut query: QueryBuilder<Sql>) -> Result<u64, Error> {
    query.push(
        " RETURNING *)
         INSERT INTO greenwave_event_delivery
             (subscription, event, event_id, version, key, payload, published_at, position)
         SELECT subscription, event, event_id, version, key, payload, published_at, position FROM gone
         ORDER BY position, id",
    );
    let done = query.build().execute(pool).await.map_err(Error::store("redeliver dead letters"))?;
    Ok(done.rows_affected())
}

async fn migrate(pool: &PgPool) -> Result<(), sqlx::Error> {
    // `CREATE … IF NOT EXISTS` races with itself, so the lock comes first; the transaction's end frees it.
    const LOCK: i64 = 0x6772_6e77_6576_656e;
    let mut borrowed = Borrowed::acquire(pool).await?;
    let mut tx = borrowed.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *tx).await?;
    sqlx::raw_sql(
        "SET LOCAL client_min_messages = warning;
         CREATE TABLE IF NOT EXISTS greenwave_event_migration (
             version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())",
    )
    .execute(&mut *tx)
    .await?;
    let applied: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM greenwave_event_migration").fetch_one(&mut *tx).await?;
    for (version, sql) in MIGRATIONS {
        if Some(version) > applied {
            sqlx::raw_sql(sql).execute(&mut *tx).await?;
            sqlx::query("INSERT INTO greenwave_event_migration (version) VALUES ($1)")
                .bind(version)
                .execute(&mut *tx)
                .await?;
        }
    }
    tx.commit().await
}
