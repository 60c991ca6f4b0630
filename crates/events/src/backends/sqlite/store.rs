use std::{
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior::Immediate, params};
use tokio::task::spawn_blocking;

use super::{
    super::{
        Aside, Backlog, Burial, Counted, DeadLetter, Ends, Lag, Registration, Relayed, Retry, Store, Take,
        Taken, Want, millis,
    },
    InTx, Sqlite, deliveries, log, rows,
};
use crate::{
    Error,
    subscription::{Begun, Delivery, Failure},
};

const MIGRATIONS: [(i64, &str); 3] = [
    (1, include_str!("../../../migrations/sqlite/0001_outbox_and_deliveries.sql")),
    (2, include_str!("../../../migrations/sqlite/0002_log.sql")),
    (3, include_str!("../../../migrations/sqlite/0003_inbox.sql")),
];

/// How often published events are counted, at most: counting is a write.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

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
                 WHERE type = 'table' AND name = 'greenwave_event_log')";
            exists(connection, LOOK)
        })
        .await
    }

    async fn register(&self, new: &[Registration]) -> Result<(), Error> {
        let new: Vec<_> = new.iter().map(|new| (new.name.clone(), new.event.clone(), new.after)).collect();
        self.write("register subscriptions", move |tx| {
            let last = log::last(tx)?;
            let mut cursor = tx.prepare_cached(
                "INSERT OR IGNORE INTO greenwave_event_cursor (name, position) VALUES (?1, ?2)",
            )?;
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO greenwave_event_subscription (name, event) VALUES (?1, ?2)",
            )?;
            for (name, event, after) in new {
                cursor.execute(params![name, after.unwrap_or(last)])?;
                insert.execute([name, event])?;
            }
            Ok(())
        })
        .await
    }

    async fn unregister(&self, name: &str) -> Result<u64, Error> {
        let name = name.to_owned();
        self.write("unregister a subscription", move |tx| {
            let waiting: i64 = tx.query_row(
                "SELECT count(*) FROM greenwave_event_log l, greenwave_event_cursor c
                 WHERE c.name = ?1 AND l.position > c.position
                   AND l.event IN (SELECT event FROM greenwave_event_subscription WHERE name = ?1)",
                [&name],
                |row| row.get(0),
            )?;
            for table in ["subscription", "cursor", "range"] {
                tx.execute(&format!("DELETE FROM greenwave_event_{table} WHERE name = ?1"), [&name])?;
            }
            let gone = tx.execute("DELETE FROM greenwave_event_delivery WHERE subscription = ?1", [&name])?;
            Ok(waiting.unsigned_abs() + gone as u64)
        })
        .await
    }

    async fn relay(&self, limit: u32) -> Result<Relayed, Error> {
        let counted = Arc::clone(&self.counted);
        self.with("relay the outbox", move |connection| {
            // A look costs no lock; the lock is for when there is something to do.
            let waiting = exists(connection, "SELECT EXISTS (SELECT 1 FROM greenwave_event_outbox)")?;
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL);
            let uncounted = count && log::uncounted(connection)? > 0;
            if !waiting && !uncounted {
                return Ok(Relayed::default());
            }
            let tx = connection.transaction_with_behavior(Immediate)?;
            let more = waiting && log::relay(&tx, limit)?;
            let relayed = log::count(&tx, more)?;
            tx.commit()?;
            *counted = Some(Instant::now());
            Ok(relayed)
        })
        .await
    }

    async fn ends(&self) -> Result<Ends, Error> {
        self.with("look at the log", |connection| log::ends(connection)).await
    }

    async fn look(&self, position: i64) -> Result<Option<(i64, i64)>, Error> {
        self.with("look at the log", move |connection| log::look(connection, position)).await
    }

    async fn seek(&self, name: &str, position: i64) -> Result<bool, Error> {
        let name = name.to_owned();
        self.write("move a subscription", move |tx| {
            let moved = tx.execute(
                "UPDATE greenwave_event_cursor SET position = ?2 WHERE name = ?1",
                params![name, position],
            )?;
            Ok(moved > 0)
        })
        .await
    }

    async fn expire(&self, age: Duration, hard_age: Option<Duration>, limit: u32) -> Result<u64, Error> {
        let (age, hard_age) = (millis(age), hard_age.map(millis));
        self.with("delete old events", move |connection| {
            if !log::has_expired(connection, age.min(hard_age.unwrap_or(age)))? {
                return Ok(0);
            }
            let tx = connection.transaction_with_behavior(Immediate)?;
            let expired = log::expire(&tx, age, hard_age, limit)?;
            tx.commit()?;
            Ok(expired)
        })
        .await
    }

    async fn take(&self, want: &Take) -> Result<Taken, Error> {
        let want = want.clone();
        self.with("take events", move |connection| {
            if !log::is_behind(connection, &want.subscription)? {
                return Ok(Taken::default());
            }
            let tx = connection.transaction_with_behavior(Immediate)?;
            let taken = log::take(&tx, &want)?;
            tx.commit()?;
            Ok(taken)
        })
        .await
    }

    async fn renew_ranges(&self, ranges: &[(i64, i64)], lease: Duration) -> Result<Vec<i64>, Error> {
        let (ranges, lease) = (ranges.to_vec(), millis(lease));
        self.write("renew leases", move |tx| log::renew(tx, &ranges, lease)).await
    }

    async fn complete_ranges(&self, leases: &[i64]) -> Result<Vec<i64>, Error> {
        let leases = leases.to_vec();
        self.write("complete events", move |tx| {
            let mut held = Vec::new();
            for lease in leases {
                if log::end(tx, lease)?.is_some() {
                    held.push(lease);
                }
            }
            Ok(held)
        })
        .await
    }

    async fn set_aside(&self, lease: i64, aside: &[Aside]) -> Result<bool, Error> {
        let aside = aside.to_vec();
        self.write("set events aside", move |tx| log::set_aside(tx, lease, &aside)).await
    }

    async fn split(&self, lease: i64, positions: &[i64]) -> Result<bool, Error> {
        let positions = positions.to_vec();
        self.write("give back events", move |tx| log::split(tx, lease, &positions)).await
    }

    async fn in_tx_range(
        &self,
        lease: i64,
        batches: Vec<(Arc<InTx>, Vec<Delivery>)>,
        begun: Begun,
    ) -> Result<bool, Failure> {
        let mut connection = self.connection.clone().lock_owned().await;
        in_blocking(move || {
            let tx = connection.transaction_with_behavior(Immediate).map_err(failed)?;
            // First, since nobody can take the range over while this transaction has the write lock.
            if log::end(&tx, lease).map_err(failed)?.is_none() {
                return Ok(false);
            }
            begun.set();
            for (handler, deliveries) in batches {
                handler(&tx, deliveries)?;
            }
            tx.commit().map_err(failed)?;
            Ok(true)
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
            if log::any_expired_range(connection)? {
                let tx = connection.transaction_with_behavior(Immediate)?;
                log::split_expired(&tx)?;
                tx.commit()?;
            }
            Ok(())
        })
        .await
    }

    async fn claim(&self, wants: &[Want], lease: Duration) -> Result<Vec<Delivery>, Error> {
        let wants = wants.to_vec();
        self.with("take deliveries", move |connection| {
            let mut ready = Vec::new();
            for want in wants {
                let mut look = connection.prepare_cached(
                    "SELECT 1 FROM greenwave_event_delivery
                     WHERE subscription = ?1 AND event = ?2 AND due_at IS NULL LIMIT 1",
                )?;
                if look.exists([&*want.subscription, &want.event])? {
                    ready.push(want);
                }
            }
            if ready.is_empty() {
                return Ok(Vec::new());
            }
            let tx = connection.transaction_with_behavior(Immediate)?;
            let deliveries = deliveries::claim(&tx, &ready, millis(lease))?;
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
                ", errors = ",
                added_error!("?5", "?4"),
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

    async fn bury(&self, dead: &[Burial]) -> Result<Vec<i64>, Error> {
        let dead: Vec<_> =
            dead.iter().map(|burial| (burial.key, burial.attempts, burial.error.clone())).collect();
        self.write("store dead letters", move |tx| {
            let mut end = tx.prepare_cached(concat!(
                "UPDATE greenwave_event_delivery SET attempt = ?3, error = ?4, errors = ",
                added_error!("?3", "?4"),
                " WHERE id = ?1 AND lease_id = ?2"
            ))?;
            let mut held = Vec::new();
            for ((id, lease), attempts, error) in dead {
                if end.execute(params![id, lease, attempts, error])? > 0 {
                    rows::bury(tx, id)?;
                    held.push(id);
                }
            }
            Ok(held)
        })
        .await
    }

    async fn in_tx(
        &self,
        handler: &Arc<InTx>,
        (id, lease): (i64, i64),
        delivery: Delivery,
        begun: Begun,
    ) -> Result<bool, Failure> {
        let handler = handler.clone();
        let mut connection = self.connection.clone().lock_owned().await;
        in_blocking(move || {
            // By itself, so that it counts even when the handler takes the process down.
            let counted = connection
                .prepare_cached(BEGIN)
                .and_then(|mut begin| begin.execute(params![id, lease, delivery.attempt]))
                .map_err(failed)?
                > 0;
            if !counted {
                return Ok(false);
            }
            let tx = connection.transaction_with_behavior(Immediate).map_err(failed)?;
            // First, since nobody can take a delivery over while this transaction has the write lock.
            let held = tx
                .prepare_cached(COMPLETE)
                .and_then(|mut complete| complete.execute([id, lease]))
                .map_err(failed)?
                > 0;
            if held {
                begun.set();
                handler(&tx, vec![delivery])?;
                tx.commit().map_err(failed)?;
            }
            Ok(held)
        })
        .await
    }

    async fn dead_letters(&self, subscription: Option<&str>, limit: u32) -> Result<Vec<DeadLetter>, Error> {
        let subscription = subscription.map(str::to_owned);
        self.with("read dead letters", move |connection| {
            connection
                .prepare_cached(
                    "SELECT id, subscription, event, event_id, version, payload, published_at, attempt, error,
                         died_at, errors
                     FROM greenwave_event_dead WHERE ?1 IS NULL OR subscription = ?1
                     ORDER BY died_at DESC, id DESC LIMIT ?2",
                )?
                .query_map(params![subscription, limit], rows::dead_letter)?
                .collect()
        })
        .await
    }

    async fn redeliver(&self, id: i64) -> Result<bool, Error> {
        self.write("redeliver a dead letter", move |tx| Ok(deliveries::redeliver(tx, Some(id), None)? > 0))
            .await
    }

    async fn redeliver_all(&self, subscription: &str) -> Result<u64, Error> {
        let subscription = subscription.to_owned();
        self.write("redeliver dead letters", move |tx| deliveries::redeliver(tx, None, Some(&subscription)))
            .await
    }

    async fn backlog(&self) -> Result<Backlog, Error> {
        self.with("count the backlog", |connection| {
            connection.query_row(
                "SELECT (SELECT count(*) FROM greenwave_event_outbox),
                     (SELECT count(*) FROM greenwave_event_delivery) + (
                         SELECT count(*) FROM greenwave_event_cursor c
                         JOIN greenwave_event_subscription s USING (name)
                         JOIN greenwave_event_log l ON l.position > c.position AND l.event = s.event
                     ) + (
                         SELECT count(*) FROM greenwave_event_range r
                         JOIN greenwave_event_subscription s USING (name)
                         JOIN greenwave_event_log l ON l.position BETWEEN r.first AND r.last AND l.event = s.event
                         WHERE l.position NOT IN (SELECT value FROM json_each(r.aside))),
                     (SELECT count(*) FROM greenwave_event_dead)",
                [],
                |row| {
                    let count = |index| row.get(index).map(i64::unsigned_abs);
                    Ok(Backlog { outbox: count(0)?, deliveries: count(1)?, dead: count(2)? })
                },
            )
        })
        .await
    }

    async fn positions(&self) -> Result<Vec<Lag>, Error> {
        self.with("read positions", |connection| {
            let last = log::last(connection)?;
            connection
                .prepare_cached(
                    "SELECT c.name, c.position, ?1 - c.position,
                         (SELECT count(*) FROM greenwave_event_range r WHERE r.name = c.name),
                         (SELECT count(*) FROM greenwave_event_delivery d WHERE d.subscription = c.name),
                         (SELECT count(*) FROM greenwave_event_dead d WHERE d.subscription = c.name)
                     FROM greenwave_event_cursor c ORDER BY c.name",
                )?
                .query_map([last], rows::lag)?
                .collect()
        })
        .await
    }
}

fn failed(error: rusqlite::Error) -> Failure {
    Failure::Temporary(Error::store("handle in a transaction")(error).into())
}

/// Runs a handler on a blocking thread; its panic goes on here.
async fn in_blocking(work: impl FnOnce() -> Result<bool, Failure> + Send + 'static) -> Result<bool, Failure> {
    spawn_blocking(work).await.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Err(Failure::Temporary(error.into())),
    })
}

fn exists(connection: &Connection, sql: &'static str) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.query_row([], |row| row.get(0))
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
