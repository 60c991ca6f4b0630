//! Events against real databases and a real NATS server.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod conformance;
#[cfg(all(feature = "nats", feature = "sqlite"))]
mod consume;
mod docs;
mod harness;
#[cfg(all(feature = "nats", feature = "sqlite"))]
mod jetstream;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
