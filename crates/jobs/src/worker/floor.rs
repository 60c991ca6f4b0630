//! Where a worker's jobs wait and run, and what has ended is gathered for the next exchange.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::handlers::Handlers;
use super::leases::Hold;
use super::pace::Pace;
use crate::WorkerConfig;
use crate::backends::{Completion, LeasedJob};

/// What waits here for longer goes back to its queue, where another worker may take it.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// A job that is here.
pub(super) struct Job {
    pub(super) leased: LeasedJob,
    pub(super) hold: Hold,
    pub(super) queue: usize,
    /// None if there is no handler of its name.
    pub(super) handler: Option<usize>,
    pub(super) came: Instant,
}

/// A completed job that is not recorded yet.
pub(super) struct Ended {
    pub(super) completion: Completion,
    /// Held until then.
    pub(super) _hold: Hold,
    /// True if it was sent before, with an unknown outcome.
    pub(super) repeated: bool,
}

/// One row of waiting jobs: those of a queue, but those of a type with a bound of its own stand apart.
#[derive(Default)]
struct Lane {
    queue: usize,
    bounded: Option<(usize, usize)>,
    waiting: VecDeque<Job>,
}

#[derive(Default)]
struct QueueState {
    places: usize,
    running: usize,
    waiting: usize,
    /// One has left its place since somebody asked.
    left: bool,
    pace: Pace,
}

pub(super) struct Floor {
    state: Mutex<State>,
    /// Rings when there is something to record, or a place is free.
    bell: Notify,
}

struct State {
    places: usize,
    max_batch: usize,
    running: usize,
    lanes: Vec<Lane>,
    queues: Vec<QueueState>,
    /// How many of each handler run.
    by_handler: Vec<usize>,
    /// The lane of each handler's jobs.
    lane_of: Vec<usize>,
    turn: usize,
    ended: Vec<Ended>,
    closed: bool,
}

impl Floor {
    pub(super) fn new(config: &WorkerConfig, handlers: &Handlers, names: &[&'static str]) -> Self {
        let places = |name: &&str| config.queues.get(*name).copied().unwrap_or(config.concurrency);
        let queues: Vec<QueueState> =
            names.iter().map(|name| QueueState { places: places(name), ..Default::default() }).collect();
        let mut lanes: Vec<Lane> =
            (0..names.len()).map(|queue| Lane { queue, ..Default::default() }).collect();
        let by_name: BTreeMap<&str, usize> = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
        let mut lane_of = Vec::new();
        for (at, handler) in handlers.iter().enumerate() {
            let queue = by_name.get(handler.queue).copied().unwrap_or_default();
            match handler.at_most {
                None => lane_of.push(queue),
                Some(at_most) => {
                    lane_of.push(lanes.len());
                    lanes.push(Lane { queue, bounded: Some((at, at_most)), ..Default::default() });
                }
            }
        }
        let state = State {
            places: config.concurrency,
            max_batch: config.max_batch,
            running: 0,
            by_handler: vec![0; lane_of.len()],
            lanes,
            queues,
            lane_of,
            turn: 0,
            ended: Vec::new(),
            closed: false,
        };
        Floor { state: Mutex::new(state), bell: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    /// Lets jobs in, and answers with those that start now.
    pub(super) fn deliver(&self, jobs: Vec<Job>, now: Instant) -> Vec<Job> {
        let mut state = self.lock();
        for job in jobs {
            let queue = &mut state.queues[job.queue];
            queue.waiting += 1;
            queue.pace.begin(now);
            let lane = job.handler.map_or(job.queue, |handler| state.lane_of[handler]);
            state.lanes[lane].waiting.push_back(job);
        }
        std::iter::from_fn(|| state.next()).collect()
    }

    /// A job has left its place: takes what is to be recorded, and answers with the job that starts in its stead.
    pub(super) fn leave(
        &self,
        (queue, handler): (usize, Option<usize>),
        ended: Option<Ended>,
        now: Instant,
    ) -> Option<Job> {
        let mut state = self.lock();
        state.running -= 1;
        if let Some(handler) = handler {
            state.by_handler[handler] -= 1;
        }
        let of = &mut state.queues[queue];
        of.running -= 1;
        of.left = true;
        of.pace.end(now, of.running + of.waiting == 0);
        let quiet = !state.ended.is_empty() && ended.is_some();
        state.ended.extend(ended);
        let next = state.next();
        drop(state);
        // One ring is enough for all that end before the exchange takes them.
        if !quiet || next.is_none() {
            self.bell.notify_one();
        }
        next
    }

    /// All that is to be recorded.
    pub(super) fn take_ended(&self) -> Vec<Ended> {
        std::mem::take(&mut self.lock().ended)
    }

    /// What could not be recorded, back to be recorded first.
    pub(super) fn put_back(&self, mut ended: Vec<Ended>) {
        let mut state = self.lock();
        ended.append(&mut state.ended);
        state.ended = ended;
    }

    /// How many jobs of a queue to ask for, when so many are on their way already: of it, and of all. Without `ahead`,
    /// no more than can start at once.
    pub(super) fn room(
        &self,
        queue: usize,
        asked: usize,
        asked_in_all: usize,
        ahead: bool,
        now: Instant,
    ) -> usize {
        self.lock().room(queue, asked, asked_in_all, ahead, now)
    }

    /// Whether a job of the queue has ended; asking clears it.
    pub(super) fn take_left(&self, queue: usize) -> bool {
        std::mem::take(&mut self.lock().queues[queue].left)
    }

    /// Has the queue begin again with few jobs at a time.
    pub(super) fn restart(&self, queue: usize) {
        self.lock().queues[queue].pace.restart();
    }

    /// Takes out what has waited for too long.
    pub(super) fn take_stale(&self, now: Instant) -> Vec<Job> {
        self.lock().take_waiting(|job| now.duration_since(job.came) >= MAX_WAIT, now)
    }

    /// Takes out what waits of a queue.
    pub(super) fn take_of(&self, queue: usize, now: Instant) -> Vec<Job> {
        self.lock().take_waiting(|job| job.queue == queue, now)
    }

    /// Starts nothing more, and takes out all that waits.
    pub(super) fn close(&self, now: Instant) -> Vec<Job> {
        let mut state = self.lock();
        state.closed = true;
        state.take_waiting(|_| true, now)
    }

    /// True if no job is here, and nothing is left to record.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.running == 0 && state.ended.is_empty() && state.queues.iter().all(|queue| queue.waiting == 0)
    }

    pub(super) fn is_anything_waiting(&self) -> bool {
        self.lock().queues.iter().any(|queue| queue.waiting > 0)
    }

    pub(super) fn running(&self) -> usize {
        self.lock().running
    }
}

impl State {
    /// The next job that may start: the rows take turns, each in its order.
    fn next(&mut self) -> Option<Job> {
        if self.closed || self.running >= self.places {
            return None;
        }
        for step in 0..self.lanes.len() {
            let at = (self.turn + step) % self.lanes.len();
            let lane = &mut self.lanes[at];
            let queue = &mut self.queues[lane.queue];
            let full = lane.bounded.is_some_and(|(handler, at_most)| self.by_handler[handler] >= at_most);
            if full || queue.running >= queue.places {
                continue;
            }
            let Some(job) = lane.waiting.pop_front() else { continue };
            self.turn = at + 1;
            self.running += 1;
            queue.running += 1;
            queue.waiting -= 1;
            if let Some(handler) = job.handler {
                self.by_handler[handler] += 1;
            }
            return Some(job);
        }
        None
    }

    fn room(&mut self, at: usize, asked: usize, asked_in_all: usize, ahead: bool, now: Instant) -> usize {
        // Jobs that wait for their type's turn hold no other's place.
        let blocked =
            |lane: &&Lane| lane.bounded.is_some_and(|(handler, at_most)| self.by_handler[handler] >= at_most);
        let blocked_here: usize = self
            .lanes
            .iter()
            .filter(blocked)
            .filter(|lane| lane.queue == at)
            .map(|lane| lane.waiting.len())
            .sum();
        let blocked: usize = self.lanes.iter().filter(blocked).map(|lane| lane.waiting.len()).sum();
        let waiting: usize = self.queues.iter().map(|queue| queue.waiting).sum::<usize>() - blocked;
        let queue = &mut self.queues[at];
        if blocked_here >= queue.places {
            return 0;
        }
        let free = self.places.saturating_sub(self.running + waiting + asked_in_all);
        let free =
            free.min(queue.places.saturating_sub(queue.running + queue.waiting - blocked_here + asked));
        if !ahead {
            return free.min(self.max_batch);
        }
        let ahead = queue.pace.ahead(now, queue.places.min(self.places), self.max_batch);
        let more = (2 * ahead).saturating_sub(queue.waiting + asked);
        // With enough in store, one large batch is better than many small ones.
        let room = if more >= ahead { free + more } else { free };
        room.min(self.max_batch)
    }

    fn take_waiting(&mut self, which: impl Fn(&Job) -> bool, now: Instant) -> Vec<Job> {
        let mut taken = Vec::new();
        for lane in &mut self.lanes {
            let queue = &mut self.queues[lane.queue];
            while lane.waiting.front().is_some_and(&which) {
                taken.extend(lane.waiting.pop_front());
                queue.waiting -= 1;
            }
            if queue.running + queue.waiting == 0 {
                queue.pace.idle(now);
            }
        }
        taken
    }
}
