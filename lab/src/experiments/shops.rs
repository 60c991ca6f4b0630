//! Seeded shops: one for experiments that read it in two ways, two copies for those that change one of them.

mod postgres;
mod sqlite;

pub(super) use self::postgres::postmaster;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use greenwave_db::PoolConfig;
use greenwave_shop::seed::SeedSize;
use greenwave_shop::store::{Store, StoreConfig};

use super::Source;
use crate::report::figures;
use crate::{BoxError, Setup};

/// Two shops over the same rows, and how many rows these are.
pub(super) struct Copies {
    pub(super) before: Store,
    pub(super) after: Store,
    pub(super) size: SeedSize,
}

/// Makes the copies, and promises their removal. The one for before may be naive.
pub(super) async fn copies(setup: &Setup, source: &Source, naive: bool) -> Result<Copies, BoxError> {
    let size = size(setup, source);
    setup.fact("connections", format!("{} to each copy", connections(setup.concurrency())));
    let (before, after) = match &source.database {
        None => sqlite::copies(setup, size, naive).await?,
        Some(url) => postgres::copies(setup, size, url, naive).await?,
    };
    Ok(Copies { before, after, size })
}

/// Makes one shop in a SQLite file, and promises its removal.
pub(super) async fn on_sqlite(setup: &Setup, source: &Source) -> Result<(String, SeedSize), BoxError> {
    let size = size(setup, source);
    Ok((sqlite::one(setup, size).await?, size))
}

/// Makes one shop in a database of its own on this PostgreSQL server, and promises its removal; returns its URL.
pub(super) async fn on_postgres(
    setup: &Setup,
    source: &Source,
    server: &str,
) -> Result<(String, SeedSize), BoxError> {
    let size = size(setup, source);
    Ok((postgres::one(setup, size, server).await?, size))
}

/// The size of the data set, which the report is told.
fn size(setup: &Setup, source: &Source) -> SeedSize {
    let size = size_of(source.orders);
    for (name, rows) in [("customers", size.users), ("orders", size.orders)] {
        setup.fact(name, figures::count(rows.unsigned_abs()));
    }
    size
}

/// A data set of so many orders, with the proportions of the full one.
fn size_of(orders: u64) -> SeedSize {
    let orders = i64::try_from(orders).unwrap_or(i64::MAX);
    let SeedSize { users, products, orders: full } = SeedSize::FULL;
    SeedSize {
        users: (orders / (full / users)).max(1),
        products: (orders / (full / products)).clamp(100, products),
        orders,
    }
}

/// The most connections of one pool: two pools leave room on a PostgreSQL server that allows its default of 100.
const MAX_CONNECTIONS: usize = 30;

/// Longer than any operation should wait for a connection: the wait is latency, and not an error.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens a copy with a connection for each task.
async fn open(setup: &Setup, url: &str, naive: bool) -> Result<Store, BoxError> {
    Ok(Store::open(url, StoreConfig { naive, ..store_config(setup.concurrency()) }).await?)
}

fn store_config(concurrency: usize) -> StoreConfig {
    StoreConfig { pool: pool_config(concurrency), ..StoreConfig::default() }
}

/// A pool with a connection for each task.
pub(super) fn pool_config(concurrency: usize) -> PoolConfig {
    PoolConfig {
        max_connections: connections(concurrency),
        connection_timeout: CONNECTION_TIMEOUT,
        ..PoolConfig::default()
    }
}

/// How many connections that is.
fn connections(concurrency: usize) -> u32 {
    u32::try_from(concurrency.clamp(1, MAX_CONNECTIONS)).unwrap_or(1)
}

/// Opens a new database, fills it, and closes it.
async fn seed(setup: Setup, url: String, size: SeedSize) -> Result<(), BoxError> {
    let percent = AtomicU64::new(0);
    let teller = setup.clone();
    let tell = move |progress: greenwave_shop::seed::Progress| {
        let now = progress.done * 100 / progress.total.max(1);
        if percent.swap(now, Ordering::Relaxed) != now {
            teller.progress(progress.done, progress.total);
        }
    };
    open(&setup, &url, false).await?.seed(size, tell).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_a_connection_as_far_as_a_server_has_them() {
        let connections = |concurrency| store_config(concurrency).pool.max_connections;
        assert_eq!([1, 16, 30, 31, 100_000].map(connections), [1, 16, 30, 30, 30]);
        assert!(store_config(16).pool.connection_timeout > Duration::from_secs(30));
    }

    #[test]
    fn a_smaller_data_set_keeps_the_proportions() {
        assert_eq!(size_of(500_000), SeedSize::FULL);
        assert_eq!(size_of(20_000), SeedSize { users: 4_000, products: 400, orders: 20_000 });
        assert_eq!(size_of(1), SeedSize { users: 1, products: 100, orders: 1 });
    }
}
