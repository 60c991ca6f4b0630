use std::{sync::Arc, time::Duration};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior::Immediate, params};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::{
    super::{Backlog, Counted, DeadLetter, Relayed, Retry, Store, Want, millis, unsigned},
    InTx, Sqlite,
};
use crate::{
    Error, EventId,
    subscription::{Begun, Delivery, Failure, from_millis},
};

const MIGRATIONS: [(i64, &str); 1] =
    [(1, include_str!("../../../migrations/sqlite/0001_outbox_and_deliveries.sql"))];

/// Now, as the tables keep it.
macro_rules! now {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

const BEGIN: &str = "UPDATE greenwave_event_delivery SET attempt = ?3 WHERE id = ?1 AND lease_id = ?2";
const COMPLETE: &str = "DELETE FROM greenwave_event_delivery WHERE id = ?1 AND lease_id = ?2";

impl Store for Sqlite {
    type InTx = Arc<InTx>;

    async fn migrate(&self) -> Result<(), Error> {
        self.write("migrate the tables of events", migrate).await
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        self.with("look for the tables of events", |connection| {
            const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM sqlite_master
                 WHERE type = 'table' AND name = 'greenwave_event_subscription')";
            exists(connection, LOOK)
        })
        .await
    }

    async fn register(&self, pairs: &[(String, String)]) -> Result<(), Error> {
        let pairs = pairs.to_vec();
        self.write("register subscriptions", move |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO greenwave_event_subscription (name, event) VALUES (?1, ?2)",
            )?;
            for (name, event) in pairs {
                insert.execute([name, event])?;
            }
            Ok(())
        })
        .await
    }

    async fn unregister(&self, name: &str) -> Result<u64, Error> {
        let name = name.to_owned();
        self.write("unregister a subscription", move |tx| {
            tx.execute("DELETE FROM greenwave_event_subscription WHERE name = ?1", [&name])?;
            let gone = tx.execute("DELETE FROM greenwave_event_delivery WHERE subscription = ?1", [&name])?;
            Ok(gone as u64)
        })
        .await
    }

    async fn relay(&self, limit: u32) -> Result<Relayed, Error> {
        self.with("relay the outbox", move |connection| {
            // A look costs no lock; the lock is for when there is something to do.
            if !exists(connection, "SELECT EXISTS (SELECT 1 FROM greenwave_event_outbox)")? {
                return Ok(Relayed::default());
            }
            let tx = connection.transaction_with_behavior(Immediate)?;
            let relayed = relay(&tx, limit)?;
            tx.commit()?;
            Ok(relayed)
        })
        .await
    }

    async fn ready_due(&self) -> Result<(), Error> {
        self.with("look for due deliveries", |connection| {
            const LOOK: &str = concat!(
                "SELECT EXISTS (SELECT 1 FROM greenwave_event_delivery WHERE due_at <= ",
                now!(),
                ")"
            );
            if exists(connection, LOOK)? {
                connection.execute(
                    concat!(
                        "UPDATE greenwave_event_delivery SET due_at = NULL, lease_id = NULL
                         WHERE due_at <= ",
                        now!()
                    ),
                    [],
                )?;
            }
            Ok(())
        })
        .await
    }

    async fn claim(&self, wants: &[Want], lease: Duration) -> Result<Vec<Delivery>, Error> {
        let wants: Vec<_> =
            wants.iter().map(|want| (want.subscription.clone(), want.event.clone(), want.count)).collect();
        self.with("take deliveries", move |connection| {
            let mut ready = Vec::new();
            for want in wants {
                let mut look = connection.prepare_cached(
                    "SELECT 1 FROM greenwave_event_delivery
                     WHERE subscription = ?1 AND event = ?2 AND due_at IS NULL LIMIT 1",
                )?;
                if look.exists([&want.0, &want.1])? {
                    ready.push(want);
                }
            }
            if ready.is_empty() {
                return Ok(Vec::new());
            }
            let tx = connection.transaction_with_behavior(Immediate)?;
            let deliveries = claim(&tx, &ready, millis(lease))?;
            tx.commit()?;
            Ok(deliveries)
        })
        .await
    }

    async fn renew(&self, keys: &[(i64, i64)], lease: Duration) -> Result<Vec<i64>, Error> {
        let (keys, lease) = (keys.to_vec(), millis(lease));
        self.write("renew leases", move |tx| {
            let mut renew = tx.prepare_cached(concat!(
                "UPDATE greenwave_event_delivery SET due_at = ?3 + ",
                now!(),
                " WHERE id = ?1 AND lease_id = ?2"
            ))?;
            let mut held = Vec::new();
            for (id, lease_id) in keys {
                if renew.execute([id, lease_id, lease])? > 0 {
                    held.push(id);
                }
            }
            Ok(held)
        })
        .await
    }

    async fn complete(&self, keys: &[(i64, i64)]) -> Result<Vec<i64>, Error> {
        let keys = keys.to_vec();
        self.write("complete deliveries", move |tx| {
            let mut complete = tx.prepare_cached(COMPLETE)?;
            let mut held = Vec::new();
            for (id, lease) in keys {
                if complete.execute([id, lease])? > 0 {
                    held.push(id);
                }
            }
            Ok(held)
        })
        .await
    }

    async fn begin(&self, deliveries: &[Counted]) -> Result<Vec<i64>, Error> {
        self.each("begin attempts", BEGIN, deliveries).await
    }

    async fn release(&self, deliveries: &[Counted]) -> Result<Vec<i64>, Error> {
        const RELEASE: &str = "UPDATE greenwave_event_delivery
             SET due_at = NULL, lease_id = NULL, attempt = ?3 WHERE id = ?1 AND lease_id = ?2";
        self.each("give back deliveries", RELEASE, deliveries).await
    }

    async fn postpone(&self, retries: &[Retry]) -> Result<Vec<i64>, Error> {
        let retries: Vec<_> = retries
            .iter()
            .map(|Retry { key, attempts, delay, error }| {
                (key.0, key.1, millis(*delay), error.clone(), *attempts)
            })
            .collect();
        self.write("postpone deliveries", move |tx| {
            let mut postpone = tx.prepare_cached(concat!(
                "UPDATE greenwave_event_delivery SET lease_id = NULL, error = ?4, attempt = ?5, due_at = ?3 + ",
                now!(),
                " WHERE id = ?1 AND lease_id = ?2"
            ))?;
            let mut held = Vec::new();
            for (id, lease, delay, error, attempts) in retries {
                if postpone.execute(params![id, lease, delay, error, attempts])? > 0 {
                    held.push(id);
                }
            }
            Ok(held)
        })
        .await
    }

    async fn bury(&self, dead: &[((i64, i64), String)]) -> Result<Vec<i64>, Error> {
        let dead = dead.to_vec();
        self.write("store dead letters", move |tx| {
            let mut insert = tx.prepare_cached(
                "INSERT INTO greenwave_event_dead
                     (id, subscription, event, event_id, version, payload, published_at, attempt, error)
                 SELECT id, subscription, event, event_id, version, payload, published_at, attempt, ?3
                 FROM greenwave_event_delivery WHERE id = ?1 AND lease_id = ?2",
            )?;
            let mut delete = tx.prepare_cached("DELETE FROM greenwave_event_delivery WHERE id = ?1")?;
            let mut held = Vec::new();
            for ((id, lease), error) in dead {
                if insert.execute(params![id, lease, error])? > 0 {
                    delete.execute([id])?;
                    held.push(id);
                }
            }
            Ok(held)
        })
        .await
    }

    async fn in_tx(&self, handler: &Arc<InTx>, delivery: Delivery, begun: Begun) -> Result<bool, Failure> {
        let handler = handler.clone();
        let mut connection = self.connection.clone().lock_owned().await;
        let handled = spawn_blocking(move || {
            let failed = |error: rusqlite::Error| {
                Failure::Temporary(Error::store("handle in a transaction")(error).into())
            };
            // By itself, so that it counts even when the handler takes the process down.
            let counted = connection
                .prepare_cached(BEGIN)
                .and_then(|mut begin| begin.execute(params![delivery.id, delivery.lease, delivery.attempt]))
                .map_err(failed)?
                > 0;
            if !counted {
                return Ok(false);
            }
            let tx = connection.transaction_with_behavior(Immediate).map_err(failed)?;
            // First, since nobody can take a delivery over while this transaction has the write lock.
            let held = tx
                .prepare_cached(COMPLETE)
                .and_then(|mut complete| complete.execute([delivery.id, delivery.lease]))
                .map_err(failed)?
                > 0;
            if held {
                begun.set();
                handler(&tx, delivery)?;
                tx.commit().map_err(failed)?;
            }
            Ok(held)
        })
        .await;
        handled.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Failure::Temporary(error.into())),
        })
    }

    async fn dead_letters(&self, subscription: Option<&str>, limit: u32) -> Result<Vec<DeadLetter>, Error> {
        let subscription = subscription.map(str::to_owned);
        self.with("read dead letters", move |connection| {
            connection
                .prepare_cached(
                    "SELECT id, subscription, event, event_id, version, payload, published_at, attempt, error,
                         died_at
                     FROM greenwave_event_dead WHERE ?1 IS NULL OR subscription = ?1
                     ORDER BY died_at DESC, id DESC LIMIT ?2",
                )?
                .query_map(params![subscription, limit], dead_letter)?
                .collect()
        })
        .await
    }

    async fn redeliver(&self, id: i64) -> Result<bool, Error> {
        self.write("redeliver a dead letter", move |tx| {
            let inserted = tx.execute(
                "INSERT INTO greenwave_event_delivery
                     (subscription, event, event_id, version, payload, published_at)
                 SELECT subscription, event, event_id, version, payload, published_at
                 FROM greenwave_event_dead WHERE id = ?1",
                [id],
            )?;
            tx.execute("DELETE FROM greenwave_event_dead WHERE id = ?1", [id])?;
            Ok(inserted > 0)
        })
        .await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        self.with("count the backlog", |connection| {
            connection.query_row(
                "SELECT (SELECT count(*) FROM greenwave_event_outbox),
                     (SELECT count(*) FROM greenwave_event_delivery), (SELECT count(*) FROM greenwave_event_dead)",
                [],
                |row| {
                    let count = |index| row.get(index).map(i64::unsigned_abs);
                    Ok(Backlog { outbox: count(0)?, deliveries: count(1)?, dead: count(2)? })
                },
            )
        })
        .await
    }
}

fn exists(connection: &Connection, sql: &'static str) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
}

fn relay(tx: &Transaction<'_>, limit: u32) -> rusqlite::Result<Relayed> {
    let last: Option<i64> = tx
        .prepare_cached(
            "SELECT max(position) FROM
                 (SELECT position FROM greenwave_event_outbox ORDER BY position LIMIT ?1)",
        )?
        .query_row([limit], |row| row.get(0))?;
    let events = tx
        .prepare_cached(
            "SELECT event, count(*) FROM greenwave_event_outbox WHERE position <= ?1 GROUP BY event",
        )?
        .query_map([last], |row| Ok((row.get(0)?, row.get(1).map(i64::unsigned_abs)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let deliveries = tx
        .prepare_cached(
            "INSERT INTO greenwave_event_delivery
                 (subscription, event, event_id, version, payload, published_at)
             SELECT s.name, o.event, o.id, o.version, o.payload, o.created_at
             FROM greenwave_event_outbox o JOIN greenwave_event_subscription s ON s.event = o.event
             WHERE o.position <= ?1 ORDER BY o.position",
        )?
        .execute([last])?;
    tx.prepare_cached("DELETE FROM greenwave_event_outbox WHERE position <= ?1")?.execute([last])?;
    Ok(Relayed { events, deliveries: deliveries as u64 })
}

fn claim(
    tx: &Transaction<'_>,
    wants: &[(String, String, u32)],
    lease: i64,
) -> rusqlite::Result<Vec<Delivery>> {
    let lease_id: i64 = tx
        .prepare_cached("UPDATE greenwave_event_lease SET last = last + 1 RETURNING last")?
        .query_row([], |row| row.get(0))?;
    let mut claim = tx.prepare_cached(concat!(
        "UPDATE greenwave_event_delivery SET lease_id = ?4, due_at = ?5 + ",
        now!(),
        " WHERE id IN (
             SELECT id FROM greenwave_event_delivery
             WHERE subscription = ?1 AND event = ?2 AND due_at IS NULL ORDER BY published_at, id LIMIT ?3)
         RETURNING id, lease_id, subscription, event, event_id, version, payload, published_at, attempt + 1"
    ))?;
    let mut deliveries = Vec::new();
    for (subscription, event, count) in wants {
        for row in claim.query_map(params![subscription, event, count, lease_id, lease], delivery)? {
            deliveries.push(row?);
        }
    }
    deliveries.sort_unstable_by_key(|delivery| (delivery.published_ms, delivery.id));
    Ok(deliveries)
}

fn delivery(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        id: row.get(0)?,
        lease: row.get(1)?,
        subscription: row.get(2)?,
        event: row.get(3)?,
        event_id: event_id(row, 4)?,
        version: unsigned(row.get(5)?),
        payload: row.get(6)?,
        published_ms: row.get(7)?,
        attempt: unsigned(row.get(8)?),
    })
}

fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        subscription: row.get(1)?,
        event: row.get(2)?,
        event_id: event_id(row, 3)?,
        version: unsigned(row.get(4)?),
        payload: row.get(5)?,
        published_at: from_millis(row.get(6)?),
        attempts: unsigned(row.get(7)?),
        error: row.get(8)?,
        died_at: from_millis(row.get(9)?),
    })
}

fn event_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EventId> {
    let text: String = row.get(column)?;
    Uuid::parse_str(&text).map(EventId::from).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

fn migrate(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute_batch(concat!(
        "CREATE TABLE IF NOT EXISTS greenwave_event_migration (
             version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL DEFAULT (",
        now!(),
        ")) STRICT"
    ))?;
    let applied: Option<i64> = tx
        .query_row("SELECT max(version) FROM greenwave_event_migration", [], |row| row.get(0))
        .optional()?
        .flatten();
    for (version, sql) in MIGRATIONS {
        if Some(version) > applied {
            tx.execute_batch(sql)?;
            tx.execute("INSERT INTO greenwave_event_migration (version) VALUES (?1)", [version])?;
        }
    }
    Ok(())
}
