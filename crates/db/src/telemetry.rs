//! The names under which this crate reports what it does: `tracing` targets and `metrics` names.

/// Target of the event that every statement emits, at DEBUG, in the caller's span.
pub const QUERY_EVENT: &str = "greenwave_db::query";
/// Target of the warning that a slow statement emits.
pub const SLOW_QUERY_EVENT: &str = "greenwave_db::slow_query";
/// Histogram, seconds: how long statements ran. Label `db.system.name`.
pub const OPERATION_DURATION: &str = "db.client.operation.duration";
/// Histogram, seconds: how long callers waited for a connection.
pub const CONNECTION_WAIT: &str = "db.client.connection.wait_time";
/// Counter: callers that got no connection in time.
pub const CONNECTION_TIMEOUTS: &str = "db.client.connection.timeouts";
/// Histogram, seconds: how long callers held a connection.
pub const CONNECTION_USE: &str = "db.client.connection.use_time";
/// Gauge: open connections, taken about once a second. Label `db.client.connection.state`: `idle` or `used`.
pub const CONNECTION_COUNT: &str = "db.client.connection.count";
/// Gauge: callers that wait for a connection, taken about once a second.
pub const CONNECTION_PENDING: &str = "db.client.connection.pending_requests";
/// Target of the warning that names who holds a connection for too long.
pub const LONG_HOLD_EVENT: &str = "greenwave_db::long_hold";
/// Histogram: keys in a batch. Label `loader`.
pub const BATCH_SIZE: &str = "greenwave.db.batch.size";

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use statements::*;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod statements {
    use std::time::Duration;

    use metrics::{Key, Label, Metadata};
    use tracing::Level;

    use super::*;

    // Every statement needs these: made, and hashed, when the program is compiled.
    static METADATA: Metadata<'static> =
        Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));
    static POSTGRESQL: [Label; 1] = [Label::from_static_parts("db.system.name", "postgresql")];
    static SQLITE: [Label; 1] = [Label::from_static_parts("db.system.name", "sqlite")];
    static ON_POSTGRESQL: Key = Key::from_static_parts(OPERATION_DURATION, &POSTGRESQL);
    static ON_SQLITE: Key = Key::from_static_parts(OPERATION_DURATION, &SQLITE);
    static WAIT: Key = Key::from_static_name(CONNECTION_WAIT);
    #[cfg(feature = "postgres")]
    static USE: Key = Key::from_static_name(CONNECTION_USE);

    fn record(key: &'static Key, duration: Duration) {
        metrics::with_recorder(|recorder| recorder.register_histogram(key, &METADATA)).record(duration);
    }

    /// Longer statements are cut in logs: a bulk insert may be megabytes of text.
    const MAX_TEXT: usize = 4096;

    /// A statement that ended, well or not.
    pub(crate) struct Finished<'a> {
        /// `db.system.name`, as OpenTelemetry spells it.
        pub(crate) system: &'static str,
        /// The statement with its placeholders: values are not in it.
        pub(crate) text: &'a str,
        pub(crate) elapsed: Duration,
        pub(crate) wait: Duration,
        pub(crate) rows: u64,
    }

    impl Finished<'_> {
        pub(crate) fn report(&self, slow: Duration) {
            let key = if self.system == "sqlite" { &ON_SQLITE } else { &ON_POSTGRESQL };
            record(key, self.elapsed);
            tracing::event!(
                target: QUERY_EVENT,
                Level::DEBUG,
                db.query.text = self.cut_text(),
                elapsed_us = micros(self.elapsed),
                db.response.returned_rows = self.rows,
            );
            self.report_if_slow(slow);
        }

        pub(crate) fn report_if_slow(&self, slow: Duration) {
            if self.elapsed < slow {
                return;
            }
            tracing::event!(
                target: SLOW_QUERY_EVENT,
                Level::WARN,
                db.query.text = self.cut_text(),
                elapsed_us = micros(self.elapsed),
                wait_us = micros(self.wait),
                db.response.returned_rows = self.rows,
                "slow query",
            );
        }

        fn cut_text(&self) -> &str {
            &self.text[..self.text.floor_char_boundary(MAX_TEXT)]
        }
    }

    /// A caller got a connection.
    pub(crate) fn waited(wait: Duration) {
        record(&WAIT, wait);
    }

    /// A caller got none.
    pub(crate) fn timed_out() {
        metrics::counter!(CONNECTION_TIMEOUTS).increment(1);
    }

    /// A caller gave its connection back.
    #[cfg(feature = "postgres")]
    pub(crate) fn held(held: Duration) {
        record(&USE, held);
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn long_hold(holder: &crate::Holder) {
        tracing::event!(
            target: LONG_HOLD_EVENT,
            Level::WARN,
            site = holder.site,
            held_ms = u64::try_from(holder.held.as_millis()).unwrap_or(u64::MAX),
            "a connection is held for long",
        );
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn connections(idle: usize, used: usize, waiting: usize) {
        metrics::gauge!(CONNECTION_COUNT, "db.client.connection.state" => "idle").set(idle as f64);
        metrics::gauge!(CONNECTION_COUNT, "db.client.connection.state" => "used").set(used as f64);
        metrics::gauge!(CONNECTION_PENDING).set(waiting as f64);
    }

    fn micros(duration: Duration) -> u64 {
        u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
    }
}

/// A batch begins.
pub(crate) fn batch(loader: &'static str, keys: usize) {
    metrics::histogram!(BATCH_SIZE, "loader" => loader).record(keys as f64);
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_names_every_signal() {
        let readme = include_str!("../README.md");
        for name in [
            super::QUERY_EVENT,
            super::SLOW_QUERY_EVENT,
            super::OPERATION_DURATION,
            super::CONNECTION_WAIT,
            super::CONNECTION_TIMEOUTS,
            super::CONNECTION_USE,
            super::CONNECTION_COUNT,
            super::CONNECTION_PENDING,
            super::LONG_HOLD_EVENT,
            super::BATCH_SIZE,
        ] {
            assert!(readme.contains(&format!("`{name}`")), "README.md does not name {name}");
        }
    }
}
