#![doc = include_str!("../README.md")]

mod builder;
mod cache;
mod clock;
mod config;
mod error;
mod invalidate;
mod landing;
#[cfg(feature = "tower")]
mod layer;
mod loaded;
mod memory;
mod observe;
mod policy;
mod singleflight;
mod stats;
mod striped;
mod sync;
mod tags;
pub mod telemetry;
mod weak;
mod would_be;
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
pub use observe::{Observed, observe};
#[cfg(feature = "postcard")]
pub use remote::Postcard;
#[cfg(feature = "redis")]
pub use remote::{Codec, MessagePack, Remote};
pub use stats::CacheStats;
pub use weak::{Held, WeakCache, WeakCacheBuilder, WeakStats};
pub use would_be::{SizeUnit, WouldBe, WouldBeRatio};
pub use wrapper::Cached;
