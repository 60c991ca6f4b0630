//! The loop of a worker: what has ended is recorded by the call that fetches what runs next.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::attempt::{Shared, place};
use super::floor::{Ended, Job};
use super::leases::{self, Leases, Seat};
use super::settle::{Outcome, Settlement};
use crate::backends::{Backend, Completion, Exchanged, Kept, LeasedJob, Upkeep, Want};
use crate::backoff::{Backoff, Weather, around};
use crate::dead::DeadReason;
use crate::deadline::in_time;
use crate::error::chain;
use crate::wakeups::Sleeper;
use crate::{Error, Queue};

/// How many exchanges are under way at once: while one waits for the disk, the next is on its way.
const MAX_FLIGHTS: usize = 2;

/// How long a job that has crashed before is watched alone.
const PROBATION: Duration = Duration::from_millis(250);

/// How often to look at what waits here or is held back.
const TICK: Duration = Duration::from_millis(50);

/// The least time between two looks for due jobs.
const MIN_UPKEEP: Duration = Duration::from_millis(1);

/// How long a worker that stops waits for its last look for due jobs.
const LAST_UPKEEP: Duration = Duration::from_secs(2);

/// Beyond its places and what it fetches ahead, a worker holds at most so many jobs whose ends it could not record.
const MAX_UNRECORDED: usize = 10_000;

/// What the loop knows about a queue.
#[derive(Default)]
struct Appetite {
    /// The last answer was as much as was asked for, so there may be more.
    full: bool,
    /// Something new was announced.
    rung: bool,
    /// How many jobs are asked for, by the exchanges under way.
    asked: usize,
    /// A limit holds jobs back: ask again then.
    again: Option<Instant>,
    /// Suspects were given back: fetch one at a time until none comes.
    careful: bool,
}

/// An exchange that was answered.
struct Landed {
    /// The queue and how many were wanted.
    want: Option<(usize, usize)>,
    /// Before this no lease of it ends.
    until: Instant,
    ended: Vec<Ended>,
    answer: Result<Exchanged, Error>,
}

pub(super) struct Exchanger<B> {
    store: B,
    shared: Arc<Shared>,
    leases: Arc<Leases>,
    sleeper: Arc<Sleeper>,
    appetites: Vec<Appetite>,
    turn: usize,
    flights: FuturesUnordered<BoxFuture<'static, Landed>>,
    places: JoinSet<()>,
    /// A job that has crashed before, and until when it is watched.
    suspect: Option<(Seat, Instant)>,
    weather: Weather,
    /// After an error: not before this.
    resume_at: Instant,
    next_poll: Instant,
    next_upkeep: Instant,
    last_upkeep: Instant,
    /// At most one.
    upkeep: FuturesUnordered<BoxFuture<'static, Result<Kept, Error>>>,
}

impl<B: Backend> Exchanger<B> {
    pub(super) fn new(queue: &Queue<B>, shared: Arc<Shared>, leases: Arc<Leases>) -> Self {
        let now = Instant::now();
        Exchanger {
            store: queue.store.clone(),
            sleeper: queue.wakeups.register(&shared.queues),
            appetites: shared.queues.iter().map(|_| Appetite::default()).collect(),
            shared,
            leases,
            turn: 0,
            flights: FuturesUnordered::new(),
            places: JoinSet::new(),
            suspect: None,
            weather: Weather::default(),
            resume_at: now,
            next_poll: now,
            next_upkeep: now,
            last_upkeep: now,
            upkeep: FuturesUnordered::new(),
        }
    }

    /// Works until the worker shall stop and all attempts have ended and are recorded.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        let floor = &shared.floor;
        while !cancel.is_cancelled() {
            self.hear();
            self.launch(false);
            let wake = self.next_wake();
            tokio::select! {
                () = cancel.cancelled() => {}
                Some(landed) = self.flights.next(), if !self.flights.is_empty() => self.land(landed, false),
                Some(kept) = self.upkeep.next(), if !self.upkeep.is_empty() => self.kept(kept),
                () = self.sleeper.woken() => {}
                () = floor.rung() => {}
                () = sleep_until(wake) => {}
            }
            while self.places.try_join_next().is_some() {}
        }
        self.stop().await;
    }

    /// Gives back what has not started, lets what runs end for the grace, then interrupts it; records all.
    async fn stop(mut self) {
        let shared = Arc::clone(&self.shared);
        let floor = &shared.floor;
        let mut grace_ends = Some(Instant::now() + shared.config.grace);
        self.give_back(floor.close(Instant::now()));
        while !(floor.is_empty() && self.flights.is_empty()) {
            if grace_ends.take_if(|end| *end <= Instant::now()).is_some() {
                self.interrupt();
            }
            self.launch(true);
            let tick = Instant::now() + TICK;
            tokio::select! {
                Some(landed) = self.flights.next(), if !self.flights.is_empty() => self.land(landed, true),
                () = floor.rung() => {}
                () = sleep_until(grace_ends.map_or(tick, |end| end.min(tick))) => {}
            }
        }
        // What it has begun it ends, unless the database hangs.
        timeout(LAST_UPKEEP, self.upkeep.next()).await.ok();
    }

    fn interrupt(&self) {
        let jobs = self.shared.floor.running();
        if jobs > 0 {
            tracing::warn!(jobs, "the grace is over; what still runs returns to its queue");
        }
        self.leases.interrupt();
    }

    /// Takes what the bell rang for, and what the clock says.
    fn hear(&mut self) {
        let now = Instant::now();
        let poll = now >= self.next_poll;
        if poll {
            self.next_poll = now + around(self.shared.config.poll_interval);
            self.next_upkeep = now;
        }
        // What is due next may have changed: a schedule, a transaction that pushed delayed jobs.
        if self.sleeper.take_all() {
            self.next_upkeep = self.next_upkeep.min(self.last_upkeep + TICK);
        }
        for (at, appetite) in self.appetites.iter_mut().enumerate() {
            let again = appetite.again.take_if(|again| *again <= now).is_some();
            appetite.rung |= self.sleeper.take_new(at) || poll || again;
        }
        self.sleeper.take_cancelled().into_iter().for_each(|job| self.leases.cancel(job));
        if self.suspect.as_ref().is_some_and(|(seat, until)| seat.is_settled() || now >= *until) {
            self.suspect = None;
        }
        self.give_back(self.shared.floor.take_stale(now));
        for (at, queue) in self.shared.queues.iter().enumerate() {
            if self.store.control(queue).paused {
                self.give_back(self.shared.floor.take_of(at, now));
            }
        }
    }

    /// Begins as many exchanges as make sense.
    fn launch(&mut self, stopping: bool) {
        let now = Instant::now();
        if now < self.resume_at {
            return;
        }
        if !stopping && now >= self.next_upkeep && self.upkeep.is_empty() {
            self.begin_upkeep(now);
        }
        while self.flights.len() < MAX_FLIGHTS {
            let want = if stopping { None } else { self.want(now) };
            // Alone, a result is written at once; beside another exchange it goes with the next.
            let ended = if want.is_some() || self.flights.is_empty() {
                self.shared.floor.take_ended()
            } else {
                Vec::new()
            };
            if want.is_none() && ended.is_empty() {
                return;
            }
            self.send(want, ended, now);
        }
    }

    /// The next queue that may have jobs for which there is room, and how many. Each time another queue comes first, so
    /// that none starves behind a full one.
    fn want(&mut self, now: Instant) -> Option<(usize, usize)> {
        let config = &self.shared.config;
        let most = config.concurrency + 2 * config.max_batch * self.appetites.len() + MAX_UNRECORDED;
        if self.leases.open() >= most {
            return None;
        }
        let asked_in_all: usize = self.appetites.iter().map(|appetite| appetite.asked).sum();
        for step in 0..self.appetites.len() {
            let at = (self.turn + step) % self.appetites.len();
            let appetite = &mut self.appetites[at];
            let held_back = appetite.careful && (self.suspect.is_some() || appetite.asked > 0);
            let limited = self.store.control(self.shared.queues[at]).limited;
            // Where a limit holds jobs back, one that ends makes room for another.
            appetite.rung |= limited && self.shared.floor.take_left(at);
            if held_back || !(appetite.full || appetite.rung) {
                continue;
            }
            let ahead = !limited;
            let room = self.shared.floor.room(at, appetite.asked, asked_in_all, ahead, now);
            let limit = if appetite.careful { room.min(1) } else { room };
            if limit == 0 {
                continue;
            }
            appetite.rung = false;
            appetite.asked += limit;
            self.turn = at + 1;
            return Some((at, limit));
        }
        None
    }

    fn send(&mut self, want: Option<(usize, usize)>, ended: Vec<Ended>, now: Instant) {
        let (store, lease) = (self.store.clone(), self.shared.config.lease);
        let named = want.map(|(at, limit)| (self.shared.queues[at], limit));
        let flight = async move {
            let done: Vec<Completion> = ended.iter().map(|ended| ended.completion.clone()).collect();
            let wanted = named.map(|(queue, limit)| Want { queue, limit, lease });
            let answer = in_time(store.exchange(done, wanted)).await;
            Landed { want, until: now + lease, ended, answer }
        };
        self.flights.push(Box::pin(flight));
    }

    fn land(&mut self, landed: Landed, stopping: bool) {
        let Landed { want, until, mut ended, answer } = landed;
        if let Some((at, limit)) = want {
            self.appetites[at].asked -= limit;
        }
        match answer {
            Ok(Exchanged { completed, jobs, again, .. }) => {
                self.weather.clear();
                // After an error some may be those that it recorded all the same.
                if completed < ended.len() && !ended.iter().any(|ended| ended.repeated) {
                    let gone = ended.len() - completed;
                    tracing::warn!(gone, "jobs had gone to others before their results were recorded");
                }
                drop(ended);
                if let Some((at, limit)) = want {
                    self.appetites[at].again = again.map(|again| Instant::now() + again);
                    self.receive(at, limit, jobs, until, stopping);
                }
            }
            Err(error) => {
                let wait = self.weather.next();
                self.resume_at = Instant::now() + wait;
                let jobs = ended.len();
                tracing::warn!(
                    error = chain(&error),
                    jobs,
                    ?wait,
                    "could not exchange jobs with the database"
                );
                ended.iter_mut().for_each(|ended| ended.repeated = true);
                self.shared.floor.put_back(ended);
                if let Some((at, _)) = want {
                    self.appetites[at].rung = true;
                }
            }
        }
    }

    /// Lets fetched jobs in, or gives them back if they cannot start.
    fn receive(&mut self, at: usize, limit: usize, jobs: Vec<LeasedJob>, until: Instant, stopping: bool) {
        self.appetites[at].full = jobs.len() >= limit;
        let now = Instant::now();
        // A lease that may end before it is first extended is no lease.
        let late = until <= now + leases::interval(self.shared.config.lease);
        if late && !jobs.is_empty() {
            let lease = self.shared.config.lease;
            tracing::warn!(?lease, "the answer to a fetch took most of the lease; its jobs are given back");
        }
        let holds = self.leases.hold(jobs.iter().map(|job| job.lease).collect(), until);
        let jobs = jobs.into_iter().zip(holds).map(|(leased, hold)| {
            let handler = self.shared.handlers.find(&leased.name);
            Job { leased, hold, queue: at, handler, came: now }
        });
        let jobs: Vec<Job> = jobs.collect();
        // After the call to stop, the jobs are for somebody else too; and what is paused, for later.
        if late || stopping || self.store.control(self.shared.queues[at]).paused {
            return self.give_back(jobs);
        }
        let (jobs, suspects) = self.part(at, jobs, now);
        self.give_back(suspects);
        for job in self.shared.floor.deliver(jobs, now) {
            self.places.spawn(place(Arc::clone(&self.shared), job));
        }
    }

    /// Parts jobs that crashed before from one another: one at a time is let in, watched for a while, and the others
    /// are given back. So the one that kills its workers is alone with what never crashed, and no other comes near the
    /// count at which it would be parked.
    fn part(&mut self, at: usize, jobs: Vec<Job>, now: Instant) -> (Vec<Job>, Vec<Job>) {
        let appetite = &mut self.appetites[at];
        if jobs.iter().all(|job| job.leased.crashes == 0) {
            if appetite.careful && !jobs.is_empty() {
                appetite.careful = false;
                self.shared.floor.restart(at);
            }
            return (jobs, Vec::new());
        }
        let mut back = Vec::new();
        let mut stay = Vec::with_capacity(jobs.len());
        for job in jobs {
            if job.leased.crashes == 0 {
                stay.push(job);
            } else if self.suspect.is_none() {
                self.suspect = Some((job.hold.seat(), now + PROBATION));
                stay.push(job);
            } else {
                back.push(job);
            }
        }
        if !back.is_empty() {
            (appetite.careful, appetite.full) = (true, true);
        }
        (stay, back)
    }

    fn give_back(&self, jobs: Vec<Job>) {
        for Job { leased, hold, .. } in jobs {
            let settlement = Settlement { hold, awaited: leased.awaited, outcome: Outcome::Released };
            self.shared.settle.send(settlement).ok();
        }
    }

    /// Makes ready what is due, and what dead workers have left.
    fn begin_upkeep(&mut self, now: Instant) {
        let config = &self.shared.config;
        let backoff = Backoff { base: config.retry_base, max: config.retry_max };
        let (store, upkeep) = (self.store.clone(), Upkeep { max_crashes: config.max_crashes, backoff });
        self.last_upkeep = now;
        self.next_upkeep = now + config.poll_interval;
        self.upkeep.push(Box::pin(async move { in_time(store.upkeep(upkeep)).await }));
    }

    fn kept(&mut self, kept: Result<Kept, Error>) {
        let Kept { rescued, buried, promoted, next_due } = match kept {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(error = chain(&error), "could not look for due jobs");
                return;
            }
        };
        if buried > 0 {
            let reason = DeadReason::Crashed.code();
            tracing::error!(jobs = buried, reason, "jobs are dead: their workers vanished too often");
        }
        if rescued > 0 {
            tracing::warn!(
                jobs = rescued,
                "leases have ended: the workers of these jobs vanished, or lost the database"
            );
        }
        if promoted > 0 {
            self.appetites.iter_mut().for_each(|appetite| appetite.rung = true);
        }
        if let Some(due) = next_due {
            self.next_upkeep = self.next_upkeep.min(Instant::now() + due.max(MIN_UPKEEP));
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.next_poll.min(self.next_upkeep);
        let again = self.appetites.iter().filter_map(|appetite| appetite.again).min();
        wake = again.map_or(wake, |again| wake.min(again));
        let held_back = self.appetites.iter().any(|appetite| appetite.careful);
        if held_back || self.shared.floor.is_anything_waiting() {
            wake = wake.min(Instant::now() + TICK);
        }
        wake.max(self.resume_at)
    }
}
