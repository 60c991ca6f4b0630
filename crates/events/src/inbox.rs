//! The receiving side: takes events of the log and deliveries for the handlers of this process, runs them, and settles
//! what came of it.

pub(crate) mod attempt;
mod intake;
mod lane;
mod settle;
mod stop;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::{
    select,
    sync::Notify,
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::{
    attempt::Outcome,
    lane::{Lane, Range},
    settle::{Settled, Unsettled, count},
};
use crate::{
    Backend, Bus, Error,
    backends::Fate,
    error::describe,
    retry::{Trouble, jittered},
    subscription::{Delivery, Held},
};

/// How often a range that is handled event by event says how far it is, so that a killed process repeats little.
const PROGRESS: Duration = Duration::from_secs(1);

/// The pause before a batch whose transaction could not begin.
const UNBEGUN_PAUSE: Duration = Duration::from_millis(500);

/// What ended, in which lane.
enum Ended {
    One(usize, Delivery, Outcome),
    Batch(usize, Vec<Delivery>, Outcome),
}

struct Inbox<'a, B: Backend> {
    bus: &'a Bus<B>,
    lanes: Vec<Lane<B>>,
    /// How many of the bus's handlers are in lanes.
    known: usize,
    running: JoinSet<Ended>,
    /// By lease.
    ranges: HashMap<i64, Range>,
    /// The key of each leased delivery, its lane, and how many attempts it has had before.
    deliveries: HashMap<(i64, i64), (usize, u32)>,
    unsettled: Unsettled,
    next_look: Instant,
    next_renewal: Instant,
    next_progress: Instant,
}

/// Delivers until cancelled, then ends what runs.
pub(crate) async fn run<B: Backend>(bus: &Bus<B>, arrived: &Notify, cancel: &CancellationToken) {
    let mut inbox = Inbox::new(bus);
    let mut trouble = Trouble::default();
    while !cancel.is_cancelled() {
        if let Err(error) = inbox.round().await {
            let pause = trouble.pause();
            warn!(error = describe(&error), ?pause, "events wait for the database");
            select! {
                () = cancel.cancelled() => {}
                () = sleep(pause) => {}
            }
            continue;
        }
        trouble.over();
        if inbox.lanes.iter().any(Lane::wants) {
            continue;
        }
        let next_turn = inbox.next_turn();
        select! {
            () = cancel.cancelled() => {}
            Some(ended) = inbox.running.join_next() => inbox.ended(ended),
            () = arrived.notified() => inbox.look(false),
            () = sleep_until(next_turn) => {}
        }
    }
    inbox.stop().await;
}

impl<'a, B: Backend> Inbox<'a, B> {
    fn new(bus: &'a Bus<B>) -> Inbox<'a, B> {
        let now = Instant::now();
        Inbox {
            bus,
            lanes: Vec::new(),
            known: 0,
            running: JoinSet::new(),
            ranges: HashMap::new(),
            deliveries: HashMap::new(),
            unsettled: Unsettled::default(),
            next_look: now,
            next_renewal: now + bus.config().lease / 3,
            next_progress: now + PROGRESS,
        }
    }

    fn next_turn(&self) -> Instant {
        let next = self.next_look.min(self.next_renewal);
        self.lanes.iter().filter_map(|lane| lane.pause).fold(next, Instant::min)
    }

    /// One turn: everything that needs the database, then what it made possible.
    async fn round(&mut self) -> Result<(), Error> {
        self.adopt().await?;
        self.settle().await?;
        self.renew().await?;
        // What a lost lease sends back must be there before anything later is taken.
        self.settle().await?;
        if Instant::now() >= self.next_look {
            if !self.lanes.is_empty() {
                self.bus.in_time("look for due deliveries", self.bus.store().ready_due()).await?;
            }
            self.next_look = Instant::now() + jittered(self.bus.config().poll_interval);
            self.look(true);
        }
        self.claim().await?;
        self.take().await?;
        self.start().await
    }

    fn look(&mut self, for_deliveries: bool) {
        for lane in &mut self.lanes {
            lane.look_log = true;
            lane.look_deliveries |= for_deliveries;
        }
    }

    /// Takes up handlers that were added since.
    async fn adopt(&mut self) -> Result<(), Error> {
        let added = self.bus.subscriptions_after(self.known);
        if added.is_empty() {
            return Ok(());
        }
        self.bus.persist(&added).await?;
        self.known += added.len();
        for handler in added {
            match self.lanes.iter_mut().find(|lane| *lane.name == *handler.name) {
                Some(lane) => lane.add(handler),
                None => self.lanes.push(Lane::new(handler)),
            }
        }
        Ok(())
    }

    /// Collects every attempt that has ended, and writes the outcomes in batches.
    async fn settle(&mut self) -> Result<(), Error> {
        loop {
            while let Some(ended) = self.running.try_join_next() {
                self.ended(ended);
            }
            if self.unsettled.is_empty() {
                return Ok(());
            }
            let mut settled = Vec::new();
            let written = self.unsettled.write(self.bus, &mut settled).await;
            for settled in settled {
                self.settled(settled);
            }
            written?;
        }
    }

    fn ended(&mut self, ended: Result<Ended, JoinError>) {
        // An attempt catches its handler's panic, and only `stop` aborts one: there is always an outcome here.
        match ended {
            Ok(Ended::One(lane, delivery, outcome)) => self.ended_one(lane, &delivery, outcome),
            Ok(Ended::Batch(lane, batch, outcome)) => self.ended_batch(lane, batch, outcome),
            Err(_) => {}
        }
    }

    fn ended_one(&mut self, index: usize, delivery: &Delivery, outcome: Outcome) {
        let lane = &mut self.lanes[index];
        lane.ended(delivery);
        let Some(subscription) = lane.handler(&delivery.event).cloned() else { return };
        let lease = match delivery.held {
            Held::Row { id, lease } => {
                if let Some(settled) = self.unsettled.note(&subscription, delivery, (id, lease), outcome) {
                    self.settled(settled);
                }
                return;
            }
            Held::Range(lease) => lease,
        };
        lane.held -= 1;
        if !self.ranges.contains_key(&lease) {
            return count(&lane.name, 1, "lost");
        }
        if matches!(outcome, Outcome::Handled | Outcome::Committed) {
            return self.left(lease, delivery, true);
        }
        for behind in lane.behind(delivery) {
            self.unsettled.set_aside(&behind, 0, Fate::Ready);
            if let Held::Range(lease) = behind.held {
                self.left(lease, &behind, false);
            }
        }
        self.unsettled.note_failed(&subscription, delivery, outcome);
        self.left(lease, delivery, false);
    }

    /// An event has left its range, as one that was handled or not.
    fn left(&mut self, lease: i64, delivery: &Delivery, handled: bool) {
        let Some(range) = self.ranges.get_mut(&lease) else { return };
        if let Some(position) = delivery.position {
            range.left.remove(&position);
        }
        range.handled += u64::from(handled);
        if range.left.is_empty() {
            self.unsettled.note_ended(lease);
        }
    }

    fn ended_batch(&mut self, index: usize, batch: Vec<Delivery>, outcome: Outcome) {
        let lane = &mut self.lanes[index];
        lane.running -= 1;
        let Some(Held::Range(lease)) = batch.first().map(|delivery| delivery.held) else { return };
        let (name, events) = (lane.name.clone(), batch.len() as u64);
        if !self.ranges.contains_key(&lease) {
            lane.held -= batch.len() as u32;
            return count(
                &name,
                events,
                if matches!(outcome, Outcome::Committed) { "completed" } else { "lost" },
            );
        }
        if let Outcome::Unbegun(error) = &outcome {
            warn!(subscription = &*name, error, pause = ?UNBEGUN_PAUSE, "a batch could not begin");
            lane.pause = Some(Instant::now() + UNBEGUN_PAUSE);
            return lane.batches.push_front(batch);
        }
        lane.held -= batch.len() as u32;
        match outcome {
            Outcome::Failed(error) | Outcome::Hopeless(error) => {
                // No attempt of any of them: which one failed shows when each is handled alone.
                warn!(
                    subscription = &*name,
                    events, error, "a batch failed: its events are handled one by one"
                );
                let positions = batch.iter().filter_map(|delivery| delivery.position).collect();
                self.unsettled.note_split(lease, positions);
                // What comes later of the same keys must not be handled before them.
                let behind = if lane.is_ordered() { lane.batches.drain(..).collect() } else { Vec::new() };
                for batch in behind {
                    lane.held -= batch.len() as u32;
                    if let Some(Held::Range(lease)) = batch.first().map(|delivery| delivery.held) {
                        let positions = batch.iter().filter_map(|delivery| delivery.position).collect();
                        self.unsettled.note_split(lease, positions);
                    }
                }
            }
            Outcome::Committed => {
                self.ranges.remove(&lease);
                count(&name, events, "completed");
            }
            _ => {
                self.ranges.remove(&lease);
                count(&name, events, "lost");
                self.keep_order(index);
            }
        }
    }

    /// After a range of an ordered subscription was lost: what waits comes after it, and goes where it went, to be
    /// handled in order with it.
    fn keep_order(&mut self, index: usize) {
        if self.lanes[index].is_ordered() {
            for event in self.lanes[index].drain_events() {
                self.give_back(&event);
            }
        }
    }

    /// Takes an event that has not begun out of its range.
    fn give_back(&mut self, event: &Delivery) {
        if let Held::Range(lease) = event.held {
            self.unsettled.set_aside(event, 0, Fate::Ready);
            self.left(lease, event, false);
        }
    }

    fn settled(&mut self, settled: Settled) {
        match settled {
            Settled::Delivery(key, outcome) => {
                if let Some((lane, _)) = self.deliveries.remove(&key) {
                    self.lanes[lane].held -= 1;
                    // What waited behind it in order may begin.
                    self.lanes[lane].look_deliveries |= self.lanes[lane].is_ordered();
                    count(&self.lanes[lane].name, 1, outcome);
                }
            }
            Settled::Events(lease, events, outcome) => {
                if let Some(range) = self.ranges.get(&lease) {
                    count(&self.lanes[range.lane].name, events, outcome);
                }
            }
            Settled::Range(lease, outcome) => {
                if let Some(range) = self.ranges.remove(&lease) {
                    let lane = &mut self.lanes[range.lane];
                    lane.look_deliveries = true;
                    count(&lane.name, range.handled, outcome);
                    if outcome == "lost" {
                        self.keep_order(range.lane);
                    }
                }
            }
        }
    }

    /// Renews every lease in good time, and forgets what was lost and has not begun.
    async fn renew(&mut self) -> Result<(), Error> {
        let (now, lease) = (Instant::now(), self.bus.config().lease);
        let due = now >= self.next_renewal;
        if due || now >= self.next_progress && self.ranges.values().any(Range::has_progressed) {
            let ranges: Vec<(i64, i64)> =
                self.ranges.iter().map(|(lease, range)| (*lease, range.first_left())).collect();
            if !ranges.is_empty() {
                let renewed = self.bus.store().renew_ranges(&ranges, lease);
                let held: HashSet<i64> =
                    self.bus.in_time("renew leases", renewed).await?.into_iter().collect();
                let lost = self.ranges.extract_if(|lease, _| !held.contains(lease));
                let lost: HashSet<usize> = lost.map(|(_, range)| range.lane).collect();
                self.ranges.values_mut().for_each(Range::told);
                self.forget();
                lost.into_iter().for_each(|lane| self.keep_order(lane));
            }
            self.next_progress = now + PROGRESS;
        }
        if !due {
            return Ok(());
        }
        let keys: Vec<(i64, i64)> = self.deliveries.keys().copied().collect();
        if !keys.is_empty() {
            let held = self.bus.in_time("renew leases", self.bus.store().renew(&keys, lease)).await?;
            let held: HashSet<i64> = held.into_iter().collect();
            self.lose(keys.into_iter().filter(|(id, _)| !held.contains(id)));
        }
        self.next_renewal = now + lease / 3;
        Ok(())
    }

    /// Drops what waits of ranges that are held no longer. What runs is left to its end.
    fn forget(&mut self) {
        for lane in &mut self.lanes {
            lane.retain(|delivery| match delivery.held {
                Held::Range(lease) => self.ranges.contains_key(&lease),
                Held::Row { .. } => true,
            });
        }
    }

    /// Drops deliveries from the queues that are held no longer.
    fn lose(&mut self, lost: impl Iterator<Item = (i64, i64)>) {
        let lost: HashSet<(i64, i64)> = lost.collect();
        if lost.is_empty() {
            return;
        }
        let is_lost = |delivery: &Delivery| match delivery.held {
            Held::Row { id, lease } => lost.contains(&(id, lease)),
            Held::Range(_) => false,
        };
        for lane in &mut self.lanes {
            for delivery in lane.queue.iter().filter(|delivery| is_lost(delivery)) {
                if let Held::Row { id, lease } = delivery.held {
                    self.deliveries.remove(&(id, lease));
                }
            }
            lane.retain(|delivery| !is_lost(delivery));
        }
    }
}
