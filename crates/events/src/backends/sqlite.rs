mod store;

use std::{
    cell::Cell,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior::Immediate, params};
use tokio::{sync::Mutex, task::spawn_blocking};

use super::{Backend, Counted};
use crate::{
    BoxError, Bus, Error, Event, EventContext, EventId, SubscriptionConfig,
    outbox::Outgoing,
    subscription::{Delivery, Failure, Handler, Subscription},
};

/// How long to wait for another connection's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest pause between two tries for the lock.
const MAX_PAUSE: Duration = Duration::from_micros(500);

/// A bus in SQLite: `Bus<Sqlite>`.
#[derive(Clone)]
pub struct Sqlite {
    /// One suffices: SQLite has one writer at a time, and the bus hardly ever only reads.
    connection: Arc<Mutex<Connection>>,
}

type InTx = dyn Fn(&Transaction<'_>, Delivery) -> Result<(), Failure> + Send + Sync;

impl Backend for Sqlite {}

impl Bus<Sqlite> {
    /// A bus in the SQLite database at `path`, over a connection of its own.
    ///
    /// The database is created when it is absent, and put into WAL mode, which lets readers and the writer pass one
    /// another. Commits of the bus survive a crash of the process; a power loss may undo the last ones, whole
    /// (`synchronous = NORMAL`).
    ///
    /// It blocks while it opens the file: as a rule for no time, for at most some seconds while another process has
    /// locked it.
    pub fn sqlite(path: impl AsRef<Path>) -> Result<Bus<Sqlite>, Error> {
        let connection = open(path.as_ref()).map_err(Error::store("open the database"))?;
        Ok(Bus::new(Sqlite { connection: Arc::new(Mutex::new(connection)) }))
    }

    /// Publishes `event` in the transaction that `conn` is in: when that commits, the event will be delivered, and when
    /// it does not, nobody ever hears of it. Call [`wake`](Bus::wake) after the commit.
    ///
    /// `conn` is any connection to the bus's database; a `rusqlite::Transaction` passes for one. Without a transaction,
    /// the event is committed by itself.
    pub fn publish<E: Event>(&self, conn: &Connection, event: &E) -> Result<EventId, Error> {
        let Outgoing { id, event, version, payload } = Outgoing::new(event)?;
        conn.prepare_cached(
            "INSERT INTO greenwave_event_outbox (id, event, version, payload) VALUES (?1, ?2, ?3, ?4)",
        )
        .and_then(|mut insert| insert.execute(params![id.to_string(), event, version, payload]))
        .map_err(Error::store("publish an event"))?;
        Ok(id)
    }

    /// Handles each `E` in a transaction that also completes the delivery: its effects in this database happen exactly
    /// once, however often the event is delivered.
    ///
    /// The handler runs on a blocking thread and holds the database's write lock meanwhile: keep it short. Effects
    /// elsewhere (a mail, a call) still happen at least once. Durability, retries and dead letters are as with
    /// [`subscribe`](Bus::subscribe).
    ///
    /// ```
    /// # use greenwave_events::{Bus, Event, Sqlite};
    /// # use rusqlite::Transaction;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderCreated { order_id: i64 }
    /// # impl Event for OrderCreated { const NAME: &'static str = "order-created"; }
    /// # fn example(events: &Bus<Sqlite>) {
    /// events.subscribe_in_tx("notification", |tx: &Transaction<'_>, order: OrderCreated| {
    ///     tx.execute("INSERT INTO notification (order_id) VALUES (?1)", [order.order_id])?;
    ///     Ok(())
    /// });
    /// # }
    /// ```
    pub fn subscribe_in_tx<E, F>(&self, name: impl Into<String>, handler: F)
    where
        E: Event,
        F: Fn(&Transaction<'_>, E) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let config = self.config().subscription.clone();
        self.subscribe_in_tx_with(name, config, move |tx: &Transaction<'_>, event, _: EventContext| {
            handler(tx, event)
        });
    }

    /// As [`subscribe_in_tx`](Bus::subscribe_in_tx), with settings of its own and the event's context.
    pub fn subscribe_in_tx_with<E, F>(&self, name: impl Into<String>, config: SubscriptionConfig, handler: F)
    where
        E: Event,
        F: Fn(&Transaction<'_>, E, EventContext) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let handler: Arc<InTx> = Arc::new(move |tx: &Transaction<'_>, delivery: Delivery| {
            let event = delivery.decode::<E>()?;
            handler(tx, event, delivery.context()).map_err(Failure::Temporary)
        });
        self.add(Subscription {
            name: name.into(),
            event: E::NAME.to_owned(),
            config,
            handler: Handler::InTx(handler),
        });
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_handler(Some(wait_for_lock))?;
    // Of several that turn WAL on at once SQLite refuses all but one, without asking the busy handler.
    let began = Instant::now();
    while let Err(error) = connection.pragma_update(None, "journal_mode", "WAL") {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || began.elapsed() > BUSY_TIMEOUT {
            return Err(error);
        }
        thread::sleep(MAX_PAUSE);
    }
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// SQLite's own busy timeout sleeps for up to 100 ms between tries. Against a writer that commits without pause it would
/// starve, and with 5 ms some calls still do; half a millisecond meets the moment between two commits.
fn wait_for_lock(tries: i32) -> bool {
    thread_local! {
        /// When this thread's wait began: it waits for one lock at a time.
        static BEGAN: Cell<Instant> = Cell::new(Instant::now());
    }
    if tries == 0 {
        BEGAN.set(Instant::now());
    }
    if BEGAN.get().elapsed() >= BUSY_TIMEOUT {
        return false;
    }
    thread::sleep(Duration::from_micros(100 << tries.clamp(0, 6)).min(MAX_PAUSE));
    true
}

impl Sqlite {
    /// Does the work on a blocking thread, when the connection is free.
    async fn with<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let mut connection = self.connection.clone().lock_owned().await;
        match spawn_blocking(move || work(&mut connection)).await {
            Ok(done) => done.map_err(Error::store(doing)),
            Err(error) => Err(Error::store(doing)(error)),
        }
    }

    /// The same in one transaction, which holds the write lock from its beginning.
    async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.with(doing, |connection| {
            let tx = connection.transaction_with_behavior(Immediate)?;
            let done = work(&tx)?;
            tx.commit()?;
            Ok(done)
        })
        .await
    }

    /// Runs a statement of the parameters (id, lease, attempts) for each; answers with the ids it touched.
    async fn each(
        &self,
        doing: &'static str,
        sql: &'static str,
        deliveries: &[Counted],
    ) -> Result<Vec<i64>, Error> {
        let deliveries = deliveries.to_vec();
        self.write(doing, move |tx| {
            let mut statement = tx.prepare_cached(sql)?;
            let mut touched = Vec::new();
            for ((id, lease), attempts) in deliveries {
                if statement.execute(params![id, lease, attempts])? > 0 {
                    touched.push(id);
                }
            }
            Ok(touched)
        })
        .await
    }
}
