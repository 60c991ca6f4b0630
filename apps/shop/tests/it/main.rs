//! The shop over HTTP, on both databases, compared with what the database itself says.
#![allow(clippy::unwrap_used)]

mod checks;
mod cli;
mod client;
mod database;
mod durable;
mod fixture;
mod http;
mod migrations;
mod naive;
mod openapi;
mod outage;
mod plans;
mod readme;
mod seed;
