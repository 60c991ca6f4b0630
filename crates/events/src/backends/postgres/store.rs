use std::{sync::Arc, time::Duration};

use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    super::{Backlog, Counted, DeadLetter, Relayed, Retry, Store, Want, millis, unsigned},
    InTx, Postgres,
    borrowed::Borrowed,
};
use crate::{
    Error,
    subscription::{Begun, Delivery, Failure, from_millis},
};

const MIGRATIONS: [(i64, &str); 1] =
    [(1, include_str!("../../../migrations/postgres/0001_outbox_and_deliveries.sql"))];

impl Store for Postgres {
    type InTx = Arc<InTx>;

    async fn migrate(&self) -> Result<(), Error> {
        migrate(&self.pool).await.map_err(Error::store("migrate the tables of events"))
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        sqlx::query_scalar("SELECT to_regclass('greenwave_event_subscription') IS NOT NULL")
            .fetch_one(&self.pool)
            .await
            .map_err(Error::store("look for the tables of events"))
    }

    async fn register(&self, pairs: &[(String, String)]) -> Result<(), Error> {
        let (names, events): (Vec<&str>, Vec<&str>) =
            pairs.iter().map(|(name, event)| (name.as_str(), event.as_str())).unzip();
        sqlx::query(
            "INSERT INTO greenwave_event_subscription (name, event)
             SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING",
        )
        .bind(names)
        .bind(events)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(Error::store("register subscriptions"))
    }

    async fn unregister(&self, name: &str) -> Result<u64, Error> {
        sqlx::query(
            "WITH gone AS (DELETE FROM greenwave_event_subscription WHERE name = $1)
             DELETE FROM greenwave_event_delivery WHERE subscription = $1",
        )
        .bind(name)
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(Error::store("unregister a subscription"))
    }

    async fn relay(&self, limit: u32) -> Result<Relayed, Error> {
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "WITH moved AS (
                 DELETE FROM greenwave_event_outbox WHERE position = ANY (ARRAY (
                     SELECT position FROM greenwave_event_outbox ORDER BY position LIMIT $1
                     FOR UPDATE SKIP LOCKED))
                 RETURNING position, id, event, version, payload, created_at
             ), delivered AS (
                 INSERT INTO greenwave_event_delivery
                     (subscription, event, event_id, version, payload, published_at)
                 SELECT s.name, m.event, m.id, m.version, m.payload, m.created_at
                 FROM moved m JOIN greenwave_event_subscription s ON s.event = m.event
                 ORDER BY m.position
                 RETURNING 1
             )
             SELECT event, count(*), (SELECT count(*) FROM delivered) FROM moved GROUP BY event",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("relay the outbox"))?;
        let deliveries = rows.first().map_or(0, |row| row.2.unsigned_abs());
        let events = rows.into_iter().map(|(event, count, _)| (event, count.unsigned_abs())).collect();
        Ok(Relayed { events, deliveries })
    }

    async fn ready_due(&self) -> Result<(), Error> {
        sqlx::query(
            "UPDATE greenwave_event_delivery SET due_at = NULL, lease_id = NULL WHERE id = ANY (ARRAY (
                 SELECT id FROM greenwave_event_delivery WHERE due_at <= now()
                 ORDER BY due_at LIMIT 1000 FOR UPDATE SKIP LOCKED))",
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(Error::store("look for due deliveries"))
    }

    async fn claim(&self, wants: &[Want], lease: Duration) -> Result<Vec<Delivery>, Error> {
        let rows = sqlx::query(
            "UPDATE greenwave_event_delivery
             SET due_at = now() + $4 * interval '1 millisecond',
                 lease_id = nextval('greenwave_event_lease')
             WHERE id = ANY (ARRAY (
                 SELECT ready.id
                 FROM unnest($1::text[], $2::text[], $3::bigint[]) AS want (subscription, event, count),
                 LATERAL (
                     SELECT d.id FROM greenwave_event_delivery d
                     WHERE d.subscription = want.subscription AND d.event = want.event AND d.due_at IS NULL
                     ORDER BY d.published_at, d.id LIMIT want.count FOR UPDATE SKIP LOCKED
                 ) ready))
             RETURNING id, lease_id, subscription, event, event_id, version, payload::text,
                 (extract(epoch FROM published_at) * 1000)::bigint AS published, attempt + 1 AS attempt",
        )
        .bind(wants.iter().map(|want| want.subscription.as_str()).collect::<Vec<_>>())
        .bind(wants.iter().map(|want| want.event.as_str()).collect::<Vec<_>>())
        .bind(wants.iter().map(|want| i64::from(want.count)).collect::<Vec<_>>())
        .bind(millis(lease))
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("take deliveries"))?;
        let deliveries: Result<Vec<Delivery>, sqlx::Error> = rows.iter().map(delivery).collect();
        let mut deliveries = deliveries.map_err(Error::store("read deliveries"))?;
        deliveries.sort_unstable_by_key(|delivery| (delivery.published_ms, delivery.id));
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
        sqlx::query_scalar(
            "UPDATE greenwave_event_delivery d
             SET due_at = now() + r.delay * interval '1 millisecond', lease_id = NULL, error = r.error,
                 attempt = r.attempts
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[])
                 AS r (id, lease, delay, error, attempts)
             WHERE d.id = ANY ($1) AND d.id = r.id AND d.lease_id = r.lease
             RETURNING d.id",
        )
        .bind(ids)
        .bind(leases)
        .bind(retries.iter().map(|retry| millis(retry.delay)).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| retry.error.as_str()).collect::<Vec<_>>())
        .bind(retries.iter().map(|retry| i64::from(retry.attempts)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("postpone deliveries"))
    }

    async fn bury(&self, dead: &[((i64, i64), String)]) -> Result<Vec<i64>, Error> {
        let (ids, leases): (Vec<i64>, Vec<i64>) = dead.iter().map(|(key, _)| *key).unzip();
        sqlx::query_scalar(
            "WITH gone AS (
                 DELETE FROM greenwave_event_delivery d
                 USING unnest($1::bigint[], $2::bigint[], $3::text[]) AS r (id, lease, error)
                 WHERE d.id = ANY ($1) AND d.id = r.id AND d.lease_id = r.lease
                 RETURNING d.*, r.error AS reason
             )
             INSERT INTO greenwave_event_dead
                 (id, subscription, event, event_id, version, payload, published_at, attempt, error)
             SELECT id, subscription, event, event_id, version, payload, published_at, attempt, reason
             FROM gone RETURNING id",
        )
        .bind(ids)
        .bind(leases)
        .bind(dead.iter().map(|(_, error)| error.as_str()).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(Error::store("store dead letters"))
    }

    async fn in_tx(&self, handler: &Arc<InTx>, delivery: Delivery, begun: Begun) -> Result<bool, Failure> {
        let failed = |doing| move |error: sqlx::Error| Failure::Temporary(Error::store(doing)(error).into());
        let (id, lease) = delivery.key();
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
        handler(&mut tx, delivery).await?;
        // Last, and fenced: whoever took the delivery over meanwhile holds it under another lease.
        let held = sqlx::query("DELETE FROM greenwave_event_delivery WHERE id = $1 AND lease_id = $2")
            .bind(id)
            .bind(lease)
            .execute(&mut *tx)
            .await
            .map_err(failed("complete a delivery"))?
            .rows_affected()
            > 0;
        if held {
            tx.commit().await.map_err(failed("commit a handler's transaction"))?;
        } else {
            tx.rollback().await.map_err(failed("roll back a handler's transaction"))?;
        }
        Ok(held)
    }

    async fn dead_letters(&self, subscription: Option<&str>, limit: u32) -> Result<Vec<DeadLetter>, Error> {
        let rows = sqlx::query(
            "SELECT id, subscription, event, event_id, version, payload::text, attempt, error,
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
        let letters: Result<Vec<DeadLetter>, sqlx::Error> = rows.iter().map(dead_letter).collect();
        letters.map_err(Error::store("read dead letters"))
    }

    async fn redeliver(&self, id: i64) -> Result<bool, Error> {
        sqlx::query(
            "WITH gone AS (DELETE FROM greenwave_event_dead WHERE id = $1 RETURNING *)
             INSERT INTO greenwave_event_delivery
                 (subscription, event, event_id, version, payload, published_at)
             SELECT subscription, event, event_id, version, payload, published_at FROM gone",
        )
        .bind(id)
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(Error::store("redeliver a dead letter"))
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        let (outbox, deliveries, dead): (i64, i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM greenwave_event_outbox),
                 (SELECT count(*) FROM greenwave_event_delivery), (SELECT count(*) FROM greenwave_event_dead)",
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
}

fn delivery(row: &PgRow) -> Result<Delivery, sqlx::Error> {
    Ok(Delivery {
        id: row.try_get("id")?,
        lease: row.try_get("lease_id")?,
        subscription: row.try_get("subscription")?,
        event: row.try_get("event")?,
        event_id: row.try_get::<Uuid, _>("event_id")?.into(),
        version: unsigned(row.try_get("version")?),
        payload: row.try_get("payload")?,
        published_ms: row.try_get("published")?,
        attempt: unsigned(row.try_get("attempt")?),
    })
}

fn dead_letter(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter {
        id: row.try_get("id")?,
        subscription: row.try_get("subscription")?,
        event: row.try_get("event")?,
        event_id: row.try_get::<Uuid, _>("event_id")?.into(),
        version: unsigned(row.try_get("version")?),
        payload: row.try_get("payload")?,
        attempts: unsigned(row.try_get("attempt")?),
        error: row.try_get("error")?,
        published_at: from_millis(row.try_get("published")?),
        died_at: from_millis(row.try_get("died")?),
    })
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
