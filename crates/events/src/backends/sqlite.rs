/// Now, as the tables keep it.
macro_rules! now {
    () => {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    };
}

/// The errors of a delivery and one more: the first one and the last 19.
macro_rules! added_error {
    ($attempt:literal, $error:literal) => {
        concat!(
            "json_insert(CASE WHEN json_array_length(errors) < 20 THEN errors
                 ELSE json_remove(errors, '$[1]') END,
             '$[#]', json_object('attempt', ",
            $attempt,
            ", 'at', ",
            now!(),
            ", 'error', ",
            $error,
            "))"
        )
    };
}

mod deliveries;
mod log;
mod rows;
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
    /// When this process last counted what was published.
    counted: Arc<std::sync::Mutex<Option<Instant>>>,
}

type InTx = dyn Fn(&Transaction<'_>, Vec<Delivery>) -> Result<(), Failure> + Send + Sync;

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
        Ok(Bus::new(Sqlite { connection: Arc::new(Mutex::new(connection)), counted: Arc::default() }))
    }

    /// Publishes `event` in the transaction that `conn` is in: when that commits, the event will be delivered, and when
    /// it does not, nobody ever hears of it. Call [`wake`](Bus::wake) or [`committed`](Bus::committed) after the commit.
    ///
    /// `conn` is any connection to the bus's database; a `rusqlite::Transaction` passes for one. Without a transaction,
    /// the event is committed by itself.
    pub fn publish<E: Event>(&self, conn: &Connection, event: &E) -> Result<EventId, Error> {
        publish(conn, &Outgoing::new(event)?)
    }

    /// Publishes many events, in their order; else as [`publish`](Bus::publish). Where `conn` is in no transaction,
    /// each is committed by itself.
    pub fn publish_many<'e, E: Event>(
        &self,
        conn: &Connection,
        events: impl IntoIterator<Item = &'e E>,
    ) -> Result<Vec<EventId>, Error> {
        events.into_iter().map(|event| self.publish(conn, event)).collect()
    }

    /// Handles each `E` in a transaction that also completes it: its effects in this database happen exactly once,
    /// however often the event is delivered.
    ///
    /// Events that wait together are handled in one transaction, one call after another, so what an event costs is the
    /// handler's own statements. When one of them fails, all are rolled back and each is handled in a transaction of
    /// its own; what failed then is tried again.
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
        self.add_in_tx::<E>(name.into(), config, move |tx, deliveries| {
            for delivery in deliveries {
                let event = delivery.decode::<E>()?;
                handler(tx, event, delivery.context()).map_err(Failure::Temporary)?;
            }
            Ok(())
        });
    }

    /// Handles the events that wait together, up to [`SubscriptionConfig::max_claimed`], in one call and one
    /// transaction that also completes them: its effects in this database happen exactly once.
    ///
    /// When the handler fails, the events come again one by one, each alone in its slice and its transaction, so that
    /// one that cannot be handled holds up no other. It is for handlers that can do less for many events than for each;
    /// a statement in SQLite costs so little that one for each event is mostly as good
    /// ([`subscribe_in_tx`](Bus::subscribe_in_tx)).
    pub fn subscribe_batch_in_tx<E, F>(&self, name: impl Into<String>, handler: F)
    where
        E: Event,
        F: Fn(&Transaction<'_>, Vec<E>) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let config = self.config().subscription.clone();
        self.subscribe_batch_in_tx_with(name, config, handler);
    }

    /// As [`subscribe_batch_in_tx`](Bus::subscribe_batch_in_tx), with settings of its own.
    pub fn subscribe_batch_in_tx_with<E, F>(
        &self,
        name: impl Into<String>,
        config: SubscriptionConfig,
        handler: F,
    ) where
        E: Event,
        F: Fn(&Transaction<'_>, Vec<E>) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.add_in_tx::<E>(name.into(), config, move |tx, deliveries| {
            let events: Result<Vec<E>, Failure> = deliveries.iter().map(Delivery::decode).collect();
            handler(tx, events?).map_err(Failure::Temporary)
        });
    }

    fn add_in_tx<E: Event>(
        &self,
        name: String,
        config: SubscriptionConfig,
        handler: impl Fn(&Transaction<'_>, Vec<Delivery>) -> Result<(), Failure> + Send + Sync + 'static,
    ) {
        let (event, handler): (_, Arc<InTx>) = (E::NAME.to_owned(), Arc::new(handler));
        self.add(Subscription { name, event, config, handler: Handler::InTx(handler) });
    }
}

/// SQLite commits one transaction after another, so the position in the log is the order of commits already here.
fn publish(conn: &Connection, outgoing: &Outgoing) -> Result<EventId, Error> {
    let Outgoing { id, event, version, key, payload } = outgoing;
    conn.prepare_cached(
        "INSERT INTO greenwave_event_log (id, event, version, key, payload) VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .and_then(|mut insert| insert.execute(params![id.to_string(), event, version, key, payload]))
    .map_err(Error::store("publish an event"))?;
    Ok(*id)
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
