//! Rows, in PostgreSQL or SQLite, behind one set of functions.

/// The statement of a list from the orders `$newest`.
macro_rules! list {
    ($newest:expr) => {
        concat!(
            "SELECT o.id, o.status, o.total_cents, o.created_at, u.id, u.name, u.email, \
                    i.product_id, i.quantity, i.price_cents \
             FROM (",
            $newest,
            " ORDER BY created_at DESC, id DESC LIMIT 20) o \
             JOIN users u ON u.id = o.customer_id \
             LEFT JOIN order_items i ON i.order_id = o.id \
             ORDER BY o.created_at DESC, o.id DESC, i.product_id"
        )
    };
}

mod postgres;
mod rows;
mod sqlite;

use std::{path::Path, time::Duration};

use greenwave_db::{PoolConfig, query_stats::QueryStats};
use greenwave_events::{BusConfig, SubscriptionConfig};
use tokio_util::sync::CancellationToken;

pub use self::{postgres::PostgresStore, sqlite::SqliteStore};
use crate::{
    DatabaseUrl, Error,
    model::{Order, Product, Status, User},
    request::{NewOrder, NewUser},
    seed::{Progress, SeedSize},
};

/// How long handlers of events and jobs that run may go on after a stop.
const HANDLER_GRACE: Duration = Duration::from_secs(3);

/// How long the events and jobs of a killed process wait before another takes them.
const LEASE: Duration = Duration::from_secs(5);

/// What is ordered within this time is handled together: longer is cheaper, and effects come later.
const BATCH_INTERVAL: Duration = Duration::from_millis(200);

/// How many orders at most, of each handler.
const MAX_BATCH: u32 = 2_000;

/// Says why a start takes its time.
const WAITING: &str = "another process prepares or fills the database: waiting for it, a minute at most";

/// The composite index of the order list; the naive shop drops it.
pub(crate) const ORDER_INDEX: &str = "CREATE INDEX IF NOT EXISTS orders_customer_status_created
    ON orders (customer_id, status, created_at DESC, id DESC)";
pub(crate) const NO_ORDER_INDEX: &str = "DROP INDEX IF EXISTS orders_customer_status_created";

/// How a store works.
#[derive(Clone, Debug, Default)]
pub struct StoreConfig {
    /// The pool that requests share. Default: that of `greenwave-db`.
    pub pool: PoolConfig,
    /// No batches, no composite index, a list by 1 + 2n statements, effects inside the request. Default: false.
    pub naive: bool,
    /// Fills an SQLite database that is empty with a small set when it is opened. Default: false.
    pub sample_data: bool,
}

/// The shop's database. A clone is another handle to the same pools.
#[derive(Clone)]
#[non_exhaustive]
pub enum Store {
    /// PostgreSQL.
    Postgres(PostgresStore),
    /// SQLite.
    Sqlite(SqliteStore),
}

/// Calls the same function of either store.
macro_rules! either {
    ($store:expr, $inner:ident => $call:expr) => {
        match $store {
            Store::Postgres($inner) => $call,
            Store::Sqlite($inner) => $call,
        }
    };
}

impl Store {
    /// Connects, brings the tables up to date (whoever prepared them) and registers who hears of events.
    ///
    /// Any number of processes may do so at once: a lock in the database lets them pass one after the other.
    pub async fn open(url: &str, config: StoreConfig) -> Result<Store, Error> {
        Store::open_at(&url.parse()?, config).await
    }

    /// As [`open`](Store::open), with a URL that is parsed already.
    pub async fn open_at(url: &DatabaseUrl, config: StoreConfig) -> Result<Store, Error> {
        match url {
            DatabaseUrl::Postgres(url) => {
                PostgresStore::open(url.reveal(), config).await.map(Store::Postgres)
            }
            DatabaseUrl::Sqlite(path) => {
                make_folder(path).await?;
                SqliteStore::open(path, config).await.map(Store::Sqlite)
            }
        }
    }

    /// What the statements of requests have cost so far.
    pub fn query_stats(&self) -> &QueryStats {
        either!(self, store => store.query_stats())
    }

    /// A user by id.
    pub async fn user(&self, id: i64) -> Result<Option<User>, Error> {
        either!(self, store => store.user(id).await)
    }

    /// A product by id.
    pub async fn product(&self, id: i64) -> Result<Option<Product>, Error> {
        either!(self, store => store.product(id).await)
    }

    /// An order by id, with its customer and items.
    pub async fn order(&self, id: i64) -> Result<Option<Order>, Error> {
        either!(self, store => store.order(id).await)
    }

    /// The newest 20 orders of a customer, newest first, of one status or of all. One statement, however
    /// long the list; 1 + 2n in a naive store.
    pub async fn order_list(&self, customer: i64, status: Option<Status>) -> Result<Vec<Order>, Error> {
        either!(self, store => store.order_list(customer, status).await)
    }

    /// Stores a user together with the job that greets them.
    pub async fn create_user(&self, new: NewUser) -> Result<User, Error> {
        either!(self, store => store.create_user(new).await)
    }

    /// Stores an order at the prices of now, together with the event that it was made.
    pub async fn create_order(&self, new: NewOrder) -> Result<Order, Error> {
        either!(self, store => store.create_order(new).await)
    }

    /// Creates the composite index of the order list where it is missing.
    pub async fn create_order_index(&self) -> Result<(), Error> {
        either!(self, store => store.create_order_index().await)
    }

    /// Drops the composite index of the order list.
    pub async fn drop_order_index(&self) -> Result<(), Error> {
        either!(self, store => store.drop_order_index().await)
    }

    /// Whether there are neither users nor products nor orders.
    pub async fn is_empty(&self) -> Result<bool, Error> {
        either!(self, store => store.is_empty().await)
    }

    /// Fills an empty database; `progress` hears how far it is.
    pub async fn seed(
        &self,
        size: SeedSize,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        size.check()?;
        either!(self, store => store.seed(size, progress).await)
    }

    /// How many effects of orders are still to come.
    pub async fn waiting_effects(&self) -> Result<u64, Error> {
        let waiting = either!(self, store => store.events().backlog().await)?;
        Ok(waiting.outbox + waiting.deliveries)
    }

    /// How many orders with a later id than this have no notification, or none yet.
    pub async fn orders_without_notification(&self, after: i64) -> Result<i64, Error> {
        either!(self, store => store.orders_without_notification(after).await)
    }

    /// Runs the handlers of events and jobs until cancelled, then lets those that run finish.
    pub async fn run_effects(&self, cancel: CancellationToken) -> Result<(), Error> {
        either!(self, store => store.run_effects(cancel).await)
    }
}

fn bus_config() -> BusConfig {
    BusConfig {
        grace: HANDLER_GRACE,
        lease: LEASE,
        batch_interval: BATCH_INTERVAL,
        subscription: SubscriptionConfig { max_claimed: MAX_BATCH, ..SubscriptionConfig::default() },
        ..BusConfig::default()
    }
}

const WITHOUT_NOTIFICATION: &str = "SELECT count(*) FROM orders o
    WHERE o.id > $1 AND NOT EXISTS (SELECT 1 FROM notifications n WHERE n.order_id = o.id)";

async fn make_folder(file: &Path) -> Result<(), Error> {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => tokio::fs::create_dir_all(folder)
            .await
            .map_err(|source| Error::Folder { path: folder.to_owned(), source }),
        _ => Ok(()),
    }
}
