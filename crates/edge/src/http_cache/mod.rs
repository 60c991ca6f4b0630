//! Answers kept and given again, as RFC 9111 allows.

mod config;

pub use config::CacheConfig;
