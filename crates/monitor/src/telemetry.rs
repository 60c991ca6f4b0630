//! The names of every signal that this crate writes or reads.
//!
//! Other crates write most of those that are read; they are plain strings, so nothing links the two.

/// Environment variable: the path at which a supervised service is to serve its snapshot.
pub const SOCKET_ENV: &str = "GREENWAVE_MONITOR_SOCKET";

// What this crate writes.

/// Histogram, seconds: from the arrival of a request to the end of its response's body.
pub const REQUEST_DURATION: &str = "http.server.request.duration";
/// Gauge: requests that are being answered.
pub const ACTIVE_REQUESTS: &str = "http.server.active_requests";
/// Histogram: statements that one request ran.
pub const REQUEST_QUERIES: &str = "greenwave.request.queries";
/// Histogram, seconds: the time of a request's statements, added up.
pub const REQUEST_DB_TIME: &str = "greenwave.request.db_time";
/// Counter: registrations refused because the process has too many series.
pub const DROPPED_SERIES: &str = "greenwave.monitor.dropped_series";

/// Span around each request.
pub const REQUEST_SPAN: &str = "http.server.request";
/// Target of that span.
pub const REQUEST_SPAN_TARGET: &str = "greenwave_monitor::http";

/// Label: the request's method; `_OTHER` for one that HTTP does not define.
pub const METHOD: &str = "http.request.method";
/// Label: the matched route's pattern, such as `/orders/{id}`.
pub const ROUTE: &str = "http.route";
/// Label: the status of the response.
pub const STATUS: &str = "http.response.status_code";
/// The value of [`ROUTE`] where no route matched. The raw path is never a label.
pub const UNMATCHED: &str = "unmatched";
/// The value of [`STATUS`] when the client left before there was a response (nginx's convention).
pub const STATUS_ABANDONED: u16 = 499;

// What this crate reads.

/// Target of the event that `greenwave-db` emits for each statement; its field `elapsed_us` is counted.
pub const DB_QUERY_TARGET: &str = "greenwave_db::query";
/// Target of the event that sqlx emits for each statement; its field `elapsed_secs` is counted.
pub const SQLX_QUERY_TARGET: &str = "sqlx::query";

pub(crate) const EDGE_DURATION: &str = "greenwave.edge.request.duration";
pub(crate) const EDGE_ACTIVE: &str = "greenwave.edge.active_requests";
pub(crate) const EDGE_RETRIES: &str = "greenwave.edge.retries";
pub(crate) const EDGE_HEALTHY: &str = "greenwave.edge.upstreams.healthy";

pub(crate) const CACHE_REQUESTS: &str = "greenwave.cache.requests";
pub(crate) const CACHE_LOAD: &str = "greenwave.cache.load.duration";

pub(crate) const DB_DURATION: &str = "db.client.operation.duration";
pub(crate) const DB_WAIT: &str = "db.client.connection.wait_time";
pub(crate) const DB_TIMEOUTS: &str = "db.client.connection.timeouts";
pub(crate) const DB_BATCH: &str = "greenwave.db.batch.size";

pub(crate) const JOBS_PUSHED: &str = "greenwave.jobs.pushed";
pub(crate) const JOBS_RUN: &str = "greenwave.jobs.run.duration";
pub(crate) const JOBS_WAIT: &str = "greenwave.jobs.wait";
pub(crate) const JOBS_READY: &str = "greenwave.jobs.ready";
pub(crate) const JOBS_OLDEST: &str = "greenwave.jobs.oldest_ready";
pub(crate) const JOBS_DEAD: &str = "greenwave.jobs.dead";
pub(crate) const JOBS_OBJECTIVE: &str = "greenwave.jobs.objective.missed";

pub(crate) const EVENTS_PUBLISHED: &str = "greenwave.events.published";
pub(crate) const EVENTS_HANDLED: &str = "greenwave.events.handled";
pub(crate) const EVENTS_HANDLE: &str = "greenwave.events.handle.duration";

/// Every metric that this crate writes or shows; a test holds the README's tables to it.
#[cfg(test)]
pub(crate) const ALL: &[&str] = &[
    REQUEST_DURATION,
    ACTIVE_REQUESTS,
    REQUEST_QUERIES,
    REQUEST_DB_TIME,
    DROPPED_SERIES,
    REQUEST_SPAN,
    DB_QUERY_TARGET,
    SQLX_QUERY_TARGET,
    SOCKET_ENV,
    EDGE_DURATION,
    EDGE_ACTIVE,
    EDGE_RETRIES,
    EDGE_HEALTHY,
    CACHE_REQUESTS,
    CACHE_LOAD,
    DB_DURATION,
    DB_WAIT,
    DB_TIMEOUTS,
    DB_BATCH,
    JOBS_PUSHED,
    JOBS_RUN,
    JOBS_WAIT,
    JOBS_READY,
    JOBS_OLDEST,
    JOBS_DEAD,
    JOBS_OBJECTIVE,
    EVENTS_PUBLISHED,
    EVENTS_HANDLED,
    EVENTS_HANDLE,
];

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_tables_every_signal() {
        let readme = include_str!("../README.md");
        for name in super::ALL {
            assert!(readme.contains(&format!("`{name}`")), "README.md does not table `{name}`");
        }
    }
}
