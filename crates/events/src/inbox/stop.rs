use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::Inbox;
use crate::{
    Backend,
    backends::{Counted, Fate},
    error::describe,
    retry::Trouble,
    subscription::{Delivery, Held},
};

impl<B: Backend> Inbox<'_, B> {
    /// Ends what runs, within the grace, and gives back the rest.
    pub(super) async fn stop(mut self) {
        let deadline = Instant::now() + self.bus.config().grace;
        self.give_back_waiting().await;
        let mut trouble = Trouble::default();
        loop {
            let written = match self.settle().await {
                Ok(()) => self.renew().await,
                error => error,
            };
            let again = match written {
                Ok(()) if self.deliveries.is_empty() && self.ranges.is_empty() => return,
                Ok(()) => self.next_renewal,
                Err(error) => {
                    warn!(error = describe(&error), "the stop waits for the database");
                    Instant::now() + trouble.pause()
                }
            };
            select! {
                Some(ended) = self.running.join_next() => {
                    self.ended(ended);
                    // Such as a batch that could not begin, or what waited behind this one.
                    self.give_back_waiting().await;
                }
                () = sleep_until(deadline) => break,
                () = sleep_until(again) => {}
            }
        }
        self.running.shutdown().await;
        let left: usize = self.ranges.values().map(|range| range.left.len()).sum();
        warn!(events = left + self.deliveries.len(), "the grace is over: what did not end is given back");
        let mut ranges: Vec<_> = self.ranges.drain().collect();
        ranges.sort_unstable_by_key(|(lease, _)| *lease);
        for (lease, range) in ranges {
            let positions: Vec<i64> = range.left.into_iter().collect();
            let split = self.bus.store().split(lease, &positions);
            if let Err(error) = self.bus.in_time("give back events", split).await {
                return warn!(error = describe(&error), "events come again when their leases run out");
            }
        }
        self.release(self.deliveries.keys().copied().collect()).await;
    }

    /// Gives back what has not begun.
    async fn give_back_waiting(&mut self) {
        let mut waiting: Vec<Delivery> = Vec::new();
        // In order, nothing is given back while something that comes before it may still run.
        for lane in self.lanes.iter_mut().filter(|lane| !lane.is_ordered() || lane.running == 0) {
            let before = waiting.len();
            waiting.extend(lane.queue.drain(..));
            waiting.extend(lane.batches.drain(..).flatten());
            let events = waiting[before..].iter().filter(|delivery| matches!(delivery.held, Held::Range(_)));
            lane.held -= events.count() as u32;
        }
        let mut keys = Vec::new();
        for delivery in &waiting {
            match delivery.held {
                Held::Row { id, lease } => keys.push((id, lease)),
                Held::Range(lease) => {
                    self.unsettled.set_aside(delivery, 0, Fate::Ready);
                    self.left(lease, delivery, false);
                }
            }
        }
        self.release(keys).await;
    }

    /// Gives back deliveries with the attempts that they had had when they were taken.
    async fn release(&mut self, keys: Vec<(i64, i64)>) {
        let counted: Vec<Counted> = keys
            .iter()
            .filter_map(|key| self.deliveries.get(key).map(|(_, attempts)| (*key, *attempts)))
            .collect();
        if counted.is_empty() {
            return;
        }
        if let Err(error) = self.bus.in_time("give back deliveries", self.bus.store().release(&counted)).await
        {
            warn!(error = describe(&error), "deliveries come again when their leases run out");
        }
        for key in keys {
            if let Some((lane, _)) = self.deliveries.remove(&key) {
                self.lanes[lane].held -= 1;
            }
        }
    }
}
