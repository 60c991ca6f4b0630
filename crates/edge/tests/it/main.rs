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
mod hostile_upstreams;
mod http_cache;
mod instances;
mod oracle;
mod overload;
mod reload;
mod retries;
mod rig;
mod rolling;
mod slow;
mod slowhttptest;
mod starved;
mod streaming;
mod strict;
mod supervised;
mod tls;
mod trust;
mod upgrades;
mod upstreams;
