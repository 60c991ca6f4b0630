use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::attempt::{Shared, attempt};
use super::handlers::Handlers;
use super::leases::{self, Leases};
use super::settle::{Outcome, Settlement};
use crate::backends::{Backend, LeasedJob, Upkeep, Want};
use crate::backoff::{Backoff, SHORTEST, Weather, around};
use crate::dead::DeadReason;
use crate::deadline::in_time;
use crate::error::chain;
use crate::wakeups::Sleeper;
use crate::{Error, Queue, WorkerConfig, telemetry};

/// How long a worker with a backlog waits for more places than one, so that its batches do not shrink.
const GATHER: Duration = Duration::from_millis(2);

/// How long a worker that shall stop waits for the answer to its last fetch. What it then does not know that it holds
/// starts again when the lease ends.
const LAST_FETCH: Duration = Duration::from_secs(2);

/// Fetches jobs and starts them; owns the running attempts.
pub(super) struct Fetcher<B> {
    store: B,
    shared: Arc<Shared>,
    leases: Arc<Leases>,
    queues: Vec<&'static str>,
    sleeper: Arc<Sleeper>,
    places: Arc<Semaphore>,
    attempts: JoinSet<()>,
    next_maintenance: Instant,
}

impl<B: Backend> Fetcher<B> {
    pub(super) fn new(
        queue: &Queue<B>,
        config: WorkerConfig,
        handlers: Handlers,
        leases: Arc<Leases>,
        settle: mpsc::Sender<Settlement>,
        cancel: &CancellationToken,
    ) -> Self {
        let queues = handlers.queues();
        Fetcher {
            store: queue.store.clone(),
            sleeper: queue.wakeups.register(&queues),
            places: Arc::new(Semaphore::new(config.concurrency)),
            shared: Arc::new(Shared {
                config,
                handlers,
                settle,
                stopping: cancel.child_token(),
                grace_over: CancellationToken::new(),
            }),
            leases,
            queues,
            attempts: JoinSet::new(),
            next_maintenance: Instant::now(),
        }
    }

    /// Works until the worker shall stop, and returns when all attempts have ended.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let cancel = &shared.stopping;
        let mut weather = Weather::default();
        let mut backlog = false;
        loop {
            let places = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                places = self.free_places(backlog) => places,
            };
            let hangs = async {
                cancel.cancelled().await;
                sleep(LAST_FETCH).await;
            };
            let fetched = tokio::select! {
                biased;
                fetched = self.fetch(places) => fetched,
                () = hangs => break,
            };
            let pause = match fetched {
                Ok(full) => {
                    weather.clear();
                    backlog = full;
                    if full {
                        continue;
                    }
                    around(shared.config.poll_interval)
                }
                Err(error) => {
                    backlog = false;
                    let wait = weather.next();
                    tracing::warn!(error = chain(&error), ?wait, "could not fetch jobs");
                    wait
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = self.sleeper.woken(), if weather.is_clear() => {}
                () = sleep(pause) => {}
            }
        }
        self.stop().await;
    }

    /// Lets the attempts end by themselves for the grace, then interrupts them.
    async fn stop(mut self) {
        let ended = async { while self.attempts.join_next().await.is_some() {} };
        if timeout(self.shared.config.grace, ended).await.is_err() {
            tracing::warn!(
                jobs = self.attempts.len(),
                "the grace is over; what still runs returns to its queue"
            );
            self.shared.grace_over.cancel();
            while self.attempts.join_next().await.is_some() {}
        }
    }

    /// Waits for a place among the running jobs, and takes all that are free.
    ///
    /// With a backlog it lets a quarter of them gather first: where one statement fetches one job for each that has
    /// just ended, the database is asked too often for too little.
    async fn free_places(&self, backlog: bool) -> Option<OwnedSemaphorePermit> {
        let config = &self.shared.config;
        let take = |count: usize| {
            let places = Arc::clone(&self.places);
            async move { places.acquire_many_owned(u32::try_from(count).unwrap_or(u32::MAX)).await.ok() }
        };
        let mut places = take(1).await?;
        let quarter = config.concurrency.min(config.max_batch) / 4;
        if backlog
            && quarter > 1
            && let Ok(Some(more)) = timeout(GATHER, take(quarter - 1)).await
        {
            places.merge(more);
        }
        let room = config.max_batch.saturating_sub(places.num_permits()).min(self.places.available_permits());
        if room > 0
            && let Ok(more) =
                Arc::clone(&self.places).try_acquire_many_owned(u32::try_from(room).unwrap_or(0))
        {
            places.merge(more);
        }
        Some(places)
    }

    /// Fills the places from the queues in turn. True if some queue may have more.
    async fn fetch(&mut self, places: Option<OwnedSemaphorePermit>) -> Result<bool, Error> {
        let Some(mut places) = places else { return Ok(false) };
        while self.attempts.try_join_next().is_some() {}
        self.maintain().await?;
        // Each time another queue comes first, so that none starves behind a full one.
        self.queues.rotate_left(1);
        let mut full = false;
        for at in 0..self.queues.len() {
            let wanted = places.num_permits();
            if wanted == 0 {
                return Ok(true);
            }
            let queue = self.queues[at];
            let lease = self.shared.config.lease;
            let until = Instant::now() + lease;
            let want = Want { queue, limit: wanted, lease };
            let jobs = in_time(self.store.exchange(Vec::new(), Some(want))).await?.jobs;
            full |= jobs.len() == wanted;
            if !jobs.is_empty() && self.is_late(until) {
                let lease = self.shared.config.lease;
                tracing::warn!(
                    ?lease,
                    "the answer to a fetch took most of the lease; its jobs are given back"
                );
            }
            for job in jobs {
                if let Some(place) = places.split(1) {
                    self.start(queue, job, until, place).await;
                }
            }
        }
        Ok(full)
    }

    /// True if a lease may end before it is first extended.
    fn is_late(&self, until: Instant) -> bool {
        until <= Instant::now() + leases::interval(self.shared.config.lease)
    }

    async fn start(
        &mut self,
        queue: &'static str,
        job: LeasedJob,
        until: Instant,
        place: OwnedSemaphorePermit,
    ) {
        let guard = self.leases.hold(job.lease, until);
        // After the call to stop, the job is for somebody else too.
        if self.is_late(until) || self.shared.stopping.is_cancelled() {
            self.shared
                .settle
                .send(Settlement { guard, awaited: job.awaited, kept: job.kept, outcome: Outcome::Released })
                .await
                .ok();
            return;
        }
        telemetry::started(queue, job.waited);
        self.attempts.spawn(attempt(Arc::clone(&self.shared), queue, job, guard, place));
    }

    /// Now and then: makes ready what is due, and what dead workers have left.
    async fn maintain(&mut self) -> Result<(), Error> {
        if Instant::now() < self.next_maintenance {
            return Ok(());
        }
        let config = &self.shared.config;
        let backoff = Backoff { base: config.retry_base, max: config.retry_max };
        let upkeep = Upkeep { max_crashes: config.max_crashes, backoff };
        let kept = in_time(self.store.upkeep(upkeep)).await?;
        if kept.buried > 0 {
            let reason = DeadReason::Crashed.code();
            tracing::error!(jobs = kept.buried, reason, "jobs are dead: their workers vanished too often");
        }
        if kept.rescued > 0 {
            tracing::warn!(
                jobs = kept.rescued,
                "leases have ended: the workers of these jobs vanished, or lost the database"
            );
        }
        // The shortest sleep of an idle worker, so that each poll looks.
        self.next_maintenance = Instant::now() + config.poll_interval.mul_f64(SHORTEST);
        Ok(())
    }
}
