//! The names of this crate's signals, as the README tables them.

/// Histogram, seconds: from a request's head to the end of its answer.
/// Label [`STATUS`]; `499` where the client left before there was an answer.
pub const REQUEST_DURATION: &str = "greenwave.edge.request.duration";

/// Gauge: requests between head and end of answer.
pub const ACTIVE_REQUESTS: &str = "greenwave.edge.active_requests";

/// Counter: requests sent once more, to another upstream.
pub const RETRIES: &str = "greenwave.edge.retries";

/// Counter: upstreams left alone for a while because they failed too often.
pub const EJECTIONS: &str = "greenwave.edge.ejections";

/// Gauge: upstreams that pass their health checks and do not drain, of all groups.
pub const UPSTREAMS_HEALTHY: &str = "greenwave.edge.upstreams.healthy";

/// Counter: requests that came to the response cache. Label [`RESULT`].
pub const CACHE_REQUESTS: &str = "greenwave.edge.cache.requests";

/// Counter: answers kept.
pub const CACHE_STORED: &str = "greenwave.edge.cache.stored";

/// Counter: answers dropped to make room.
pub const CACHE_EVICTED: &str = "greenwave.edge.cache.evicted";

/// Gauge: bytes of answers that are kept.
pub const CACHE_BYTES: &str = "greenwave.edge.cache.bytes";

/// Label: how a request was answered, `hit`, `stale`, `revalidated`, `collapsed`, `miss` or `pass`.
pub const RESULT: &str = "greenwave.edge.cache.result";

/// Label: the status code of the answer.
pub const STATUS: &str = "http.response.status_code";

/// Target of the supervisor's tracing events.
pub const SUPERVISOR_TARGET: &str = "greenwave_edge::supervisor";

/// Target of the proxy's tracing events.
pub const PROXY_TARGET: &str = "greenwave_edge::proxy";

/// All metrics, for tables and checks.
pub const METRICS: &[&str] = &[
    REQUEST_DURATION,
    ACTIVE_REQUESTS,
    RETRIES,
    EJECTIONS,
    UPSTREAMS_HEALTHY,
    CACHE_REQUESTS,
    CACHE_STORED,
    CACHE_EVICTED,
    CACHE_BYTES,
];
