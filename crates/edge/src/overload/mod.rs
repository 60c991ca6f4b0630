//! What is done when more comes in than can be answered: limits, queues, refusals.

mod config;

pub use config::{OverloadConfig, RateLimit};
