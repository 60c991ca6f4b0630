//! What the experiments on the cache read: rows of one shop, through the pools of `greenwave_db`.

use std::future::Future;

use greenwave_db::{postgres, sqlite};
use serde::{Deserialize, Serialize};

use super::{Source, shops};
use crate::{BoxError, Setup};

/// How many orders a turnover is summed over.
pub(super) const SPAN: i64 = 5_000;

/// A customer, as a page shows one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Customer {
    name: String,
    email: String,
}

/// The number of some orders, and their sum in cents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Turnover {
    orders: i64,
    cents: i64,
}

/// A shop to read from.
#[derive(Clone)]
pub(super) struct Rows {
    pub(super) customers: i64,
    pub(super) orders: i64,
    pool: Pool,
}

#[derive(Clone)]
enum Pool {
    Sqlite(sqlite::Pool),
    Postgres(postgres::Pool),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Sqlite(#[from] greenwave_db::Error),
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
}

impl Rows {
    /// Makes the shop, and promises its removal.
    pub(super) async fn new(setup: &Setup, source: &Source) -> Result<Rows, BoxError> {
        let config = shops::pool_config(setup.concurrency());
        setup.fact("connections", format!("{}, for both arms", config.max_connections));
        let (pool, size) = match &source.database {
            None => {
                let (path, size) = shops::on_sqlite(setup, source).await?;
                (Pool::Sqlite(sqlite::Pool::open(path, config)?), size)
            }
            Some(server) => {
                let (url, size) = shops::on_postgres(setup, source, server).await?;
                (Pool::Postgres(postgres::Pool::connect(&url, config).await?), size)
            }
        };
        Ok(Rows { customers: size.users, orders: size.orders, pool })
    }

    pub(super) fn customer(
        &self,
        id: i64,
    ) -> impl Future<Output = Result<Option<Customer>, Error>> + Send + use<> {
        let pool = self.pool.clone();
        async move {
            let row: Option<(String, String)> = match &pool {
                Pool::Sqlite(pool) => {
                    let read = pool.read(move |db| {
                        db.prepare_cached("SELECT name, email FROM users WHERE id = ?1")?
                            .query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?
                            .next()
                            .transpose()
                    });
                    read.await?
                }
                Pool::Postgres(pool) => {
                    let statement = "SELECT name, email FROM users WHERE id = $1";
                    sqlx::query_as(statement).bind(id).fetch_optional(pool).await?
                }
            };
            Ok(row.map(|(name, email)| Customer { name, email }))
        }
    }

    /// The turnover of [`SPAN`] orders after `first`.
    pub(super) fn turnover(
        &self,
        first: i64,
    ) -> impl Future<Output = Result<Option<Turnover>, Error>> + Send + use<> {
        let (pool, last) = (self.pool.clone(), first + SPAN);
        async move {
            let (orders, cents) = match &pool {
                Pool::Sqlite(pool) => {
                    let statement = "SELECT count(*), coalesce(sum(total_cents), 0) FROM orders \
                                     WHERE id > ?1 AND id <= ?2";
                    let read = pool.read(move |db| {
                        db.prepare_cached(statement)?
                            .query_one([first, last], |row| Ok((row.get(0)?, row.get(1)?)))
                    });
                    read.await?
                }
                Pool::Postgres(pool) => {
                    let statement = "SELECT count(*), coalesce(sum(total_cents), 0)::bigint FROM orders \
                                     WHERE id > $1 AND id <= $2";
                    sqlx::query_as(statement).bind(first).bind(last).fetch_one(pool).await?
                }
            };
            Ok(Some(Turnover { orders, cents }))
        }
    }
}
