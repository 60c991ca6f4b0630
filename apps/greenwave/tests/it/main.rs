//! `greenwave` as its users start it: the program itself, over HTTP, in a browser, and killed.
#![allow(clippy::unwrap_used)]

mod advise;
mod any_command;
mod cache;
mod client;
mod control;
mod dashboard;
mod errors;
mod jobs;
mod keep_alive;
mod killed;
mod program;
mod reload;
mod settings;
mod shop;
mod truth;
