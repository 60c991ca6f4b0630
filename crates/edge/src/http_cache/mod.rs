//! Answers kept and given again, as RFC 9111 allows.
//!
//! A hit is one look into a map and a copy of a head. All else is here too: a request that finds nothing boards a
//! flight, which is one fetch for all who want the same, in a task of its own; its answer grows in memory, and whoever
//! waits reads along. Whether an answer is kept, and how long it is good, [`policy`] says and nobody else.

mod claims;
mod conditions;
mod config;
mod dictionary;
mod directives;
mod entry;
mod fill;
mod flight;
mod growing;
mod handle;
mod key;
mod policy;
mod ranges;
mod request;
mod respond;
mod snapshot;
mod stats;
mod status;
mod store;
mod vary;

#[cfg(test)]
mod tests;

pub use config::CacheConfig;
pub use handle::HttpCache;
pub use stats::CacheStats;
