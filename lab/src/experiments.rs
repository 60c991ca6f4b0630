//! The experiments that come with this crate: a technique each.

mod http;
pub(crate) mod instances;
mod redis;
mod rows;
mod shops;

use crate::Lab;

#[path = "../experiments/async_effects.rs"]
pub mod async_effects;
#[path = "../experiments/balance.rs"]
pub mod balance;
#[path = "../experiments/batch.rs"]
pub mod batch;
#[path = "../experiments/cache_aside.rs"]
pub mod cache_aside;
#[path = "../experiments/edge_cache.rs"]
pub mod edge_cache;
#[path = "../experiments/group_commit.rs"]
pub mod group_commit;
#[path = "../experiments/index.rs"]
pub mod index;
#[path = "../experiments/pool.rs"]
pub mod pool;
#[path = "../experiments/scale_out.rs"]
pub mod scale_out;
#[path = "../experiments/stale.rs"]
pub mod stale;
#[path = "../experiments/stampede.rs"]
pub mod stampede;

/// Set in processes that are instances, to how long a request takes them.
const INSTANCE: &str = "GREENWAVE_LAB_INSTANCE";

/// What the experiments are done on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The URL of a PostgreSQL server; `None` is SQLite in a temporary folder. Default `None`. The experiment `pool`
    /// needs one, `group-commit` refuses it.
    ///
    /// The lab makes databases of its own on that server and drops them again; it touches no other.
    pub database: Option<String>,
    /// The URL of a Redis; `None` keeps cached values in memory alone. Default `None`. The experiment `cache-levels`
    /// needs one, and `cache-aside` and `stampede` use it.
    ///
    /// The lab uses keys of its own there, `greenwave_lab_…`, and removes them again; it touches no other.
    pub redis: Option<String>,
    /// Orders in the data set; a fifth as many customers. Default 500,000.
    pub orders: u64,
    /// The command that becomes an instance of a service for `balance` and `scale-out`, which need one: a program that
    /// calls [`cli::run`](crate::cli::run) finds in its environment that it is to be one. Default none; the command line
    /// sets it to its own program.
    pub instance: Vec<String>,
}

impl Default for Source {
    fn default() -> Self {
        Source { database: None, redis: None, orders: 500_000, instance: Vec::new() }
    }
}

/// All experiments.
#[must_use]
pub fn all(source: &Source) -> Lab {
    Lab::new()
        .with(index::experiment(source.clone()))
        .with(pool::experiment(source.clone()))
        .with(batch::experiment(source.clone()))
        .with(group_commit::experiment(source.clone()))
        .with(async_effects::experiment(source.clone()))
        .with(cache_aside::experiment(source.clone()))
        .with(cache_aside::levels(source.clone()))
        .with(stampede::experiment(source.clone()))
        .with(stale::experiment(source.clone()))
        .with(balance::experiment(source.clone()))
        .with(scale_out::experiment(source.clone()))
        .with(edge_cache::experiment(source.clone()))
}
