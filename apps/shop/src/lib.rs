#![doc = include_str!("../README.md")]

pub mod cli;
mod config;
pub mod effects;
mod error;
pub mod http;
mod logging;
pub mod model;
mod progress;
mod query_stats;
pub mod request;
pub mod run;
pub mod seed;
mod shop;
pub mod store;
mod timestamp;

pub use config::{Config, DEFAULT_DATABASE_URL, DEFAULT_PORT, DatabaseUrl, Secret, loopback};
pub use error::{Error, error_chain};
pub use shop::Shop;
