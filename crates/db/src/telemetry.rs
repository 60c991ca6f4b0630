//! The names under which this crate reports what it does: `tracing` targets and `metrics` names.

/// Target of the event that every statement emits, at DEBUG, in the caller's span.
pub const QUERY_EVENT: &str = "greenwave_db::query";
/// Target of the warning that a slow statement emits.
pub const SLOW_QUERY_EVENT: &str = "greenwave_db::slow_query";
/// Target of the event that shows the plan of a slow statement, at WARN.
pub const SLOW_QUERY_PLAN_EVENT: &str = "greenwave_db::slow_query_plan";
/// Target of the warning that a statement emits that repeats in a scope.
pub const N_PLUS_ONE_EVENT: &str = "greenwave_db::n_plus_one";
/// Counter: statements that repeated in a scope. Label `http.route`.
pub const N_PLUS_ONE: &str = "greenwave.db.n_plus_one";
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

/// Longer statements are cut in logs: a bulk insert may be megabytes of text.
const MAX_TEXT: usize = 4096;

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use statements::*;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod statements {
    use std::{sync::Arc, time::Duration};

    use metrics::{Key, Label, Metadata};
    use tokio::runtime::Handle;
    use tracing::{Level, Span};

    use super::*;
    use crate::query_stats::{Dialect, QueryStats, Series, Statement};

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

    /// A statement that ended, well or not.
    pub(crate) struct Finished<'a> {
        pub(crate) statement: Statement<'a>,
        pub(crate) stats: &'a QueryStats,
        pub(crate) returned: u64,
    }

    impl Finished<'_> {
        /// Counts and logs it. Returns its series if it was slow, or if that is `wanted`.
        pub(crate) fn report(&self, slow: Duration, wanted: bool) -> Option<Arc<Series>> {
            let Statement { dialect, elapsed, .. } = self.statement;
            let key = match dialect {
                Dialect::Postgres => &ON_POSTGRESQL,
                Dialect::Sqlite => &ON_SQLITE,
            };
            record(key, elapsed);
            let (is_logged, is_slow) =
                (tracing::enabled!(target: QUERY_EVENT, Level::DEBUG), elapsed >= slow);
            let series = self.stats.record(&self.statement, wanted || is_logged || is_slow)?;
            let own =
                (series.is_other() && (is_logged || is_slow)).then(|| Arc::new(Series::new(&self.statement)));
            let named = own.as_ref().unwrap_or(&series);
            if is_logged {
                tracing::event!(
                    target: QUERY_EVENT,
                    Level::DEBUG,
                    db.query.text = self.text(named),
                    elapsed_us = micros(elapsed),
                    db.response.returned_rows = self.returned,
                );
            }
            if is_slow {
                self.log_slow(named);
            }
            Some(series)
        }

        /// Logs it, and does not count it.
        #[cfg(feature = "sqlite")]
        pub(crate) fn report_if_slow(&self, slow: Duration) {
            if self.statement.elapsed >= slow {
                self.log_slow(&Arc::new(Series::new(&self.statement)));
            }
        }

        fn log_slow(&self, series: &Arc<Series>) {
            let slow = Slow {
                text: self.text(series).to_owned(),
                route: self.statement.scope.and_then(|scope| scope.route()).map(str::to_owned),
                elapsed_us: micros(self.statement.elapsed),
                wait_us: micros(self.statement.wait),
                rows: self.returned,
            };
            match (series.known_site(), Handle::try_current()) {
                (Some(site), _) => slow.log(&site),
                (None, Err(_)) => slow.log("unknown"),
                // To find it takes time.
                (None, Ok(runtime)) => {
                    let (series, span) = (Arc::clone(series), Span::current());
                    runtime.spawn_blocking(move || span.in_scope(|| slow.log(&series.site_name())));
                }
            }
        }

        fn text<'s>(&'s self, series: &'s Series) -> &'s str {
            cut(if self.stats.config().log_values { self.statement.text } else { series.text() })
        }
    }

    struct Slow {
        text: String,
        route: Option<String>,
        elapsed_us: u64,
        wait_us: u64,
        rows: u64,
    }

    impl Slow {
        fn log(&self, site: &str) {
            tracing::event!(
                target: SLOW_QUERY_EVENT,
                Level::WARN,
                db.query.text = self.text,
                elapsed_us = self.elapsed_us,
                wait_us = self.wait_us,
                db.response.returned_rows = self.rows,
                http.route = self.route.as_deref(),
                site,
                "slow query",
            );
        }
    }

    /// The plan of a slow statement.
    pub(crate) fn slow_query_plan(text: &str, plan: &str) {
        tracing::event!(
            target: SLOW_QUERY_PLAN_EVENT,
            Level::WARN,
            db.query.text = cut(text),
            plan,
            "plan of a slow query",
        );
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

/// Later combinations of statement, route and call site are not told apart.
pub(crate) fn max_series_reached(max_series: usize) {
    tracing::warn!(
        max_series,
        "query statistics count further statements together, as `other`: raise `max_series`, or keep values out of \
         statements and routes"
    );
}

/// A statement repeats in a scope.
pub(crate) fn n_plus_one_found(route: Option<&str>) {
    metrics::counter!(N_PLUS_ONE, "http.route" => route.unwrap_or_default().to_owned()).increment(1);
}

/// The scope has ended.
pub(crate) fn n_plus_one(text: &str, count: u32, route: Option<&str>, site: &str, cure: &str) {
    tracing::event!(
        target: N_PLUS_ONE_EVENT,
        tracing::Level::WARN,
        db.query.text = cut(text),
        count,
        http.route = route,
        site,
        cure,
        "a statement repeats in one request",
    );
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
            super::SLOW_QUERY_PLAN_EVENT,
            super::N_PLUS_ONE_EVENT,
            super::N_PLUS_ONE,
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
