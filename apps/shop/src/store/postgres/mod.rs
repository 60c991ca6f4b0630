//! The shop in PostgreSQL.

mod batches;
mod effects;
mod migrate;
mod naive;
mod reads;
mod seed;
mod writes;

use std::{sync::Arc, time::Duration};

use greenwave_db::{postgres::Pool, query_stats::QueryStats};
use greenwave_events::Bus;
use greenwave_jobs::Queue;
use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio_util::sync::CancellationToken;

use self::batches::Batches;
use super::{NO_ORDER_INDEX, ORDER_INDEX, StoreConfig, WITHOUT_NOTIFICATION, bus_config};
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

/// How long a statement of a request may run, waiting for locks included. The server keeps to it, so a connection is free
/// again when a request has given up, and goes back without a statement under way.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

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
        let pool = Pool::connect(&with_settings(url, config.naive), config.pool.clone())
            .await
            .map_err(Error::Open)?;
        let background = background_pool(url)?;
        migrate::run(&pool, config.naive).await?;
        let jobs = Queue::postgres(background.clone());
        jobs.migrate().await?;
        let bus = bus_config();
        let events = Bus::postgres(background.clone()).with_config(bus);
        events.migrate().await?;
        effects::subscribe(&events);
        // An event finds its subscriptions also when the process that handles it has never run.
        events.register().await?;
        let batches = (!config.naive).then(|| Batches::new(&pool));
        Ok(PostgresStore { inner: Arc::new(Inner { pool, batches, events, jobs, background }) })
    }

    pub(super) fn query_stats(&self) -> &QueryStats {
        self.inner.pool.query_stats()
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
        if self.inner.batches.is_some() {
            jobs.push_in(&mut tx, &email).await?;
            tx.commit().await?;
            jobs.wake();
        } else {
            effects::send_welcome_email(pool.timed(&mut tx), &email).await?;
            tx.commit().await?;
        }
        Ok(user)
    }

    pub(super) async fn create_order(&self, new: NewOrder) -> Result<Order, Error> {
        let Inner { pool, events, .. } = &*self.inner;
        if self.inner.batches.is_some() {
            let order = writes::order_and_event(pool, &new).await?;
            events.wake();
            return Ok(order);
        }
        let mut tx = pool.begin().await?;
        let order = writes::order(pool.timed(&mut tx), &new).await?;
        let event = [OrderCreated::from(&order)];
        effects::lock_stock(pool.timed(&mut tx), &event).await?;
        effects::lower_stock(pool.timed(&mut tx), &event).await?;
        effects::notify(pool.timed(&mut tx), &event).await?;
        tx.commit().await?;
        Ok(order)
    }

    pub(super) async fn create_order_index(&self) -> Result<(), Error> {
        migrate::alone(&self.inner.pool, ORDER_INDEX).await
    }

    pub(super) async fn drop_order_index(&self) -> Result<(), Error> {
        migrate::alone(&self.inner.pool, NO_ORDER_INDEX).await
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

    pub(super) fn events(&self) -> &Bus<greenwave_events::Postgres> {
        &self.inner.events
    }

    pub(super) async fn orders_without_notification(&self, after: i64) -> Result<i64, Error> {
        Ok(sqlx::query_scalar(WITHOUT_NOTIFICATION).bind(after).fetch_one(&self.inner.pool).await?)
    }

    pub(super) async fn run_effects(&self, cancel: CancellationToken) -> Result<(), Error> {
        effects::run(&self.inner.events, &self.inner.jobs, &self.inner.background, cancel).await
    }
}

/// The URL, with settings for the sessions of requests. They stand first, so that what the URL brings itself is in force.
fn with_settings(url: &str, naive: bool) -> String {
    let mut settings = format!("options=-c%20statement_timeout%3D{}", STATEMENT_TIMEOUT.as_millis());
    if !naive {
        // Each read goes to its rows by a key. A bitmap collects and sorts all that match, which for a list is worth it
        // only as long as the customer has few orders; a plan that is made once does not know the customer.
        settings += "%20-c%20enable_bitmapscan%3Doff";
    }
    match url.split_once('?') {
        Some((place, options)) => format!("{place}?{settings}&{options}"),
        None => format!("{url}?{settings}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str, naive: bool) -> String {
        let options: sqlx::postgres::PgConnectOptions = with_settings(url, naive).parse().unwrap();
        options.get_options().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_limit_that_the_url_brings_is_the_one_in_force() {
        assert_eq!(options("postgres://localhost/shop", true), "-c statement_timeout=5000");
        for url in [
            "postgres://localhost/shop?options=-c%20statement_timeout%3D9s&application_name=x",
            "postgres://localhost/shop?options[statement_timeout]=9s",
        ] {
            let all = "-c statement_timeout=5000 -c enable_bitmapscan=off -c statement_timeout=9s";
            assert_eq!(options(url, false), all);
        }
    }
}
