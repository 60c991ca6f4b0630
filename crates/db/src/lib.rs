#![doc = include_str!("../README.md")]

mod batch;
mod config;
mod error;
#[cfg(feature = "index-advisor")]
pub mod index_advisor;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod query_stats;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod telemetry;

pub use batch::{BatchError, BatchLoader};
pub use config::{BatchConfig, PoolConfig};
pub use error::{Error, Holder};
