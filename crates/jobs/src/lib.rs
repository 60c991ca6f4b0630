#![doc = include_str!("../README.md")]

mod backends;
mod backoff;
mod config;
mod dead;
mod deadline;
mod error;
#[cfg(feature = "nats")]
mod forward;
mod job;
mod push;
mod queue;
pub mod telemetry;
mod trace;
mod unique;
mod verdict;
mod wakeups;
mod worker;

pub use backends::Backend;
#[cfg(feature = "nats")]
pub use backends::nats::{Nats, NatsConfig};
#[cfg(feature = "postgres")]
pub use backends::postgres::Postgres;
#[cfg(feature = "sqlite")]
pub use backends::sqlite::Sqlite;
pub use config::WorkerConfig;
pub use dead::{AttemptError, DeadJob, DeadReason};
pub use error::Error;
#[cfg(feature = "nats")]
pub use forward::ForwardConfig;
pub use job::{Job, JobContext, JobId, PushOptions, Pushed};
pub use queue::{Queue, QueueStats};
pub use unique::{Unique, UniqueStates};
pub use verdict::{Discard, RetryIn, Snooze};
pub use worker::Worker;

/// What a handler may fail with: any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
