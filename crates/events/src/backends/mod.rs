use std::{future::Future, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    Error, EventId,
    subscription::{Begun, Delivery, Failure},
};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
#[cfg(test)]
mod tests;

/// A database that can hold a bus. Sealed: the conformance suite that holds them to the same behaviour is ours.
pub trait Backend: Store {}

/// What a database must be able to do. Each function is one transaction.
///
/// A subscription reads the log by *ranges*: a process takes the next so many events under a lease, and the range is
/// one row until all of them have ended. What could not be handled in its range, because it failed or its process died,
/// becomes a *delivery*: a row of its own, with its attempts. A `key` is a delivery's id and the lease under which it is
/// held. Functions touch only what is still held under the lease they are given, and answer with what they touched.
///
/// An attempt of a delivery counts from [`begin`](Store::begin) on, before its handler runs and not when it is leased:
/// one that waits here until its lease runs out has not been attempted, and a handler that takes the process down has.
pub trait Store: Clone + Send + Sync + 'static {
    /// A handler that runs in a transaction of this database.
    type InTx: Clone + Send + Sync + 'static;

    fn migrate(&self) -> impl Future<Output = Result<(), Error>> + Send;
    /// Whether the tables are there.
    fn is_migrated(&self) -> impl Future<Output = Result<bool, Error>> + Send;
    /// Persists subscriptions; those that are new start at the position.
    fn register(&self, new: &[Registration]) -> impl Future<Output = Result<(), Error>> + Send;
    fn unregister(&self, name: &str) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Moves up to `limit` events from the outbox to the log.
    fn relay(&self, limit: u32) -> impl Future<Output = Result<Relayed, Error>> + Send;
    /// The last position of the log, the first that it still has, and when that one got there.
    fn ends(&self) -> impl Future<Output = Result<Ends, Error>> + Send;
    /// The first event of the log from `position` on: its position, and when it got there, in milliseconds since 1970.
    fn look(&self, position: i64) -> impl Future<Output = Result<Option<(i64, i64)>, Error>> + Send;
    /// Moves a subscription to after `position`; false when there is none of this name.
    fn seek(&self, name: &str, position: i64) -> impl Future<Output = Result<bool, Error>> + Send;
    /// Deletes the oldest events of the log, up to `limit`: those older than `age` that every subscription has passed,
    /// and those older than `hard_age` in any case.
    fn expire(
        &self,
        age: Duration,
        hard_age: Option<Duration>,
        limit: u32,
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Takes the next events of the log for a subscription.
    fn take(&self, want: &Take) -> impl Future<Output = Result<Taken, Error>> + Send;
    /// Renews the leases of ranges, of which everything before the position has ended; answers with the leases held.
    fn renew_ranges(
        &self,
        ranges: &[(i64, i64)],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    fn complete_ranges(&self, leases: &[i64]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    /// Takes events out of a range: they become deliveries or dead letters, once, however often this is called for
    /// want of an answer. False when the range was lost.
    fn set_aside(&self, lease: i64, aside: &[Aside]) -> impl Future<Output = Result<bool, Error>> + Send;
    /// Ends a range, of which these positions become deliveries that are ready. False when the range was lost.
    fn split(&self, lease: i64, positions: &[i64]) -> impl Future<Output = Result<bool, Error>> + Send;
    /// Handles a range's events, handler by handler, and ends the range in one transaction; false (and no effect) when
    /// the lease was lost. Says in `begun` when the handler begins.
    fn in_tx_range(
        &self,
        lease: i64,
        batches: Vec<(Self::InTx, Vec<Delivery>)>,
        begun: Begun,
    ) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Makes deliveries ready that waited for their retry, or were leased by one that did not renew, and deliveries of
    /// what is left of ranges whose leases ran out.
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
    /// Makes dead letters of deliveries, with the attempt and the error of each.
    fn bury(&self, dead: &[Burial]) -> impl Future<Output = Result<Vec<i64>, Error>> + Send;
    /// Counts the attempt, then runs the handler and completes the delivery in one transaction; false (and no effect)
    /// when the lease was lost. Says in `begun` when the handler begins.
    fn in_tx(
        &self,
        handler: &Self::InTx,
        key: (i64, i64),
        delivery: Delivery,
        begun: Begun,
    ) -> impl Future<Output = Result<bool, Failure>> + Send;

    fn dead_letters(
        &self,
        subscription: Option<&str>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, Error>> + Send;
    fn redeliver(&self, id: i64) -> impl Future<Output = Result<bool, Error>> + Send;
    fn redeliver_all(&self, subscription: &str) -> impl Future<Output = Result<u64, Error>> + Send;
    fn backlog(&self) -> impl Future<Output = Result<Backlog, Error>> + Send;
    fn positions(&self) -> impl Future<Output = Result<Vec<Lag>, Error>> + Send;
}

/// A subscription of one event, and after which position it starts when its name is new; none is the log's end.
pub struct Registration {
    pub(crate) name: String,
    pub(crate) event: String,
    pub(crate) after: Option<i64>,
}

/// What one round of the relay moved.
#[derive(Default)]
pub struct Relayed {
    /// How many of each event.
    pub(crate) events: Vec<(String, u64)>,
    /// There may be more.
    pub(crate) more: bool,
}

/// The ends of the log.
pub struct Ends {
    pub(crate) last: i64,
    pub(crate) first: i64,
}

/// How many events of the log to take for whom.
#[derive(Clone)]
pub struct Take {
    pub(crate) subscription: Arc<str>,
    pub(crate) count: u32,
    pub(crate) lease: Duration,
    pub(crate) owner: Uuid,
    pub(crate) ordered: bool,
    /// The leases of the subscription's ranges that this process holds. In order, nothing is taken while there is a
    /// range beside them: of another process, or one whose taker never got the answer.
    pub(crate) known: Vec<i64>,
}

/// What was taken.
#[derive(Default)]
pub struct Taken {
    pub(crate) lease: i64,
    pub(crate) deliveries: Vec<Delivery>,
    /// How many positions of the log are left.
    pub(crate) lag: u64,
}

/// An event that leaves its range.
#[derive(Clone)]
pub struct Aside {
    pub(crate) position: i64,
    pub(crate) attempts: u32,
    pub(crate) fate: Fate,
}

/// What becomes of it.
#[derive(Clone)]
pub(crate) enum Fate {
    /// A delivery that waits for its turn.
    Ready,
    /// A delivery that is tried again after a while.
    Retry(Duration, String),
    Dead(String),
}

/// How many deliveries of what to lease.
#[derive(Clone)]
pub struct Want {
    pub(crate) subscription: Arc<str>,
    pub(crate) event: String,
    pub(crate) count: u32,
    pub(crate) ordered: bool,
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

/// A delivery that is given up.
pub struct Burial {
    pub(crate) key: (i64, i64),
    pub(crate) attempts: u32,
    pub(crate) error: String,
}

/// An event that was given up by a subscription, and why.
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
    /// The failed attempts, oldest first: the first one and the last 19.
    pub errors: Vec<Attempt>,
    /// When the event was published.
    #[serde(with = "humantime_serde")]
    pub published_at: std::time::SystemTime,
    /// When it was given up.
    #[serde(with = "humantime_serde")]
    pub died_at: std::time::SystemTime,
}

/// An attempt that failed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Attempt {
    /// Which it was, from 1.
    pub attempt: u32,
    /// When it ended, in milliseconds since 1970, by the database's clock.
    pub at: i64,
    /// Why.
    pub error: String,
}

/// How much waits in a bus.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Backlog {
    /// Events that were published and are not yet in the log.
    pub outbox: u64,
    /// Events that wait, run or are tried again, once for each subscription.
    pub deliveries: u64,
    /// Dead letters.
    pub dead: u64,
}

/// How far a subscription has come.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Lag {
    /// The subscription's name.
    pub subscription: String,
    /// The position up to which events were taken.
    pub position: u64,
    /// How many positions of the log come after that, whatever their events.
    pub behind: u64,
    /// Ranges of events that are being handled.
    pub ranges: u64,
    /// Events that are to be tried again, or wait behind such a one.
    pub retrying: u64,
    /// Dead letters.
    pub dead: u64,
}

/// How many positions one look at the log passes at most, so that a subscription to rare events does not read through
/// all of it in one transaction.
pub(crate) const WINDOW: i64 = 20_000;

/// A number that the database keeps in 64 signed bits.
pub(crate) fn unsigned(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX })
}

/// Milliseconds as databases take them: at most some thirty years, so that a sum with the time of day cannot overflow.
pub(crate) fn millis(duration: Duration) -> i64 {
    const MOST: i64 = 1_000_000_000_000;
    i64::try_from(duration.as_millis()).map_or(MOST, |millis| millis.min(MOST))
}

/// The names in deliveries, each made once and shared.
pub(crate) struct Names {
    subscription: Arc<str>,
    events: Vec<Arc<str>>,
}

impl Names {
    pub(crate) fn new(subscription: &Arc<str>) -> Names {
        Names { subscription: Arc::clone(subscription), events: Vec::new() }
    }

    pub(crate) fn subscription(&self) -> &Arc<str> {
        &self.subscription
    }

    pub(crate) fn event(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.events.iter().find(|known| ***known == *name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        self.events.push(Arc::clone(&name));
        name
    }
}
