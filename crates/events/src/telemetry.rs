//! The names of what this crate tells `metrics` and `tracing`. They are part of the API.

/// Counter: events that left the outbox, so events of committed transactions only. Label [`EVENT`].
pub const PUBLISHED: &str = "greenwave.events.published";

/// Counter: attempts that ended. Labels [`SUBSCRIPTION`], [`OUTCOME`].
pub const HANDLED: &str = "greenwave.events.handled";

/// Histogram, seconds: how long an attempt ran. Label [`SUBSCRIPTION`].
pub const HANDLE_DURATION: &str = "greenwave.events.handle.duration";

/// Span around each attempt. Fields `subscription`, `event`, `event_id`, `attempt`.
pub const HANDLE_SPAN: &str = "greenwave.events.handle";

/// Label: the event's name.
pub const EVENT: &str = "event";

/// Label: the subscription's name.
pub const SUBSCRIPTION: &str = "subscription";

/// Label: `completed`, `retried`, `dead`, or `lost` (the lease had run out, and another attempt decides).
pub const OUTCOME: &str = "outcome";
