//! Tests of the lab, from outside.
#![allow(clippy::unwrap_used)]

mod async_effects;
mod batch;
mod cache;
mod edge;
mod errors;
mod group_commit;
mod index;
mod order;
mod pool;
mod promises;
mod quick;
mod report;
mod shelf;
mod signals;
mod synthetic;
