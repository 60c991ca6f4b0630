#![doc = include_str!("../README.md")]

mod error;
mod health;
mod load_balancer;
mod local;
mod proxy;
mod supervisor;
pub mod telemetry;
mod upstreams;

pub use error::Error;
pub use health::{CheckConfig, Health, HealthChecker};
pub use load_balancer::LoadBalancer;
pub use proxy::{Proxy, ProxyConfig};
pub use supervisor::{
    Instance, InstanceState, InstanceStatus, LogLine, LogStream, Supervisor, SupervisorBuilder,
    SupervisorConfig,
};
pub use upstreams::{Upstream, Upstreams};
