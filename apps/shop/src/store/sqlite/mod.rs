//! The shop in SQLite.

mod effects;
mod naive;
mod prepare;
mod reads;
mod writes;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use greenwave_db::{query_stats::QueryStats, sqlite::Pool};
use greenwave_events::Bus;
use greenwave_jobs::Queue;
use tokio_util::sync::CancellationToken;

use super::{NO_ORDER_INDEX, ORDER_INDEX, StoreConfig, WITHOUT_NOTIFICATION, bus_config};
use crate::{
    Error,
    effects::{OrderCreated, SendWelcomeEmail},
    model::{Order, Product, Status, User},
    request::{NewOrder, NewUser},
    seed::{Progress, SeedSize},
};

/// The shop's database in SQLite.
#[derive(Clone)]
pub struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    pool: Pool,
    naive: bool,
    events: Bus<greenwave_events::Sqlite>,
    jobs: Queue<greenwave_jobs::Sqlite>,
}

impl SqliteStore {
    pub(super) async fn open(path: &Path, config: StoreConfig) -> Result<SqliteStore, Error> {
        let pool = Pool::open(path, config.pool.clone()).map_err(Error::Open)?;
        let StoreConfig { naive, sample_data, .. } = config;
        prepare::run(path, move |db| {
            prepare::tables(db, naive)?;
            if sample_data && prepare::is_empty(db)? {
                prepare::fill(db, SeedSize::SMALL, |_| {})?;
            }
            Ok(())
        })
        .await?;
        let jobs = Queue::sqlite(path)?;
        jobs.migrate().await?;
        let bus = bus_config();
        let events = Bus::sqlite(path)?.with_config(bus);
        events.migrate().await?;
        effects::subscribe(&events);
        // An event finds its subscriptions also when the process that handles it has never run.
        events.register().await?;
        Ok(SqliteStore { inner: Arc::new(Inner { path: path.to_owned(), pool, naive, events, jobs }) })
    }

    pub(super) fn query_stats(&self) -> &QueryStats {
        self.inner.pool.query_stats()
    }

    pub(super) async fn user(&self, id: i64) -> Result<Option<User>, Error> {
        Ok(self.inner.pool.read(move |db| reads::user(db, id)).await?)
    }

    pub(super) async fn product(&self, id: i64) -> Result<Option<Product>, Error> {
        Ok(self.inner.pool.read(move |db| reads::product(db, id)).await?)
    }

    pub(super) async fn order(&self, id: i64) -> Result<Option<Order>, Error> {
        Ok(self.inner.pool.read(move |db| reads::order(db, id)).await?)
    }

    pub(super) async fn order_list(
        &self,
        customer: i64,
        status: Option<Status>,
    ) -> Result<Vec<Order>, Error> {
        let list = if self.inner.naive { naive::order_list } else { reads::order_list };
        Ok(self.inner.pool.read(move |db| list(db, customer, status)).await?)
    }

    pub(super) async fn create_user(&self, new: NewUser) -> Result<User, Error> {
        let Inner { pool, naive, jobs, .. } = &*self.inner;
        let (naive, queue) = (*naive, jobs.clone());
        let user = pool
            .write(move |tx| -> Result<User, Error> {
                let user = writes::user(tx, new.clone())?;
                let email = SendWelcomeEmail::from(&user);
                if naive {
                    effects::send_welcome_email(tx, &email)?;
                } else {
                    queue.push_in(tx, &email)?;
                }
                Ok(user)
            })
            .await?;
        if !naive {
            jobs.wake();
        }
        Ok(user)
    }

    pub(super) async fn create_order(&self, new: NewOrder) -> Result<Order, Error> {
        let Inner { pool, naive, events, .. } = &*self.inner;
        let (naive, bus) = (*naive, events.clone());
        let order = pool
            .write(move |tx| -> Result<Order, Error> {
                let order = writes::order(tx, new.clone())?;
                let event = OrderCreated::from(&order);
                if naive {
                    effects::lower_stock(tx, &event)?;
                    effects::notify(tx, &event)?;
                } else {
                    bus.publish(tx, &event)?;
                }
                Ok(order)
            })
            .await?;
        if !naive {
            events.wake();
        }
        Ok(order)
    }

    pub(super) async fn create_order_index(&self) -> Result<(), Error> {
        self.inner.pool.write(|tx| tx.execute_batch(ORDER_INDEX).map_err(Error::from)).await
    }

    pub(super) async fn drop_order_index(&self) -> Result<(), Error> {
        self.inner.pool.write(|tx| tx.execute_batch(NO_ORDER_INDEX).map_err(Error::from)).await
    }

    pub(super) async fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.inner.pool.read(prepare::is_empty).await?)
    }

    pub(super) async fn seed(
        &self,
        size: SeedSize,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        prepare::run(&self.inner.path, move |db| {
            if !prepare::is_empty(db)? {
                return Err(Error::NotEmpty);
            }
            prepare::fill(db, size, progress)?;
            Ok(())
        })
        .await
    }

    pub(super) fn events(&self) -> &Bus<greenwave_events::Sqlite> {
        &self.inner.events
    }

    pub(super) async fn orders_without_notification(&self, after: i64) -> Result<i64, Error> {
        let count =
            move |db: &rusqlite::Connection| db.query_row(WITHOUT_NOTIFICATION, [after], |row| row.get(0));
        Ok(self.inner.pool.read(count).await?)
    }

    pub(super) async fn run_effects(&self, cancel: CancellationToken) -> Result<(), Error> {
        let Inner { pool, events, jobs, .. } = &*self.inner;
        effects::run(events, jobs, pool, cancel).await
    }
}
