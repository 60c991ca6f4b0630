//! The log: readable lines on standard error, this program's own and its instances'.

use std::{
    env,
    io::{IsTerminal, Write, stderr},
};

use anyhow::{Context, Result};
use greenwave_edge::{LogFile, LogFileConfig, LogFormat, LogLine};
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
    // Where lines of instances go instead.
    file: Option<LogFile>,
    format: LogFormat,
    _flushed_on_drop: WorkerGuard,
}

impl Log {
    /// Starts it. `RUST_LOG` sets the level, INFO by default; colours are for terminals.
    pub(crate) fn start(instances: LogFileConfig) -> Result<Log> {
        let (writer, guard) = non_blocking(stderr());
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let colours = stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let lines = fmt::layer().with_writer(writer.clone()).with_ansi(colours).with_target(false).compact();
        // A second start, in a test, keeps the first.
        let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
        let (path, format) = (instances.path.clone(), instances.format);
        let file = if path.as_os_str().is_empty() { None } else { Some(LogFile::open(instances)) };
        let file =
            file.transpose().with_context(|| format!("logs.path: cannot write to {}", path.display()))?;
        Ok(Log { writer, file, format, _flushed_on_drop: guard })
    }

    /// Takes the lines of instances, each after the instance's name.
    pub(crate) fn of_instances(&self) -> Box<dyn Fn(&LogLine<'_>) + Send + Sync> {
        if let Some(file) = &self.file {
            return Box::new(file.sink());
        }
        let (writer, format) = (self.writer.clone(), self.format);
        Box::new(move |line| {
            // One write a line; it only fails when the log has ended.
            let _ = writer.clone().write_all(&line.format(format));
        })
    }
}
