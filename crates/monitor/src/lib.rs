#![doc = include_str!("../README.md")]

pub mod collect;
pub mod dashboard;
mod error;
pub mod export;
mod monitor;
mod socket;
pub mod telemetry;

pub use collect::{Description, Histogram, HttpLayer, Metrics, Process, Series, Snapshot};
pub use error::Error;
pub use monitor::{Monitor, MonitorConfig};
