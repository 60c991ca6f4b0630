#![doc = include_str!("../README.md")]

mod builder;
mod cache;
mod clock;
mod config;
mod error;
mod invalidate;
#[cfg(feature = "tower")]
mod layer;
mod loaded;
mod memory;
mod singleflight;
mod tags;
pub mod telemetry;
mod weak;
mod wrapper;

#[cfg(feature = "redis")]
mod remote;
#[cfg(not(feature = "redis"))]
#[path = "remote/absent.rs"]
mod remote;

pub use builder::CacheBuilder;
pub use cache::Cache;
pub use config::CacheConfig;
#[cfg(feature = "redis")]
pub use config::{CoherenceMode, RemoteConfig};
#[cfg(feature = "redis")]
pub use error::Error;
pub use error::LoadError;
#[cfg(feature = "tower")]
pub use layer::{CacheLayer, CacheService, CachedBody, CachedResponse};
pub use loaded::Loaded;
#[cfg(feature = "redis")]
pub use remote::Remote;
pub use weak::{Held, WeakCache, WeakCacheBuilder, WeakStats};
pub use wrapper::Cached;
