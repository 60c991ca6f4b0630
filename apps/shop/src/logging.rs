use std::io::{IsTerminal, stderr};

use greenwave_monitor::Monitor;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Logs to stderr, by default from INFO on, and lets the monitor see the statements of each request.
pub(crate) fn init(monitor: &Monitor) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let (filter, problem) = match EnvFilter::try_new(&filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let log = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_ansi(colours)
        .with_target(false)
        .with_filter(filter);
    // A program that embeds the shop may have a subscriber already: then that one stands.
    let _ = tracing_subscriber::registry().with(monitor.tracing_layer()).with(log).try_init();
    if let Some(error) = problem {
        tracing::warn!(%error, "RUST_LOG is not a filter: write a level or target=level,…; logging from INFO on");
    }
}
