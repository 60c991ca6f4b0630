//! The names of what this crate tells `metrics` and `tracing`. They are part of the API.

/// Counter: events that left the outbox, so events of committed transactions only. Label [`EVENT`].
pub const PUBLISHED: &str = "greenwave.events.published";

/// Counter: attempts that ended. Labels [`SUBSCRIPTION`], [`OUTCOME`].
pub const HANDLED: &str = "greenwave.events.handled";

/// Histogram, seconds: how long an attempt, or a batch, ran. Label [`SUBSCRIPTION`].
pub const HANDLE_DURATION: &str = "greenwave.events.handle.duration";

/// Span around each attempt. Fields `subscription`, `event`, `event_id`, `attempt`; around a batch `subscription` and
/// `events`.
pub const HANDLE_SPAN: &str = "greenwave.events.handle";

/// Label: the event's name.
pub const EVENT: &str = "event";

/// Label: the subscription's name.
pub const SUBSCRIPTION: &str = "subscription";

/// Label: `completed`, `retried`, `dead`, or `lost` (the lease had run out, and another attempt decides); in a process
/// `completed`, `failed` or `skipped`.
pub const OUTCOME: &str = "outcome";

/// Gauge: how many positions of the log a subscription has not come to, when this process last took events for it. Label
/// [`SUBSCRIPTION`].
pub const LAG: &str = "greenwave.events.lag";

/// Counter: in-process handlers that ended, or did not begin (`skipped`). Labels [`EVENT`], [`OUTCOME`].
pub const IN_PROCESS: &str = "greenwave.events.in_process";
