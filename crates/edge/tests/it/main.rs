#![allow(clippy::unwrap_used)]
//! The crate from outside, with real processes and real sockets.

mod balanced;
mod child;
mod clients;
mod documented;
mod drain;
mod headers;
mod instances;
mod reload;
mod retries;
mod starved;
mod strict;
mod supervised;
mod upstreams;
