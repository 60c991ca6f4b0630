//! What comes in, and begins.

use std::collections::HashSet;

use metrics::gauge;

use super::{
    Ended, Inbox,
    attempt::{Outcome, attempt, attempt_batch},
    lane::Range,
};
use crate::{
    Backend, Error,
    backends::{Counted, Take, Want},
    subscription::{Delivery, Handler, Held, Subscription},
    telemetry,
};

impl<B: Backend> Inbox<'_, B> {
    /// Leases deliveries.
    pub(super) async fn claim(&mut self) -> Result<(), Error> {
        let mut wants = Vec::new();
        for lane in self.lanes.iter().filter(|lane| lane.look_deliveries && lane.room() > 0) {
            wants.extend(lane.handlers().iter().map(|handler| Want {
                subscription: lane.name.clone(),
                event: handler.event.clone(),
                count: lane.room(),
                ordered: lane.is_ordered(),
            }));
        }
        if wants.is_empty() {
            return Ok(());
        }
        let claim = self.bus.store().claim(&wants, self.bus.config().lease);
        let deliveries = self.bus.in_time("take deliveries", claim).await?;
        let mut taken = vec![0; self.lanes.len()];
        for delivery in deliveries {
            let Some(index) = self.lanes.iter().position(|lane| lane.name == delivery.subscription) else {
                continue;
            };
            let Held::Row { id, lease } = delivery.held else { continue };
            taken[index] += 1;
            self.deliveries.insert((id, lease), (index, delivery.attempt.saturating_sub(1)));
            self.lanes[index].queue.push_back(delivery);
        }
        for (lane, taken) in self.lanes.iter_mut().zip(taken) {
            if lane.look_deliveries && lane.room() > 0 {
                lane.look_deliveries = taken >= lane.room();
                lane.held += taken;
            }
        }
        Ok(())
    }

    /// Takes events of the log.
    pub(super) async fn take(&mut self) -> Result<(), Error> {
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if !lane.look_log || lane.room() == 0 {
                continue;
            }
            let want = Take {
                subscription: lane.name.clone(),
                count: lane.room(),
                lease: self.bus.config().lease,
                owner: self.bus.owner(),
                ordered: lane.is_ordered(),
                known: self
                    .ranges
                    .iter()
                    .filter(|(_, held)| held.lane == index)
                    .map(|(lease, _)| *lease)
                    .collect(),
            };
            let taken = self.bus.in_time("take events", self.bus.store().take(&want)).await?;
            gauge!(telemetry::LAG, telemetry::SUBSCRIPTION => lane.name.to_string()).set(taken.lag as f64);
            lane.look_log = taken.lag > 0;
            if taken.deliveries.is_empty() {
                continue;
            }
            self.ranges.insert(taken.lease, Range::new(index, &taken.deliveries));
            let in_tx = lane
                .in_tx()
                .filter(|_| taken.deliveries.iter().all(|delivery| lane.handler(&delivery.event).is_some()));
            let Some(in_tx) = in_tx else {
                // Others may have a handler for what we have none for.
                let positions = taken.deliveries.iter().filter_map(|delivery| delivery.position).collect();
                self.unsettled.note_split(taken.lease, positions);
                continue;
            };
            lane.held += taken.deliveries.len() as u32;
            if in_tx {
                lane.batches.push_back(taken.deliveries);
            } else {
                lane.queue.extend(taken.deliveries);
            }
        }
        Ok(())
    }

    /// Begins what there is room for.
    pub(super) async fn start(&mut self) -> Result<(), Error> {
        for index in 0..self.lanes.len() {
            while let Some(batch) = self.lanes[index].next_batch() {
                self.spawn_batch(index, batch);
            }
        }
        loop {
            let mut picked = Vec::new();
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                picked.extend(std::iter::from_fn(|| lane.next()).map(|delivery| (index, delivery)));
            }
            let lost = self.count_attempts(&mut picked).await?;
            for (index, delivery) in picked {
                self.spawn(index, delivery);
            }
            // Where one is lost, the next in the queue takes its place.
            if !lost {
                return Ok(());
            }
        }
    }

    fn spawn_batch(&mut self, index: usize, batch: Vec<Delivery>) {
        let lane = &self.lanes[index];
        let mut calls: Vec<(B::InTx, Vec<Delivery>)> = Vec::new();
        for run in batch.chunk_by(|one, next| one.event == next.event) {
            if let Some(Handler::InTx(handler)) = lane.handler(&run[0].event).map(|found| &found.handler) {
                calls.push((handler.clone(), run.to_vec()));
            }
        }
        let Held::Range(lease) = batch[0].held else { return };
        let (bus, first) = (self.bus.clone(), lane.handlers()[0].clone());
        self.running.spawn(async move {
            let outcome = attempt_batch(bus, first, lease, calls).await;
            Ended::Batch(index, batch, outcome)
        });
    }

    fn spawn(&mut self, index: usize, mut delivery: Delivery) {
        let Some(subscription) = self.lanes[index].handler(&delivery.event).cloned() else { return };
        let (bus, spent) = (self.bus.clone(), is_spent(&subscription, &delivery));
        self.running.spawn(async move {
            // Each attempt so far ended without an outcome: do not let it take another process down.
            let outcome = if spent {
                delivery.attempt -= 1;
                Outcome::Hopeless("the process died or lost its lease during the last attempt".into())
            } else {
                attempt(bus, subscription, delivery.clone()).await
            };
            Ended::One(index, delivery, outcome)
        });
    }

    /// Counts the attempts of deliveries that are about to begin, and drops those that are held no longer; true when
    /// there were such. Handlers in a transaction are not among them: they may have to wait for it, so they are counted
    /// when they have a connection. Nor are events of a range: they have had none before.
    async fn count_attempts(&mut self, picked: &mut Vec<(usize, Delivery)>) -> Result<bool, Error> {
        let mut beginning: Vec<Counted> = Vec::new();
        for (index, delivery) in picked.iter() {
            let Some(subscription) = self.lanes[*index].handler(&delivery.event) else { continue };
            let counts =
                matches!(subscription.handler, Handler::AtLeastOnce(_)) && !is_spent(subscription, delivery);
            if let (Held::Row { id, lease }, true) = (delivery.held, counts) {
                beginning.push(((id, lease), delivery.attempt));
            }
        }
        if beginning.is_empty() {
            return Ok(false);
        }
        let held = match self.bus.in_time("begin attempts", self.bus.store().begin(&beginning)).await {
            Ok(held) => HashSet::<i64>::from_iter(held),
            Err(error) => {
                for (index, delivery) in picked.drain(..).rev() {
                    self.lanes[index].put_back(delivery);
                }
                return Err(error);
            }
        };
        let lost: HashSet<_> =
            beginning.into_iter().map(|(key, _)| key).filter(|(id, _)| !held.contains(id)).collect();
        picked.retain(|(index, delivery)| {
            let Held::Row { id, lease } = delivery.held else { return true };
            let keep = !lost.contains(&(id, lease));
            if !keep {
                self.deliveries.remove(&(id, lease));
                self.lanes[*index].ended(delivery);
                self.lanes[*index].held -= 1;
            }
            keep
        });
        Ok(!lost.is_empty())
    }
}

/// Whether the delivery has had all its attempts, the last of which ended without an outcome.
fn is_spent<B: Backend>(subscription: &Subscription<B>, delivery: &Delivery) -> bool {
    delivery.attempt > subscription.config.max_attempts
}
