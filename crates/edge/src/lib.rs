#![doc = include_str!("../README.md")]

mod access_log;
mod compression;
mod error;
mod health;
mod http_cache;
mod load_balancer;
mod local;
mod overload;
mod proxy;
mod resolve;
mod retry_budget;
mod routes;
mod supervisor;
pub mod telemetry;
mod trace_context;
mod upstreams;

pub use access_log::{AccessLogConfig, AccessLogFormat};
pub use compression::CompressionConfig;
pub use error::Error;
pub use health::{CheckConfig, Health, HealthChecker, Statuses, Target};
pub use http_cache::{CacheConfig, CacheStats, HttpCache};
pub use load_balancer::{BalanceConfig, LoadBalancer, Pick, Strategy};
pub use overload::{OverloadConfig, RateLimit};
pub use proxy::{Proxy, ProxyConfig, TlsConfig, TrustConfig, listen};
pub use routes::{Group, Route};
pub use supervisor::{
    Environment, FileWatch, Instance, InstanceState, InstanceStatus, LogEvent, LogFile, LogFileConfig,
    LogFormat, LogLine, LogRecord, LogStream, Logs, Port, StopSignal, Supervisor, SupervisorBuilder,
    SupervisorConfig, WatchConfig,
};
pub use upstreams::{Upstream, Upstreams};
