//! What a cache promises, held to it from outside. The tests of the remote run against a real Redis.

#![allow(clippy::unwrap_used)]

mod invalidation;
#[cfg(feature = "tower")]
mod layer;
mod loads;
mod memory;
mod signals;
mod support;
mod weak;
mod weak_model;
mod wrapper;

#[cfg(feature = "redis")]
mod connections;
#[cfg(feature = "redis")]
mod outages;
#[cfg(feature = "redis")]
mod races;
#[cfg(feature = "redis")]
mod remote;
