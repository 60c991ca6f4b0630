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
mod headers;
mod oracle;
mod retries;
mod overload;
mod rig;
mod slow;
mod starved;
mod strict;
mod supervised;
mod tls;
mod trust;
mod upstreams;
