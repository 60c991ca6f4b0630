//! The log: readable lines on standard error, this program's own and its instances'.

use std::{
    env,
    io::{IsTerminal, Write, stderr},
};

use greenwave_edge::LogLine;
use tracing_appender::{
    non_blocking,
    non_blocking::{NonBlocking, WorkerGuard},
};
use tracing_subscriber::{
    EnvFilter, fmt,
    layer::{Layer, SubscriberExt},
    util::SubscriberInitExt,
};

/// The log; what was written is out when it is dropped.
///
/// One thread writes, behind a bounded queue that drops what does not fit: whoever pipes the log into a pager that is
/// not read must not stop the balancer.
pub(crate) struct Log {
    writer: NonBlocking,
    _flushed_on_drop: WorkerGuard,
}

impl Log {
    /// Starts it. `RUST_LOG` sets the level, INFO by default; colours are for terminals.
    pub(crate) fn start() -> Log {
        let (writer, guard) = non_blocking(stderr());
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let colours = stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let lines = fmt::layer().with_writer(writer.clone()).with_ansi(colours).with_target(false).compact();
        // A second start, in a test, keeps the first.
        let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
        Log { writer, _flushed_on_drop: guard }
    }

    /// Takes the lines of instances, each after the instance's name.
    pub(crate) fn of_instances(&self) -> impl Fn(&LogLine<'_>) + Send + Sync + 'static {
        let writer = self.writer.clone();
        move |line| {
            let text = [line.instance.as_bytes(), b" | ", line.bytes, b"\n"].concat();
            // One write a line; it only fails when the log has ended.
            let _ = writer.clone().write_all(&text);
        }
    }
}
