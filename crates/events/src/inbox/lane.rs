use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    Backend,
    subscription::{Delivery, Handler, Held, Subscription},
};

/// A subscription in this process: its handlers, and what is held for them.
pub(super) struct Lane<B: Backend> {
    pub(super) name: Arc<str>,
    /// One for each event. What concerns the whole subscription is the first one's setting.
    handlers: Vec<Arc<Subscription<B>>>,
    /// What begins alone: events of handlers without a transaction, and deliveries.
    pub(super) queue: VecDeque<Delivery>,
    /// Ranges whose events are handled in one transaction.
    pub(super) batches: VecDeque<Vec<Delivery>>,
    /// No batch begins before this: one could not.
    pub(super) pause: Option<Instant>,
    pub(super) running: u32,
    /// Events and deliveries: those that wait above, those that run, and deliveries that ended and are not settled.
    pub(super) held: u32,
    /// Of an ordered subscription, the keys of what runs.
    busy: HashSet<Box<str>>,
    /// There may be more in the log.
    pub(super) look_log: bool,
    /// There may be more deliveries.
    pub(super) look_deliveries: bool,
}

impl<B: Backend> Lane<B> {
    pub(super) fn new(first: Arc<Subscription<B>>) -> Lane<B> {
        Lane {
            name: first.name.as_str().into(),
            handlers: vec![first],
            queue: VecDeque::new(),
            batches: VecDeque::new(),
            pause: None,
            running: 0,
            held: 0,
            busy: HashSet::new(),
            look_log: true,
            look_deliveries: true,
        }
    }

    pub(super) fn add(&mut self, handler: Arc<Subscription<B>>) {
        self.handlers.push(handler);
        self.look_log = true;
        self.look_deliveries = true;
    }

    pub(super) fn handlers(&self) -> &[Arc<Subscription<B>>] {
        &self.handlers
    }

    pub(super) fn handler(&self, event: &str) -> Option<&Arc<Subscription<B>>> {
        self.handlers.iter().find(|handler| handler.event == event)
    }

    pub(super) fn first(&self) -> &Subscription<B> {
        &self.handlers[0]
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.first().config.ordered
    }

    /// How a range is handled; none when it has to be split, because these handlers are of both kinds.
    pub(super) fn in_tx(&self) -> Option<bool> {
        let in_tx =
            self.handlers.iter().filter(|handler| matches!(handler.handler, Handler::InTx(_))).count();
        if in_tx == 0 { Some(false) } else { (in_tx == self.handlers.len()).then_some(true) }
    }

    fn concurrency(&self) -> u32 {
        self.first().config.concurrency.max(1)
    }

    /// How many to take now. None until half of the room is free, so that busy lanes take many at once.
    pub(super) fn room(&self) -> u32 {
        let max = self.first().config.max_claimed.max(self.concurrency());
        let room = max.saturating_sub(self.held);
        if room * 2 >= max { room } else { 0 }
    }

    pub(super) fn wants(&self) -> bool {
        (self.look_log || self.look_deliveries) && self.room() > 0
    }

    /// What may begin alone now, and counts as running from here on.
    pub(super) fn next(&mut self) -> Option<Delivery> {
        if self.running >= self.concurrency() {
            return None;
        }
        let at = if self.is_ordered() {
            let free = |delivery: &Delivery| delivery.key.as_ref().is_none_or(|key| !self.busy.contains(key));
            self.queue.iter().position(free)?
        } else {
            0
        };
        let delivery = self.queue.remove(at)?;
        if self.is_ordered() {
            self.busy.extend(delivery.key.clone());
        }
        self.running += 1;
        Some(delivery)
    }

    /// The batch that may begin now, and counts as running from here on. In order, one at a time: of two in transactions
    /// of their own the later one might be handled first.
    pub(super) fn next_batch(&mut self) -> Option<Vec<Delivery>> {
        let most = if self.is_ordered() { 1 } else { self.concurrency() };
        if self.running >= most || self.pause.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        self.pause = None;
        let batch = self.batches.pop_front()?;
        self.running += 1;
        Some(batch)
    }

    /// What counted as running does so no more.
    pub(super) fn ended(&mut self, delivery: &Delivery) {
        self.running -= 1;
        if let Some(key) = &delivery.key {
            self.busy.remove(key);
        }
    }

    /// Puts back what was to begin.
    pub(super) fn put_back(&mut self, delivery: Delivery) {
        self.ended(&delivery);
        self.queue.push_front(delivery);
    }

    /// Takes the events out that wait behind this one because they have the same key.
    pub(super) fn behind(&mut self, delivery: &Delivery) -> VecDeque<Delivery> {
        if !self.is_ordered() || delivery.key.is_none() {
            return VecDeque::new();
        }
        let is_behind = |other: &Delivery| other.key == delivery.key && matches!(other.held, Held::Range(_));
        let (behind, queue): (VecDeque<_>, _) = self.queue.drain(..).partition(is_behind);
        self.queue = queue;
        self.held -= u32::try_from(behind.len()).unwrap_or(u32::MAX);
        behind
    }

    /// Takes out the events of ranges that wait, in their order.
    pub(super) fn drain_events(&mut self) -> Vec<Delivery> {
        let is_event = |delivery: &Delivery| matches!(delivery.held, Held::Range(_));
        let (mut events, rows): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(is_event);
        self.queue = rows.into();
        events.extend(self.batches.drain(..).flatten());
        self.held -= u32::try_from(events.len()).unwrap_or(u32::MAX);
        events
    }

    /// Drops what waits and does not satisfy.
    pub(super) fn retain(&mut self, keep: impl Fn(&Delivery) -> bool) {
        let before = self.waiting();
        self.queue.retain(&keep);
        self.batches.retain(|batch| batch.first().is_some_and(&keep));
        self.held -= before - self.waiting();
    }

    fn waiting(&self) -> u32 {
        let waiting = self.queue.len() + self.batches.iter().map(Vec::len).sum::<usize>();
        u32::try_from(waiting).unwrap_or(u32::MAX)
    }
}

/// A range of the log that this process holds.
pub(super) struct Range {
    pub(super) lane: usize,
    /// The positions that have not ended.
    pub(super) left: BTreeSet<i64>,
    last: i64,
    /// Up to where the database knows that all has ended.
    told: i64,
    /// How many events were handled.
    pub(super) handled: u64,
}

impl Range {
    pub(super) fn new(lane: usize, deliveries: &[Delivery]) -> Range {
        let left: BTreeSet<i64> = deliveries.iter().filter_map(|delivery| delivery.position).collect();
        let last = left.last().copied().unwrap_or_default();
        let told = left.first().copied().unwrap_or_default();
        Range { lane, left, last, told, handled: 0 }
    }

    /// The first position that has not ended.
    pub(super) fn first_left(&self) -> i64 {
        self.left.first().copied().unwrap_or(self.last + 1)
    }

    pub(super) fn has_progressed(&self) -> bool {
        self.first_left() > self.told
    }

    pub(super) fn told(&mut self) {
        self.told = self.first_left();
    }
}
