//! From the database to NATS: pushed in a transaction, worked on there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::backends::nats::{Envelope, Nats, Outgoing, Refused, raw};
use crate::backends::{Burial, Completion, Lease, LeasedJob, SqlBackend, Store, Upkeep, Want};
use crate::backoff::{Backoff, SHORTEST, Weather, around};
use crate::dead::DeadReason;
use crate::deadline::in_time;
use crate::error::chain;
use crate::wakeups::{Notice, Sleeper};
use crate::{Error, Queue, WorkerConfig, telemetry};

/// How a queue is forwarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardConfig {
    /// How many jobs go at once; 1 to 100000. Default: 1000.
    pub max_batch: usize,

    /// How long to sleep, give or take a fifth, when nothing wakes it; bounds how late a delayed job goes. Default:
    /// 200ms.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,

    /// How long the jobs of a killed forwarder wait until another forwards them. Default: 30s.
    ///
    /// Shorter than the stream's [`duplicate_window`](crate::NatsConfig::duplicate_window), which then drops what was
    /// published already. At least 15s, for a publish may take ten.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        ForwardConfig {
            max_batch: 1000,
            poll_interval: Duration::from_millis(200),
            lease: Duration::from_secs(30),
        }
    }
}

impl ForwardConfig {
    fn check(&self, duplicate_window: Duration) -> Result<(), Error> {
        let refused = |why: &str| Err(Error::Worker(why.to_owned()));
        if !(1..=100_000).contains(&self.max_batch) {
            return refused("`max_batch` must be 1 to 100000");
        }
        if self.poll_interval.is_zero() || self.poll_interval > Duration::from_secs(366 * 24 * 3600) {
            return refused("`poll_interval` must be above zero, and at most a year");
        }
        if self.lease < Duration::from_secs(15) {
            return refused("`lease` must be at least 15s");
        }
        if self.lease >= duplicate_window {
            return refused("`lease` must be shorter than the stream's `duplicate_window`");
        }
        Ok(())
    }
}

impl<B: SqlBackend> Queue<B> {
    /// Moves the jobs of one named queue to NATS in batches, until the token fires: push in your transaction, or with a
    /// delay or a priority, and have the work done by [`Worker`](crate::Worker)s of the NATS queue.
    ///
    /// A job goes when it is due, the most urgent first, with its attempts so far. It leaves the database when
    /// JetStream has acknowledged it; a forwarder that dies in between leaves it to the next, and the stream drops the
    /// second copy if that comes within its `duplicate_window`. So: nothing is lost, and a job is there twice only if a
    /// forwarder died, or an acknowledgement got lost, and it took longer than the window to forward it again.
    ///
    /// `source` names the database among all that forward into the stream: two that share a name would take each
    /// other's jobs for duplicates. Any number of processes may forward one queue. A job that is kept once completed,
    /// or that others wait for, cannot go, and becomes a dead job of the database; so does one that is larger than the
    /// server allows.
    ///
    /// While NATS or the database is away it waits, and goes on. An error means that it cannot start: tables or streams
    /// are missing, or the configuration makes no sense.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the jobs that it had fetched until their leases end; they go then.
    ///
    /// ```no_run
    /// # use greenwave_jobs::{ForwardConfig, Nats, Queue, Sqlite};
    /// # use tokio_util::sync::CancellationToken;
    /// # async fn f(database: Queue<Sqlite>, nats: Queue<Nats>, cancel: CancellationToken) -> Result<(), greenwave_jobs::Error> {
    /// database.forward_to(&nats, "mail", "shop", ForwardConfig::default(), cancel).await
    /// # }
    /// ```
    pub async fn forward_to(
        &self,
        nats: &Queue<Nats>,
        queue: &'static str,
        source: &str,
        config: ForwardConfig,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        config.check(nats.store.duplicate_window())?;
        for migrated in [in_time(self.store.is_migrated()).await, in_time(nats.store.is_migrated()).await] {
            match migrated {
                Ok(true) => {}
                Ok(false) => return Err(Error::NotMigrated),
                Err(error @ Error::Worker(_)) => return Err(error),
                Err(error) => tracing::warn!(error = chain(&error), "the forwarder waits"),
            }
        }
        let forwarder = Forwarder {
            database: self,
            nats,
            queue,
            source,
            sleeper: self.wakeups.register(&[queue]),
            next_upkeep: Instant::now(),
            config,
        };
        tokio::select! {
            () = forwarder.run(cancel) => {}
            () = self.store.listen(Arc::clone(&self.wakeups)) => {}
        }
        Ok(())
    }
}

struct Forwarder<'a, B> {
    database: &'a Queue<B>,
    nats: &'a Queue<Nats>,
    queue: &'static str,
    source: &'a str,
    config: ForwardConfig,
    sleeper: Arc<Sleeper>,
    next_upkeep: Instant,
}

/// What became of a batch.
#[derive(Default)]
struct Sent {
    done: Vec<Completion>,
    back: Vec<Lease>,
    dead: Vec<Burial>,
    error: Option<Error>,
}

impl<B: SqlBackend> Forwarder<'_, B> {
    async fn run(mut self, cancel: CancellationToken) {
        let mut weather = Weather::default();
        // Published, and still in the database.
        let mut done = Vec::new();
        while !cancel.is_cancelled() {
            let pause = match self.forward(&mut done).await {
                Ok(0) => {
                    weather.clear();
                    around(self.config.poll_interval)
                }
                Ok(_) => {
                    weather.clear();
                    continue;
                }
                Err(error) => {
                    let wait = weather.next();
                    tracing::warn!(
                        error = chain(&error),
                        queue = self.queue,
                        ?wait,
                        "could not forward jobs"
                    );
                    wait
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = self.sleeper.woken(), if weather.is_clear() => {}
                () = sleep(pause) => {}
            }
        }
        if !done.is_empty()
            && let Err(error) = in_time(self.database.store.exchange(done, None)).await
        {
            tracing::warn!(error = chain(&error), "jobs stay in the database that were forwarded already");
        }
    }

    /// Completes what was published before, and publishes the next batch. Answers how many jobs it took.
    async fn forward(&mut self, done: &mut Vec<Completion>) -> Result<usize, Error> {
        let store = &self.database.store;
        if Instant::now() >= self.next_upkeep {
            let of = WorkerConfig::default();
            let backoff = Backoff { base: of.retry_base, max: of.retry_max };
            in_time(store.upkeep(Upkeep { max_crashes: of.max_crashes, backoff })).await?;
            self.next_upkeep = Instant::now() + self.config.poll_interval.mul_f64(SHORTEST);
        }
        // Nothing is taken while there is nowhere to take it. What is published must still leave the database.
        let connected = self.nats.store.check_connected();
        let want = Want { queue: self.queue, limit: self.config.max_batch, lease: self.config.lease };
        let want = connected.is_ok().then_some(want);
        let jobs = in_time(store.exchange(done.clone(), want)).await?.jobs;
        done.clear();
        connected?;
        let count = jobs.len();
        if count == 0 {
            return Ok(0);
        }
        let Sent { done: sent, back, dead, error } = self.publish(jobs).await;
        if !sent.is_empty() {
            telemetry::forwarded(self.queue, sent.len());
            self.nats.tell(Notice::Ready(Some(self.queue.into())));
        }
        *done = sent;
        if !back.is_empty() {
            in_time(store.release(back)).await?;
        }
        if !dead.is_empty() {
            tracing::error!(jobs = dead.len(), queue = self.queue, "jobs are dead: they cannot go to NATS");
            in_time(store.bury(dead)).await?;
        }
        error.map_or(Ok(count), Err)
    }

    async fn publish(&self, jobs: Vec<LeasedJob>) -> Sent {
        let mut sent = Sent::default();
        let (mut outgoing, mut leases) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        for job in jobs {
            let lease = job.lease;
            let awaited = job.awaited;
            match self.message(job) {
                Ok(message) => {
                    outgoing.push(message);
                    leases.push(lease);
                }
                Err(error) => sent.dead.push(burial(lease, awaited, error)),
            }
        }
        for (lease, result) in leases.into_iter().zip(self.nats.store.publish(outgoing).await) {
            match result {
                Ok(_) => {
                    sent.done.push(Completion { lease, result: None, awaited: false, kept: false });
                }
                Err(Refused::TooLarge) => {
                    let error = "it is larger than the NATS server's max_payload".to_owned();
                    sent.dead.push(burial(lease, false, error));
                }
                Err(Refused::Full) => {
                    sent.back.push(lease);
                    sent.error = Some(Error::Nats("the stream is full".into()));
                }
                Err(Refused::NoStream(error) | Refused::Unknown(error)) => {
                    sent.back.push(lease);
                    sent.error = Some(error);
                }
            }
        }
        sent
    }

    fn message(&self, job: LeasedJob) -> Result<Outgoing, String> {
        if job.awaited {
            return Err("it cannot go to NATS: other jobs wait for it".to_owned());
        }
        if job.kept {
            return Err("it cannot go to NATS: it shall be kept when it is completed".to_owned());
        }
        let message_id = format!("{}-{}", self.source, job.lease.job);
        let encoded = raw(job.payload).and_then(|payload| {
            Envelope {
                name: job.name,
                version: job.version,
                payload,
                max_attempts: job.max_attempts,
                timeout_ms: job.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
                trace: job.trace,
                scheduled_for_ms: job.scheduled_for.map(unix_ms),
                id: None,
                errors: Vec::new(),
                failures: job.failures,
            }
            .encode()
        });
        let body = encoded.map_err(|error| chain(&error))?;
        Ok(Outgoing { subject: self.nats.store.subject(self.queue), message_id, body })
    }
}

fn burial(lease: Lease, awaited: bool, error: String) -> Burial {
    Burial { lease, awaited, reason: DeadReason::Discarded, error }
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
