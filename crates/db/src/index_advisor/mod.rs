//! Advice on indexes: what to create, what it brings, and what is wrong with those that exist.
//!
//! It changes nothing itself.

mod advice;
mod error;
#[cfg(feature = "postgres")]
pub mod postgres;
mod report;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[cfg_attr(not(feature = "postgres"), allow(dead_code))] // SQLite asks for less.
mod usage;
mod workload;

pub use advice::{Advice, Effect, Finding, IndexAdvice, Skipped, Unit};
pub use error::Error;
pub use workload::{Workload, WorkloadStatement};

use std::time::Duration;

/// How far the advisor may go.
#[derive(Clone, Debug, PartialEq)]
pub struct AdvisorConfig {
    /// All advised indexes together take no more than this, in bytes. Default: unlimited.
    pub max_bytes: Option<u64>,
    /// The most indexes that are advised. Default: 10.
    pub max_indexes: usize,
    /// The most columns of an index's key. Default: 4.
    pub max_columns: usize,
    /// An index must save this part of the time of at least one statement that it serves. Default: 0.2.
    pub min_gain: f64,
    /// Whether advice is verified by creating the indexes in a transaction that is rolled back, and executing the
    /// statements that only read. The tables are locked against writes meanwhile. Default: no.
    pub verify: bool,
    /// The longest that a statement may run while advice is verified. Default: 30 s.
    pub max_statement: Duration,
}

impl Default for AdvisorConfig {
    fn default() -> Self {
        Self {
            max_bytes: None,
            max_indexes: 10,
            max_columns: 4,
            min_gain: 0.2,
            verify: false,
            max_statement: Duration::from_secs(30),
        }
    }
}
