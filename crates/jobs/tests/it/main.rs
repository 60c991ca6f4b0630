//! The tests of greenwave-jobs: one conformance suite for every backend, and what only one of them can do.
#![allow(clippy::unwrap_used)]

mod conformance;
mod objectives;
mod rules;
mod support;

#[cfg(all(feature = "nats", feature = "sqlite"))]
mod forward;
mod kept;
#[cfg(feature = "postgres")]
mod kill_rounds;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "testing")]
mod testing;
#[cfg(feature = "postgres")]
mod watermark;
