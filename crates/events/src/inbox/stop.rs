use tokio::{
    select,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::Inbox;
use crate::{
    Backend,
    backends::Counted,
    error::describe,
    retry::Trouble,
    subscription::{Delivery, Held},
};

impl<B: Backend> Inbox<'_, B> {
    /// Ends what runs, within the grace, and gives back the rest.
    pub(super) async fn stop(mut self) {
        let deadline = Instant::now() + self.bus.config().grace;
        let mut trouble = Trouble::default();
        loop {
            let written = match self.settle().await {
                Ok(()) => self.renew().await,
                error => error,
            };
            // Also what became free to be given back by what has just ended: a batch that could not begin, or what
            // waited in order.
            if self.give_back_waiting().await {
                continue;
            }
            let again = match written {
                Ok(()) if self.deliveries.is_empty() && self.ranges.is_empty() => return,
                Ok(()) => self.next_renewal,
                Err(error) => {
                    warn!(error = describe(&error), "the stop waits for the database");
                    Instant::now() + trouble.pause()
                }
            };
            select! {
                Some(ended) = self.running.join_next() => self.ended(ended),
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
            // What left it and could not be written down would otherwise go with it.
            let mut positions = self.unsettled.aside_of(lease);
            positions.extend(range.left);
            let split = self.bus.store().split(lease, &positions);
            if let Err(error) = self.bus.in_time("give back events", split).await {
                return warn!(error = describe(&error), "events come again when their leases run out");
            }
        }
        self.release(self.deliveries.keys().copied().collect()).await;
    }

    /// Gives back what has not begun; false when there was nothing.
    async fn give_back_waiting(&mut self) -> bool {
        let (mut events, mut rows) = (Vec::new(), Vec::new());
        // In order, nothing is given back while something that comes before it may still run.
        for lane in self.lanes.iter_mut().filter(|lane| !lane.is_ordered() || lane.running == 0) {
            events.extend(lane.drain_events());
            rows.extend(lane.queue.drain(..));
        }
        let any = !events.is_empty() || !rows.is_empty();
        events.iter().for_each(|event| self.give_back(event));
        let key = |row: &Delivery| match row.held {
            Held::Row { id, lease } => Some((id, lease)),
            Held::Range(_) => None,
        };
        self.release(rows.iter().filter_map(key).collect()).await;
        any
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
