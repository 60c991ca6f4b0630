use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

use crate::{
    Backend, BoxError, Event, EventContext, EventId, SubscriptionConfig,
    error::{describe, storable},
};

/// A handler under its name, in this process.
pub(crate) struct Subscription<B: Backend> {
    pub(crate) name: String,
    pub(crate) event: String,
    pub(crate) config: SubscriptionConfig,
    pub(crate) handler: Handler<B>,
}

pub(crate) enum Handler<B: Backend> {
    /// Its delivery is completed after it returned: at least once.
    AtLeastOnce(AtLeastOnce),
    /// Its delivery is completed in its own transaction: effects exactly once.
    InTx(B::InTx),
}

pub(crate) type AtLeastOnce = Arc<dyn Fn(Delivery) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// One event for one subscription, held by this process.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub(crate) held: Held,
    /// Its place in the log; none for one from before there was a log.
    pub(crate) position: Option<i64>,
    pub(crate) subscription: Arc<str>,
    pub(crate) event: Arc<str>,
    pub(crate) event_id: EventId,
    pub(crate) version: u32,
    pub(crate) key: Option<Box<str>>,
    pub(crate) payload: String,
    pub(crate) published_ms: i64,
    /// Which attempt the next one is, from 1.
    pub(crate) attempt: u32,
}

/// Under what a delivery is held. A lease id never repeats.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Held {
    /// With the others of a range of positions, under the range's lease.
    Range(i64),
    /// Alone, as a row of its own.
    Row { id: i64, lease: i64 },
}

/// Whether an attempt has come as far as its handler.
#[derive(Clone, Default)]
pub struct Begun(Arc<AtomicBool>);

impl Begun {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why an attempt failed.
pub enum Failure {
    /// Another attempt may do better.
    Temporary(BoxError),
    /// No attempt will.
    Permanent(String),
}

impl Failure {
    pub(crate) fn describe(&self) -> String {
        match self {
            Failure::Temporary(error) => describe(error.as_ref()),
            Failure::Permanent(reason) => storable(reason),
        }
    }
}

impl Delivery {
    pub(crate) fn published_at(&self) -> SystemTime {
        from_millis(self.published_ms)
    }

    pub(crate) fn decode<E: Event>(&self) -> Result<E, Failure> {
        let decoded = if self.version == E::VERSION {
            serde_json::from_str(&self.payload).map_err(BoxError::from)
        } else {
            serde_json::from_str(&self.payload)
                .map_err(BoxError::from)
                .and_then(|payload| E::upcast(self.version, payload))
        };
        decoded.map_err(|error| {
            Failure::Permanent(format!(
                "the payload of version {} does not decode as `{}` of version {}: {error}",
                self.version,
                E::NAME,
                E::VERSION
            ))
        })
    }

    pub(crate) fn context(&self) -> EventContext {
        EventContext {
            id: self.event_id,
            version: self.version,
            published_at: self.published_at(),
            position: self.position.map(i64::unsigned_abs),
            attempt: self.attempt,
            subscription: self.subscription.clone(),
        }
    }
}

/// A time from a database's milliseconds since 1970.
pub(crate) fn from_millis(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
