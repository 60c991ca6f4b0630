use std::{future::Future, time::Duration};

use serde::Serialize;

use crate::{
    Error, EventId,
    subscription::{Begun, Delivery, Failure},
};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

/// A database that can hold a bus. Sealed: the conformance suite that holds them to the same behaviour is ours.
pub trait Backend: Store {}

/// What a database must be able to do. Each function is one transaction.
///
/// A `key` is a delivery's id and the lease under which it is held. Functions that take keys touch only what is still
/// held so, and answer with the ids they touched.
///
/// An attempt counts from [`begin`](Store::begin) on, before its handler runs and not when its delivery is leased: a
/// delivery that waits here until its lease runs out has not been attempted, and a handler that takes the process down
/// has.
pub trait Store: Clone + Send + Sync + 'static {
    /// A handler that runs in a transaction of this database.
    type InTx: Clone + Send + Sync + 'static;

    fn migrate(&self) -> impl Future<Output = Result<(), Error>> + Send;
    /// Whether the tables are there.
    fn is_migrated(&self) -> impl Future<Output = Result<bool, Error>> + Send;
    /// Persists (name, event) pairs.
    fn register(&self, pairs: &[(String, String)]) -> impl Future<Output = Result<(), Error>> + Send;
    fn unregister(&self, name: &str) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Moves up to `limit` events from the outbox to their subscriptions.
    fn relay(&self, limit: u32) -> impl Future<Output = Result<Relayed, Error>> + Send;

    /// Makes ready what waited for its retry, and what was leased by one that did not renew.
    fn ready_due(&self) -> impl Future<Output = Result<(), Error>> + Send;
    /// Leases ready deliveries, oldest first.
    fn claim(
        &self,
        wants: &[Want],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Delivery>, Error>> + Send;
    fn renew(
        &self,
        keys: &[(i64, i64)],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    fn complete(&self, keys: &[(i64, i64)]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    /// Counts attempts that are about to begin.
    fn begin(&self, deliveries: &[Counted]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    /// Gives back what was not attempted to its end: at once.
    fn release(&self, deliveries: &[Counted]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    fn postpone(&self, retries: &[Retry]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    /// Makes dead letters of deliveries, with the error of each.
    fn bury(&self, dead: &[((i64, i64), String)]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;

    /// Counts the attempt, then runs the handler and completes the delivery in one transaction; false (and no effect)
    /// when the lease was lost. Says in `begun` when the handler begins.
    fn in_tx(
        &self,
        handler: &Self::InTx,
        delivery: Delivery,
        begun: Begun,
    ) -> impl Future<Output = Result<bool, Failure>> + Send;

    fn dead_letters(
        &self,
        subscription: Option<&str>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, Error>> + Send;
    fn redeliver(&self, id: i64) -> impl Future<Output = Result<bool, Error>> + Send;
    fn backlog(&self) -> impl Future<Output = Result<Backlog, Error>> + Send;
}

/// What one round of the relay moved.
#[derive(Default)]
pub struct Relayed {
    /// How many of each event.
    pub(crate) events: Vec<(String, u64)>,
    pub(crate) deliveries: u64,
}

/// How many deliveries of what to lease.
pub struct Want {
    pub(crate) subscription: String,
    pub(crate) event: String,
    pub(crate) count: u32,
}

/// A delivery's key, and how many attempts it has had.
pub(crate) type Counted = ((i64, i64), u32);

/// A delivery that is to come again.
pub struct Retry {
    pub(crate) key: (i64, i64),
    pub(crate) attempts: u32,
    pub(crate) delay: Duration,
    pub(crate) error: String,
}

/// A delivery that was given up, and why.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Names it for [`Bus::redeliver`](crate::Bus::redeliver).
    pub id: i64,
    /// The subscription that gave it up.
    pub subscription: String,
    /// The event's name.
    pub event: String,
    /// The event's id.
    pub event_id: EventId,
    /// The version with which the event was published.
    pub version: u32,
    /// The event as JSON.
    pub payload: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The last attempt's error.
    pub error: String,
    /// When the event was published.
    #[serde(with = "humantime_serde")]
    pub published_at: std::time::SystemTime,
    /// When it was given up.
    #[serde(with = "humantime_serde")]
    pub died_at: std::time::SystemTime,
}

/// How much waits in a bus.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Backlog {
    /// Events that were published and not yet relayed.
    pub outbox: u64,
    /// Deliveries that are ready, running or waiting for a retry.
    pub deliveries: u64,
    /// Dead letters.
    pub dead: u64,
}

/// A number that the database keeps in 64 signed bits.
pub(crate) fn unsigned(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX })
}

/// Milliseconds as databases take them: at most some thirty years, so that a sum with the time of day cannot overflow.
pub(crate) fn millis(duration: Duration) -> i64 {
    const MOST: i64 = 1_000_000_000_000;
    i64::try_from(duration.as_millis()).map_or(MOST, |millis| millis.min(MOST))
}
