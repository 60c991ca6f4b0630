#![allow(clippy::unwrap_used)]
//! The crate from outside, with real processes and real sockets.

mod access_log;
mod balanced;
mod child;
mod clients;
mod compression;
mod corpus;
mod documented;
mod drain;
mod ejection;
mod headers;
mod http_cache;
mod hostile_upstreams;
mod instances;
mod reload;
mod oracle;
mod retries;
mod overload;
mod rig;
mod rolling;
mod slow;
mod starved;
mod streaming;
mod strict;
mod supervised;
mod upgrades;
mod tls;
mod trust;
mod upstreams;
