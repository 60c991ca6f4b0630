use std::collections::HashSet;

use metrics::counter;
use tracing::{error, info, warn};

use super::attempt::Outcome;
use crate::{
    Backend, Bus, Error,
    backends::Retry,
    retry,
    subscription::{Delivery, Subscription},
    telemetry,
};

/// What ended and is still to be written down, in batches of one kind.
#[derive(Default)]
pub(super) struct Unsettled {
    handled: Vec<(i64, i64)>,
    retries: Vec<Retry>,
    dead: Vec<((i64, i64), String)>,
}

/// A delivery that no longer is this process's, and the outcome it counts under.
pub(super) type Settled = ((i64, i64), &'static str);

impl Unsettled {
    pub(super) fn is_empty(&self) -> bool {
        self.handled.is_empty() && self.retries.is_empty() && self.dead.is_empty()
    }

    /// Notes an outcome; answers when nothing is left to be written.
    pub(super) fn note<B: Backend>(
        &mut self,
        subscription: &Subscription<B>,
        delivery: &Delivery,
        outcome: Outcome,
    ) -> Option<Settled> {
        let key = delivery.key();
        let (name, event, id, attempt) =
            (&delivery.subscription, &delivery.event, delivery.event_id, delivery.attempt);
        match outcome {
            Outcome::Handled => self.handled.push(key),
            Outcome::Committed => return Some((key, "completed")),
            Outcome::Lost => return Some((key, "lost")),
            Outcome::Failed(error) if attempt < subscription.config.max_attempts => {
                let config = &subscription.config;
                let delay = retry::delay(attempt, config.retry_min, config.retry_max);
                info!(subscription = name, event, event_id = %id, attempt, error, ?delay, "an attempt failed");
                self.retries.push(Retry { key, attempts: attempt, delay, error });
            }
            Outcome::Unbegun(error) => {
                let config = &subscription.config;
                let delay = retry::delay(attempt, config.retry_min, config.retry_max);
                warn!(subscription = name, event, event_id = %id, error, ?delay, "an attempt could not begin");
                self.retries.push(Retry { key, attempts: attempt.saturating_sub(1), delay, error });
            }
            Outcome::Failed(error) | Outcome::Hopeless(error) => {
                error!(subscription = name, event, event_id = %id, attempt, error, "a dead letter");
                self.dead.push((key, error));
            }
        }
        None
    }

    /// Writes everything down. What an error kept from it stays for the next call.
    pub(super) async fn write<B: Backend>(
        &mut self,
        bus: &Bus<B>,
        settled: &mut Vec<Settled>,
    ) -> Result<(), Error> {
        if !self.handled.is_empty() {
            let held = bus.in_time("complete deliveries", bus.store().complete(&self.handled)).await?;
            settle(self.handled.drain(..), held, "completed", settled);
        }
        if !self.retries.is_empty() {
            let held = bus.in_time("postpone deliveries", bus.store().postpone(&self.retries)).await?;
            settle(self.retries.drain(..).map(|retry| retry.key), held, "retried", settled);
        }
        if !self.dead.is_empty() {
            let held = bus.in_time("store dead letters", bus.store().bury(&self.dead)).await?;
            settle(self.dead.drain(..).map(|(key, _)| key), held, "dead", settled);
        }
        Ok(())
    }
}

fn settle(
    keys: impl Iterator<Item = (i64, i64)>,
    held: Vec<i64>,
    outcome: &'static str,
    settled: &mut Vec<Settled>,
) {
    let held: HashSet<i64> = held.into_iter().collect();
    settled.extend(keys.map(|key| (key, if held.contains(&key.0) { outcome } else { "lost" })));
}

/// Counts an ended attempt.
pub(super) fn count(subscription: &str, outcome: &'static str) {
    if outcome == "lost" {
        warn!(subscription, "a lease ran out before its handler ended: another attempt decides");
    }
    let name = subscription.to_owned();
    counter!(telemetry::HANDLED, telemetry::SUBSCRIPTION => name, telemetry::OUTCOME => outcome).increment(1);
}
