//! What a cache promises, held to it from outside. The tests of the remote run against a real Redis.

#![allow(clippy::unwrap_used)]

mod get_many;
mod invalidation;
mod law;
#[cfg(feature = "tower")]
mod layer;
mod loads;
mod memory;
mod model;
mod signals;
mod spans;
mod stale;
mod support;
mod tags;
mod weak;
mod weak_model;
mod would_be;
mod wrapper;

#[cfg(feature = "redis")]
mod access;
#[cfg(feature = "redis")]
mod bad_data;
#[cfg(feature = "redis")]
mod bad_days;
#[cfg(feature = "redis")]
mod codecs;
#[cfg(feature = "redis")]
mod coherence_model;
#[cfg(feature = "redis")]
mod connections;
#[cfg(feature = "redis")]
mod fleet;
#[cfg(feature = "redis")]
mod leases;
#[cfg(feature = "redis")]
mod outages;
#[cfg(feature = "redis")]
mod races;
#[cfg(feature = "redis")]
mod remote;
