//! Tests of the lab, from outside.
#![allow(clippy::unwrap_used)]

mod errors;
mod index;
mod order;
mod promises;
mod report;
mod shelf;
mod signals;
mod synthetic;
