//! The batch: 100 orders with their customers, by a statement for each customer (N+1) and through
//! `greenwave_db::BatchLoader`.
//!
//! Both arms read one database through one pool, first the orders and then their customers. Before, each
//! customer is a statement, one after the other. After, each order asks the loader for its customer, which
//! loads what is asked for at the same time, by all tasks, in one statement.
//!
//! What that saves is round trips, so it saves most on a server. On SQLite a statement is a function call.
//!
//! Before the rounds both arms are asked for the same lists, and a difference between their answers ends the
//! experiment.

use std::collections::HashMap;

use futures_util::future::try_join_all;
use greenwave_db::{BatchConfig, BatchLoader, postgres, sqlite};

use super::{Source, shops};
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

/// How many orders have their customers loaded.
const ORDERS: i64 = 100;

/// How many lists are compared before the rounds.
const COMPARED: u64 = 20;

/// Orders, newest first, with their customers' names.
type List = Vec<(i64, String)>;
type Loader = BatchLoader<i64, String, Error>;

/// The experiment on these orders.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question =
        "How many more lists of 100 orders does a service answer when their customers are loaded in a batch?";
    Experiment::new("batch", "The batch loader", question, move |setup| set_up(setup, source.clone()))
        .unit("lists")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let config = shops::pool_config(setup.concurrency());
    setup.fact("connections", format!("{}, for both arms", config.max_connections));
    let (shop, size) = match &source.database {
        None => {
            let (path, size) = shops::on_sqlite(&setup, &source).await?;
            (Shop::Sqlite(sqlite::Pool::open(path, config)?), size)
        }
        Some(server) => {
            let (url, size) = shops::on_postgres(&setup, &source, server).await?;
            (Shop::Postgres(postgres::Pool::connect(&url, config).await?), size)
        }
    };
    let through = shop.clone();
    let loader = BatchLoader::new("customers", BatchConfig::default(), move |ids| {
        let shop = through.clone();
        async move { shop.customers(ids).await }
    });
    for number in 0..COMPARED {
        let newest = choose(&mut Call::new(setup.seed(), number), size.orders);
        if one_by_one(&shop, newest).await? != in_a_batch(&shop, &loader, newest).await? {
            return Err(format!("the batch changes the list from order {newest} on").into());
        }
    }
    setup.fact("list", format!("{ORDERS} orders from a random one on, each with its customer's name"));
    let before = Workload::over(shop.clone(), move |shop, mut call| async move {
        one_by_one(&shop, choose(&mut call, size.orders)).await?;
        Ok(())
    });
    let after = Workload::over((shop, loader), move |(shop, loader), mut call| async move {
        in_a_batch(&shop, &loader, choose(&mut call, size.orders)).await?;
        Ok(())
    });
    Ok(Arms {
        before: Arm::new("a statement per customer", before),
        after: Arm::new("a batch of customers", after),
    })
}

/// The newest order of a list.
fn choose(call: &mut Call, orders: i64) -> i64 {
    call.pick(ORDERS..=orders)
}

async fn one_by_one(shop: &Shop, newest: i64) -> Result<List, Error> {
    let mut list = Vec::new();
    for (order, customer) in shop.orders(newest).await? {
        list.push((order, shop.customer(customer).await?));
    }
    Ok(list)
}

async fn in_a_batch(shop: &Shop, loader: &Loader, newest: i64) -> Result<List, BoxError> {
    let named = async |(order, customer)| {
        let name = loader.load(customer).await?.ok_or("the customer of an order is missing")?;
        Ok::<_, BoxError>((order, name))
    };
    try_join_all(shop.orders(newest).await?.into_iter().map(named)).await
}

#[derive(Clone)]
enum Shop {
    Sqlite(sqlite::Pool),
    Postgres(postgres::Pool),
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Sqlite(#[from] greenwave_db::Error),
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
}

impl Shop {
    /// Orders and their customers.
    async fn orders(&self, newest: i64) -> Result<Vec<(i64, i64)>, Error> {
        match self {
            Shop::Sqlite(pool) => {
                let read = pool.read(move |db| {
                    db.prepare_cached(
                        "SELECT id, customer_id FROM orders WHERE id <= ?1 ORDER BY id DESC LIMIT ?2",
                    )?
                    .query_map([newest, ORDERS], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
                });
                Ok(read.await?)
            }
            Shop::Postgres(pool) => {
                let statement = "SELECT id, customer_id FROM orders WHERE id <= $1 ORDER BY id DESC LIMIT $2";
                Ok(sqlx::query_as(statement).bind(newest).bind(ORDERS).fetch_all(pool).await?)
            }
        }
    }

    async fn customer(&self, id: i64) -> Result<String, Error> {
        match self {
            Shop::Sqlite(pool) => {
                let read = pool.read(move |db| {
                    db.prepare_cached("SELECT name FROM users WHERE id = ?1")?
                        .query_one([id], |row| row.get(0))
                });
                Ok(read.await?)
            }
            Shop::Postgres(pool) => {
                let statement = "SELECT name FROM users WHERE id = $1";
                Ok(sqlx::query_scalar(statement).bind(id).fetch_one(pool).await?)
            }
        }
    }

    async fn customers(&self, ids: Vec<i64>) -> Result<HashMap<i64, String>, Error> {
        match self {
            Shop::Sqlite(pool) => {
                let read = pool.read(move |db| {
                    // One text for any number of keys, so that it stays prepared.
                    db.prepare_cached(
                        "SELECT id, name FROM users WHERE id IN (SELECT value FROM json_each(?1))",
                    )?
                    .query_map([format!("{ids:?}")], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
                });
                Ok(read.await?)
            }
            Shop::Postgres(pool) => {
                let statement = "SELECT id, name FROM users WHERE id = ANY($1)";
                let rows: Vec<(i64, String)> = sqlx::query_as(statement).bind(ids).fetch_all(pool).await?;
                Ok(rows.into_iter().collect())
            }
        }
    }
}
