#![doc = include_str!("../README.md")]

mod builder;
mod cache;
mod clock;
mod config;
mod error;
mod invalidate;
mod memory;
mod singleflight;
pub mod telemetry;

#[cfg(feature = "redis")]
mod remote;
#[cfg(not(feature = "redis"))]
#[path = "remote/absent.rs"]
mod remote;

pub use builder::CacheBuilder;
pub use cache::Cache;
pub use config::CacheConfig;
#[cfg(feature = "redis")]
pub use config::RemoteConfig;
#[cfg(feature = "redis")]
pub use error::Error;
pub use error::LoadError;
#[cfg(feature = "redis")]
pub use remote::Remote;
