//! Runs a service in any language behind a load balancer, with a live dashboard.

mod config;

use std::path::PathBuf;

fn main() {
    println!("{}", config::reference().unwrap_or_default());
    let _ = config::load(None::<PathBuf>.as_deref()).map(|c| c.redacted());
}
