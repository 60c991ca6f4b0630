use std::{fmt, time::SystemTime};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::BoxError;

/// A fact that other parts of the system may want to hear of: a type with a stable name.
///
/// The name is what publisher and subscribers agree on, across processes and releases; the type's own name may change
/// freely. The payload travels as JSON, so a field added with `#[serde(default)]` or taken away is no break.
///
/// ```
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct OrderCreated {
///     order_id: i64,
/// }
///
/// impl greenwave_events::Event for OrderCreated {
///     const NAME: &'static str = "order-created";
/// }
/// ```
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What publisher and subscribers agree on, such as `order-created`.
    const NAME: &'static str;

    /// The payload's shape, raised when it changes; stored beside the payload and handed to handlers in
    /// [`EventContext::version`]. A payload of another version goes through [`upcast`](Event::upcast).
    const VERSION: u32 = 1;

    /// What the event is about, such as a customer's id: a subscription that is
    /// [`ordered`](crate::SubscriptionConfig::ordered) handles events of one key one after another, in the order of
    /// their publication. Default: nothing, and no order.
    fn key(&self) -> Option<String> {
        None
    }

    /// Makes an event of a payload that was published with another version of the type: mostly an older one, and in the
    /// middle of a deployment a newer one. Default: decodes it as it is. An error makes the event a dead letter at once.
    fn upcast(_version: u32, payload: serde_json::Value) -> Result<Self, BoxError> {
        serde_json::from_value(payload).map_err(BoxError::from)
    }
}

/// Names one published event, for good: a UUID of version 7.
///
/// It is the same for every subscription, every attempt and every redelivery: the key under which a handler with
/// effects elsewhere recognises what it has already done.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct EventId(Uuid);

impl EventId {
    pub(crate) fn new() -> EventId {
        EventId(Uuid::now_v7())
    }

    /// The id as a UUID.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }
}

impl From<Uuid> for EventId {
    fn from(id: Uuid) -> EventId {
        EventId(id)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a handler may want to know of the event beside its payload.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EventContext {
    /// The event's id, the same at each attempt.
    pub id: EventId,
    /// The version with which the event was published.
    pub version: u32,
    /// When the event was published, by the database's clock.
    pub published_at: SystemTime,
    /// Its place in the log of all events; none for one that was published before there was a log.
    pub position: Option<u64>,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The subscription's name.
    pub subscription: std::sync::Arc<str>,
}
