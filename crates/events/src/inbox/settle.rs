use std::collections::{BTreeMap, HashSet, VecDeque};

use metrics::counter;
use tracing::{error, info, warn};

use super::attempt::Outcome;
use crate::{
    Backend, Bus, Error,
    backends::{Aside, Burial, Fate, Retry},
    retry,
    subscription::{Delivery, Held, Subscription},
    telemetry,
};

/// What ended and is still to be written down, in batches of one kind.
#[derive(Default)]
pub(super) struct Unsettled {
    handled: Vec<(i64, i64)>,
    retries: Vec<Retry>,
    dead: Vec<Burial>,
    /// By the lease of the range that they leave. Written in the order of leases, which is that of positions: what waits
    /// behind another in order must not be there without it.
    asides: BTreeMap<i64, Vec<Aside>>,
    /// Ranges of which nothing is left.
    ended: Vec<i64>,
    /// Ranges to be split, in this order.
    splits: VecDeque<(i64, Vec<i64>)>,
}

/// What is no longer this process's, and the outcome it counts under.
pub(super) enum Settled {
    Delivery((i64, i64), &'static str),
    /// So many events of a range, which goes on.
    Events(i64, u64, &'static str),
    /// A range, with the events that were handled.
    Range(i64, &'static str),
}

impl Unsettled {
    pub(super) fn is_empty(&self) -> bool {
        self.handled.is_empty()
            && self.retries.is_empty()
            && self.dead.is_empty()
            && self.asides.is_empty()
            && self.ended.is_empty()
            && self.splits.is_empty()
    }

    /// Notes how an attempt with a delivery ended that is not a range's.
    pub(super) fn note<B: Backend>(
        &mut self,
        subscription: &Subscription<B>,
        delivery: &Delivery,
        key: (i64, i64),
        outcome: Outcome,
    ) -> Option<Settled> {
        let attempts = delivery.attempt;
        match outcome {
            Outcome::Handled => self.handled.push(key),
            Outcome::Committed => return Some(Settled::Delivery(key, "completed")),
            Outcome::Lost => return Some(Settled::Delivery(key, "lost")),
            Outcome::Unbegun(error) => {
                let config = &subscription.config;
                let delay = retry::delay(attempts, config.retry_min, config.retry_max);
                let (name, id) = (&*delivery.subscription, delivery.event_id);
                warn!(subscription = name, event = &*delivery.event, event_id = %id, error, ?delay, "an attempt could not begin");
                self.retries.push(Retry { key, attempts: attempts.saturating_sub(1), delay, error });
            }
            failed => match fate(subscription, delivery, failed) {
                Fate::Retry(delay, error) => self.retries.push(Retry { key, attempts, delay, error }),
                Fate::Dead(error) => self.dead.push(Burial { key, attempts, error }),
                Fate::Ready => {}
            },
        }
        None
    }

    /// Notes that an attempt with an event of a range failed.
    pub(super) fn note_failed<B: Backend>(
        &mut self,
        subscription: &Subscription<B>,
        delivery: &Delivery,
        failed: Outcome,
    ) {
        let fate = fate(subscription, delivery, failed);
        self.set_aside(delivery, delivery.attempt, fate);
    }

    /// Notes that an event of a range is to become a delivery.
    pub(super) fn set_aside(&mut self, delivery: &Delivery, attempts: u32, fate: Fate) {
        if let (Held::Range(lease), Some(position)) = (delivery.held, delivery.position) {
            self.asides.entry(lease).or_default().push(Aside { position, attempts, fate });
        }
    }

    /// The positions that have left a range and are not written down.
    pub(super) fn aside_of(&self, lease: i64) -> Vec<i64> {
        self.asides.get(&lease).into_iter().flatten().map(|aside| aside.position).collect()
    }

    /// Notes that nothing is left of a range.
    pub(super) fn note_ended(&mut self, lease: i64) {
        self.ended.push(lease);
    }

    pub(super) fn note_split(&mut self, lease: i64, positions: Vec<i64>) {
        self.splits.push_back((lease, positions));
    }

    /// Writes everything down. What an error kept from it stays for the next call.
    pub(super) async fn write<B: Backend>(
        &mut self,
        bus: &Bus<B>,
        settled: &mut Vec<Settled>,
    ) -> Result<(), Error> {
        let store = bus.store();
        if !self.handled.is_empty() {
            let held = bus.in_time("complete deliveries", store.complete(&self.handled)).await?;
            settle(self.handled.drain(..), held, "completed", settled);
        }
        if !self.retries.is_empty() {
            let held = bus.in_time("postpone deliveries", store.postpone(&self.retries)).await?;
            settle(self.retries.drain(..).map(|retry| retry.key), held, "retried", settled);
        }
        if !self.dead.is_empty() {
            let held = bus.in_time("store dead letters", store.bury(&self.dead)).await?;
            settle(self.dead.drain(..).map(|burial| burial.key), held, "dead", settled);
        }
        while let Some((&lease, asides)) = self.asides.first_key_value() {
            let held = bus.in_time("set events aside", store.set_aside(lease, asides)).await?;
            let retried = asides.iter().filter(|aside| matches!(aside.fate, Fate::Retry(..))).count() as u64;
            let dead = asides.iter().filter(|aside| matches!(aside.fate, Fate::Dead(_))).count() as u64;
            settled.push(Settled::Events(lease, retried, if held { "retried" } else { "lost" }));
            settled.push(Settled::Events(lease, dead, if held { "dead" } else { "lost" }));
            self.asides.pop_first();
        }
        // After what was set aside, which would come again with a range that is not ended.
        if !self.ended.is_empty() {
            let held = bus.in_time("complete events", store.complete_ranges(&self.ended)).await?;
            let outcome = |lease: &i64| if held.contains(lease) { "completed" } else { "lost" };
            settled.extend(self.ended.drain(..).map(|lease| Settled::Range(lease, outcome(&lease))));
        }
        while let Some((lease, positions)) = self.splits.front() {
            bus.in_time("give back events", store.split(*lease, positions)).await?;
            settled.push(Settled::Range(*lease, "completed"));
            self.splits.pop_front();
        }
        Ok(())
    }
}

/// What becomes of an event whose attempt failed.
fn fate<B: Backend>(subscription: &Subscription<B>, delivery: &Delivery, failed: Outcome) -> Fate {
    let Delivery { subscription: name, event, event_id: id, attempt, .. } = delivery;
    let (name, event) = (&**name, &**event);
    match failed {
        Outcome::Failed(error) | Outcome::Unbegun(error) if *attempt < subscription.config.max_attempts => {
            let config = &subscription.config;
            let delay = retry::delay(*attempt, config.retry_min, config.retry_max);
            info!(subscription = name, event, event_id = %id, attempt, error, ?delay, "an attempt failed");
            Fate::Retry(delay, error)
        }
        Outcome::Failed(error) | Outcome::Hopeless(error) | Outcome::Unbegun(error) => {
            error!(subscription = name, event, event_id = %id, attempt, error, "a dead letter");
            Fate::Dead(error)
        }
        Outcome::Handled | Outcome::Committed | Outcome::Lost => Fate::Ready,
    }
}

fn settle(
    keys: impl Iterator<Item = (i64, i64)>,
    held: Vec<i64>,
    outcome: &'static str,
    settled: &mut Vec<Settled>,
) {
    let held: HashSet<i64> = held.into_iter().collect();
    settled
        .extend(keys.map(|key| Settled::Delivery(key, if held.contains(&key.0) { outcome } else { "lost" })));
}

/// Counts attempts that ended.
pub(super) fn count(subscription: &str, attempts: u64, outcome: &'static str) {
    if attempts == 0 {
        return;
    }
    if outcome == "lost" {
        warn!(subscription, attempts, "a lease ran out before its handlers ended: another attempt decides");
    }
    let name = subscription.to_owned();
    counter!(telemetry::HANDLED, telemetry::SUBSCRIPTION => name, telemetry::OUTCOME => outcome)
        .increment(attempts);
}
