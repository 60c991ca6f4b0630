//! Runs a service in any language behind a load balancer, with a live dashboard.
fn main() {}
