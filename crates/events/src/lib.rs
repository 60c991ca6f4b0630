#![doc = include_str!("../README.md")]

#[cfg(not(any(feature = "postgres", feature = "sqlite")))]
compile_error!("greenwave-events needs a database: enable the feature `postgres` or `sqlite`");

mod backends;
mod bus;
mod config;
mod error;
mod event;
mod inbox;
#[cfg(feature = "nats")]
pub mod jetstream;
mod local;
mod outbox;
mod relay;
mod retry;
mod subscription;
pub mod telemetry;

#[cfg(feature = "postgres")]
pub use backends::postgres::Postgres;
#[cfg(feature = "sqlite")]
pub use backends::sqlite::Sqlite;
pub use backends::{Attempt, Backend, Backlog, DeadLetter, Lag};
pub use bus::Bus;
pub use config::{BusConfig, Start, SubscriptionConfig};
pub use error::{BoxError, Error};
pub use event::{Event, EventContext, EventId};
pub use outbox::Outgoing;
