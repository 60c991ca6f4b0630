//! The shop in PostgreSQL.

mod batches;
mod effects;
mod migrate;
mod naive;
mod reads;
mod seed;
mod writes;

use std::{sync::Arc, time::Duration};

use greenwave_db::postgres::Pool;
use greenwave_events::{Bus, BusConfig};
use greenwave_jobs::Queue;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio_util::sync::CancellationToken;

use self::batches::Batches;
use super::{HANDLER_GRACE, LEASE, NO_ORDER_INDEX, ORDER_INDEX, StoreConfig};
use crate::{
    Error,
    effects::{OrderCreated, SendWelcomeEmail},
    model::{Order, Product, Status, User},
    request::{NewOrder, NewUser},
    seed::{Progress, SeedSize},
};

/// Connections of the relay, the event handlers and the worker, apart from those of requests: a flood of requests
/// does not stop effects, nor the other way round.
const BACKGROUND_CONNECTIONS: u32 = 10;

/// The shop's database in PostgreSQL.
#[derive(Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    /// None in a naive store.
    batches: Option<Batches>,
    events: Bus<greenwave_events::Postgres>,
    jobs: Queue<greenwave_jobs::Postgres>,
    background: PgPool,
}

impl PostgresStore {
    pub(super) async fn open(url: &str, config: StoreConfig) -> Result<PostgresStore, Error> {
        let pool = Pool::connect(url, config.pool.clone()).await.map_err(Error::Open)?;
        let background = background_pool(url)?;
        migrate::run(&pool, config.naive).await?;
        let jobs = Queue::postgres(background.clone());
        jobs.migrate().await?;
        let bus = BusConfig { grace: HANDLER_GRACE, lease: LEASE, ..BusConfig::default() };
        let events = Bus::postgres(background.clone()).with_config(bus);
        events.migrate().await?;
        effects::subscribe(&events);
        // An event finds its subscriptions also when the process that handles it has never run.
        events.register().await?;
        let batches = (!config.naive).then(|| Batches::new(&pool));
        Ok(PostgresStore { inner: Arc::new(Inner { pool, batches, events, jobs, background }) })
    }

    pub(super) async fn user(&self, id: i64) -> Result<Option<User>, Error> {
        match &self.inner.batches {
            Some(batches) => Ok(batches.users.load(id).await?),
            None => Ok(reads::users(&self.inner.pool, vec![id]).await?.remove(&id)),
        }
    }

    pub(super) async fn product(&self, id: i64) -> Result<Option<Product>, Error> {
        match &self.inner.batches {
            Some(batches) => Ok(batches.products.load(id).await?),
            None => Ok(reads::products(&self.inner.pool, vec![id]).await?.remove(&id)),
        }
    }

    pub(super) async fn order(&self, id: i64) -> Result<Option<Order>, Error> {
        match &self.inner.batches {
            Some(batches) => Ok(batches.orders.load(id).await?),
            None => Ok(reads::orders(&self.inner.pool, vec![id]).await?.remove(&id)),
        }
    }

    pub(super) async fn order_list(
        &self,
        customer: i64,
        status: Option<Status>,
    ) -> Result<Vec<Order>, Error> {
        match &self.inner.batches {
            Some(_) => Ok(reads::order_list(&self.inner.pool, customer, status).await?),
            None => Ok(naive::order_list(&self.inner.pool, customer, status).await?),
        }
    }

    pub(super) async fn create_user(&self, new: NewUser) -> Result<User, Error> {
        let Inner { pool, jobs, .. } = &*self.inner;
        let mut tx = pool.begin().await?;
        let user = writes::user(pool.timed(&mut tx), new).await?;
        let email = SendWelcomeEmail::from(&user);
        match &self.inner.batches {
            Some(_) => drop(jobs.push_in(&mut tx, &email).await?),
            None => effects::send_welcome_email(pool.timed(&mut tx), &email).await?,
        }
        tx.commit().await?;
        jobs.wake();
        Ok(user)
    }

    pub(super) async fn create_order(&self, new: NewOrder) -> Result<Order, Error> {
        let Inner { pool, events, .. } = &*self.inner;
        let mut tx = pool.begin().await?;
        let order = writes::order(pool.timed(&mut tx), new).await?;
        let event = OrderCreated::from(&order);
        match &self.inner.batches {
            Some(_) => drop(events.publish(&mut tx, &event).await?),
            None => {
                effects::lower_stock(pool.timed(&mut tx), &event).await?;
                effects::notify(pool.timed(&mut tx), &event).await?;
            }
        }
        tx.commit().await?;
        events.wake();
        Ok(order)
    }

    pub(super) async fn create_order_index(&self) -> Result<(), Error> {
        sqlx::query(ORDER_INDEX).execute(&self.inner.pool).await?;
        Ok(())
    }

    pub(super) async fn drop_order_index(&self) -> Result<(), Error> {
        sqlx::query(NO_ORDER_INDEX).execute(&self.inner.pool).await?;
        Ok(())
    }

    pub(super) async fn is_empty(&self) -> Result<bool, Error> {
        Ok(sqlx::query_scalar(seed::IS_EMPTY).fetch_one(&self.inner.pool).await?)
    }

    pub(super) async fn seed(
        &self,
        size: SeedSize,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<(), Error> {
        seed::run(&self.inner.pool, size, progress).await
    }

    pub(super) async fn run_effects(&self, cancel: CancellationToken) -> Result<(), Error> {
        effects::run(&self.inner.events, &self.inner.jobs, &self.inner.background, cancel).await
    }
}

fn background_pool(url: &str) -> Result<PgPool, Error> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    Ok(PgPoolOptions::new()
        .max_connections(BACKGROUND_CONNECTIONS)
        .idle_timeout(Duration::from_secs(30))
        .acquire_timeout(Duration::from_secs(5))
        // A connection that died is found by the statement that fails, and that statement is tried again.
        .test_before_acquire(false)
        .connect_lazy_with(sqlx::ConnectOptions::disable_statement_logging(options)))
}
