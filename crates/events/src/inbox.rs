//! The receiving side: leases deliveries for the handlers of this process, runs them, and settles what came of it.

mod attempt;
mod settle;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::{
    select,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::{
    attempt::{Outcome, attempt},
    settle::{Settled, Unsettled, count},
};
use crate::{
    Backend, Bus, Error,
    backends::{Counted, Want},
    error::describe,
    retry::{Trouble, jittered},
    subscription::{Delivery, Handler, Subscription},
};

/// A subscription's deliveries in this process.
struct Lane<B: Backend> {
    subscription: Arc<Subscription<B>>,
    /// Leased, not begun.
    queue: VecDeque<Delivery>,
    running: u32,
    /// Leased: those in the queue, those that run, and those that ended and are not settled.
    held: u32,
    /// There may be more in the database.
    look: bool,
}

impl<B: Backend> Lane<B> {
    fn concurrency(&self) -> u32 {
        self.subscription.config.concurrency.max(1)
    }

    /// How many to lease now. None until half of the room is free, so that busy lanes lease in batches.
    fn room(&self) -> u32 {
        let max = self.subscription.config.max_claimed.max(self.concurrency());
        let room = max.saturating_sub(self.held);
        if self.look && room * 2 >= max { room } else { 0 }
    }

    /// How many may begin now.
    fn free(&self) -> usize {
        self.concurrency().saturating_sub(self.running) as usize
    }

    /// Whether the delivery has had all its attempts, the last of which ended without an outcome.
    fn is_spent(&self, delivery: &Delivery) -> bool {
        delivery.attempt > self.subscription.config.max_attempts
    }

    fn serves(&self, delivery: &Delivery) -> bool {
        self.subscription.name == delivery.subscription && self.subscription.event == delivery.event
    }
}

struct Inbox<'a, B: Backend> {
    bus: &'a Bus<B>,
    lanes: Vec<Lane<B>>,
    /// The attempts that run, each answering with its lane.
    running: JoinSet<(usize, Delivery, Outcome)>,
    /// The key of everything leased, its lane, and how many attempts it has had before.
    held: HashMap<(i64, i64), (usize, u32)>,
    unsettled: Unsettled,
    next_look: Instant,
    next_renewal: Instant,
}

/// Delivers until cancelled, then ends what runs.
pub(crate) async fn run<B: Backend>(bus: &Bus<B>, arrived: &Notify, cancel: &CancellationToken) {
    let mut inbox = Inbox::new(bus);
    let mut trouble = Trouble::default();
    while !cancel.is_cancelled() {
        if let Err(error) = inbox.round().await {
            let pause = trouble.pause();
            warn!(error = describe(&error), ?pause, "deliveries wait for the database");
            select! {
                () = cancel.cancelled() => {}
                () = sleep(pause) => {}
            }
            continue;
        }
        trouble.over();
        if inbox.lanes.iter().any(|lane| lane.room() > 0) {
            continue;
        }
        select! {
            () = cancel.cancelled() => {}
            Some(ended) = inbox.running.join_next() => inbox.ended(ended),
            () = arrived.notified() => inbox.look(),
            () = sleep_until(inbox.next_look.min(inbox.next_renewal)) => {}
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
            running: JoinSet::new(),
            held: HashMap::new(),
            unsettled: Unsettled::default(),
            next_look: now,
            next_renewal: now + bus.config().lease / 3,
        }
    }

    /// One turn: everything that needs the database, then what it made possible.
    async fn round(&mut self) -> Result<(), Error> {
        self.adopt().await?;
        self.settle().await?;
        self.renew().await?;
        if Instant::now() >= self.next_look {
            if !self.lanes.is_empty() {
                self.bus.in_time("look for due deliveries", self.bus.store().ready_due()).await?;
            }
            self.next_look = Instant::now() + jittered(self.bus.config().poll_interval);
            self.look();
        }
        self.claim().await?;
        self.start().await
    }

    fn look(&mut self) {
        for lane in &mut self.lanes {
            lane.look = true;
        }
    }

    /// Takes up handlers that were added since.
    async fn adopt(&mut self) -> Result<(), Error> {
        let added = self.bus.subscriptions_after(self.lanes.len());
        if added.is_empty() {
            return Ok(());
        }
        self.bus.persist(&added).await?;
        self.lanes.extend(added.into_iter().map(|subscription| Lane {
            subscription,
            queue: VecDeque::new(),
            running: 0,
            held: 0,
            look: true,
        }));
        Ok(())
    }

    /// Collects every attempt that has ended, and writes the outcomes in batches.
    async fn settle(&mut self) -> Result<(), Error> {
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
        written
    }

    fn ended(&mut self, ended: Result<(usize, Delivery, Outcome), tokio::task::JoinError>) {
        // An attempt catches its handler's panic, and only `stop` aborts one: there is always an outcome here.
        let Ok((lane, delivery, outcome)) = ended else { return };
        self.lanes[lane].running -= 1;
        if let Some(settled) = self.unsettled.note(&self.lanes[lane].subscription, &delivery, outcome) {
            self.settled(settled);
        }
    }

    fn settled(&mut self, (key, outcome): Settled) {
        if let Some((lane, _)) = self.held.remove(&key) {
            self.lanes[lane].held -= 1;
            count(&self.lanes[lane].subscription.name, outcome);
        }
    }

    /// Renews every lease in good time, and forgets what was lost and has not begun.
    async fn renew(&mut self) -> Result<(), Error> {
        let lease = self.bus.config().lease;
        if Instant::now() < self.next_renewal {
            return Ok(());
        }
        let keys: Vec<(i64, i64)> = self.held.keys().copied().collect();
        if !keys.is_empty() {
            let held = self.bus.in_time("renew leases", self.bus.store().renew(&keys, lease)).await?;
            let held: HashSet<i64> = held.into_iter().collect();
            self.forget(keys.into_iter().filter(|(id, _)| !held.contains(id)).collect());
        }
        self.next_renewal = Instant::now() + lease / 3;
        Ok(())
    }

    /// Drops from the queues what is held no longer. What runs is left to its end.
    fn forget(&mut self, lost: HashSet<(i64, i64)>) {
        for lane in &mut self.lanes {
            lane.queue.retain(|delivery| {
                let keep = !lost.contains(&delivery.key());
                if !keep && self.held.remove(&delivery.key()).is_some() {
                    lane.held -= 1;
                }
                keep
            });
        }
    }

    async fn claim(&mut self) -> Result<(), Error> {
        let mut wants = Vec::new();
        for lane in self.lanes.iter().filter(|lane| lane.room() > 0) {
            let Subscription { name, event, .. } = &*lane.subscription;
            wants.push(Want { subscription: name.clone(), event: event.clone(), count: lane.room() });
        }
        if wants.is_empty() {
            return Ok(());
        }
        let claim = self.bus.store().claim(&wants, self.bus.config().lease);
        let deliveries = self.bus.in_time("take deliveries", claim).await?;
        let mut taken = vec![0; self.lanes.len()];
        for delivery in deliveries {
            let Some(index) = self.lanes.iter().position(|lane| lane.serves(&delivery)) else { continue };
            taken[index] += 1;
            self.held.insert(delivery.key(), (index, delivery.attempt.saturating_sub(1)));
            self.lanes[index].queue.push_back(delivery);
        }
        for (lane, taken) in self.lanes.iter_mut().zip(taken) {
            if lane.room() > 0 {
                lane.look = taken >= lane.room();
                lane.held += taken;
            }
        }
        Ok(())
    }

    /// Begins what there is room for.
    async fn start(&mut self) -> Result<(), Error> {
        // Where one is lost, the next in the queue takes its place.
        while self.count_attempts().await? {}
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            for _ in 0..lane.free() {
                let Some(delivery) = lane.queue.pop_front() else { break };
                lane.running += 1;
                let (bus, subscription, spent) =
                    (self.bus.clone(), lane.subscription.clone(), lane.is_spent(&delivery));
                self.running.spawn(async move {
                    // Each attempt so far ended without an outcome: do not let it take another process down.
                    let outcome = if spent {
                        Outcome::Hopeless("the process died or lost its lease during the last attempt".into())
                    } else {
                        attempt(bus, subscription, delivery.clone()).await
                    };
                    (index, delivery, outcome)
                });
            }
        }
        Ok(())
    }

    /// Counts the attempts that are about to begin, and drops deliveries that are held no longer; true when there were
    /// such. Handlers in a transaction are not among them: they may have to wait for it, so they are counted when they
    /// have a connection.
    async fn count_attempts(&mut self) -> Result<bool, Error> {
        let mut beginning: Vec<Counted> = Vec::new();
        for lane in &self.lanes {
            if matches!(lane.subscription.handler, Handler::AtLeastOnce(_)) {
                let next = lane.queue.iter().take(lane.free()).filter(|delivery| !lane.is_spent(delivery));
                beginning.extend(next.map(|delivery| (delivery.key(), delivery.attempt)));
            }
        }
        if beginning.is_empty() {
            return Ok(false);
        }
        let held = self.bus.in_time("begin attempts", self.bus.store().begin(&beginning)).await?;
        let held: HashSet<i64> = held.into_iter().collect();
        let lost: HashSet<_> =
            beginning.into_iter().map(|(key, _)| key).filter(|(id, _)| !held.contains(id)).collect();
        let any = !lost.is_empty();
        self.forget(lost);
        Ok(any)
    }

    /// Ends what runs, within the grace, and gives back the rest.
    async fn stop(mut self) {
        let deadline = Instant::now() + self.bus.config().grace;
        let queued: Vec<_> = self.lanes.iter_mut().flat_map(|lane| lane.queue.drain(..)).collect();
        self.release(queued.iter().map(Delivery::key).collect()).await;
        let mut trouble = Trouble::default();
        loop {
            let written = match self.settle().await {
                Ok(()) => self.renew().await,
                error => error,
            };
            let again = match written {
                Ok(()) if self.held.is_empty() => return,
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
        warn!(deliveries = self.held.len(), "the grace is over: what did not end is given back");
        self.release(self.held.keys().copied().collect()).await;
    }

    /// Gives back deliveries with the attempts that they had had when they were taken.
    async fn release(&mut self, keys: Vec<(i64, i64)>) {
        let counted: Vec<Counted> =
            keys.iter().filter_map(|key| self.held.get(key).map(|(_, attempts)| (*key, *attempts))).collect();
        if counted.is_empty() {
            return;
        }
        if let Err(error) = self.bus.in_time("give back deliveries", self.bus.store().release(&counted)).await
        {
            warn!(error = describe(&error), "deliveries come again when their leases run out");
        }
        for key in keys {
            if let Some((lane, _)) = self.held.remove(&key) {
                self.lanes[lane].held -= 1;
            }
        }
    }
}
