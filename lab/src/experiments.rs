//! The experiments that come with this crate: a technique each.

mod shops;

use crate::Lab;

#[path = "../experiments/batch.rs"]
pub mod batch;
#[path = "../experiments/group_commit.rs"]
pub mod group_commit;
#[path = "../experiments/index.rs"]
pub mod index;
#[path = "../experiments/pool.rs"]
pub mod pool;

/// What the experiments are done on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The URL of a PostgreSQL server; `None` is SQLite in a temporary folder. Default `None`. The experiment `pool`
    /// needs one, `group-commit` refuses it.
    ///
    /// The lab makes databases of its own on that server and drops them again; it touches no other.
    pub database: Option<String>,
    /// Orders in the data set; a fifth as many customers. Default 500,000.
    pub orders: u64,
}

impl Default for Source {
    fn default() -> Self {
        Source { database: None, orders: 500_000 }
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
}
