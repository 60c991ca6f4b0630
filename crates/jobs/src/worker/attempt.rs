use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use humantime_serde::re::humantime::format_duration;
use tokio::sync::mpsc;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::JobContext;
use super::floor::{Ended, Floor, Job};
use super::handlers::{Failure, Handler, Handlers, Payload};
use super::leases::Cut;
use super::settle::{Outcome, Settlement};
use crate::backends::Completion;
use crate::backoff::{around, full_jitter};
use crate::dead::{DeadReason, storable};
use crate::error::chain;
use crate::telemetry::{self, Meters};
use crate::verdict::{Verdict, verdict};
use crate::{BoxError, WorkerConfig};

/// How long a job that a newer release pushed is left to newer workers, give or take a fifth.
const NEWER: Duration = Duration::from_secs(5);

/// What all attempts of a worker share.
pub(super) struct Shared {
    pub(super) config: WorkerConfig,
    pub(super) handlers: Handlers,
    pub(super) queues: Vec<&'static str>,
    pub(super) floor: Floor,
    pub(super) settle: mpsc::UnboundedSender<Settlement>,
    /// Fires when the worker shall stop; handlers see it.
    pub(super) stopping: CancellationToken,
}

/// How an attempt ended.
enum End {
    Completed(Option<String>),
    Failed(BoxError),
    /// Failed, but not by an error of the handler's.
    Broken(String),
    Dead(DeadReason, String),
    Newer(u32),
    Cut(Cut),
}

/// What becomes of the job.
enum Fate {
    Completed(Option<String>),
    Settled(Outcome),
    /// It is somebody else's already.
    Gone,
}

/// One place: runs a job, then the next that waits, until none does.
pub(super) async fn place(shared: Arc<Shared>, first: Job) {
    let (mut job, mut started) = (first, Instant::now());
    loop {
        let at = (job.queue, job.handler);
        let fate = attempt(&shared, &mut job, started).await;
        let Job { leased, hold, .. } = job;
        let ended = match fate {
            Fate::Completed(result) => {
                let (awaited, kept) = (leased.awaited, leased.kept);
                let completion = Completion { lease: hold.lease(), result, awaited, kept };
                Some(Ended { completion, _hold: hold, repeated: false })
            }
            Fate::Settled(outcome) => {
                shared.settle.send(Settlement { hold, awaited: leased.awaited, outcome }).ok();
                None
            }
            Fate::Gone => None,
        };
        let now = Instant::now();
        match shared.floor.leave(at, ended, now) {
            Some(next) => (job, started) = (next, now),
            None => return,
        }
        // Handlers that never wait would keep the thread from all else.
        consume_budget().await;
    }
}

async fn attempt(shared: &Shared, job: &mut Job, started: Instant) -> Fate {
    let queue = shared.queues.get(job.queue).copied().unwrap_or_default();
    let number = job.leased.failures.saturating_add(1);
    let span = tracing::info_span!(
        telemetry::ATTEMPT_SPAN,
        job.id = job.leased.lease.job.get(),
        job.name = job.leased.name,
        job.queue = queue,
        job.attempt = number,
        traceparent = job.leased.trace.as_deref()
    );
    let Some(handler) = job.handler.and_then(|at| shared.handlers.at(at)) else {
        let name = &job.leased.name;
        let end = End::Dead(
            DeadReason::UnknownJob,
            format!("no handler for job `{name}` in a worker of queue `{queue}`"),
        );
        let meters = Meters::new(queue, name.clone());
        return span.in_scope(|| judge(shared, job, None, &meters, end, started));
    };
    // What waited here for its place waited too.
    handler.meters.started(job.leased.waited + started.duration_since(job.came));
    let end = run(shared, handler, job, number, started).instrument(span.clone()).await;
    span.in_scope(|| judge(shared, job, Some(handler), &handler.meters, end, started))
}

async fn run(shared: &Shared, handler: &Handler, job: &mut Job, number: u32, started: Instant) -> End {
    let seat = job.hold.seat();
    let timeout = job.leased.timeout.unwrap_or(shared.config.attempt_timeout);
    seat.start(started, timeout);
    let context = JobContext {
        id: job.leased.lease.job,
        attempt: number,
        max_attempts: job.leased.max_attempts,
        name: handler.name,
        queue: handler.queue,
        trace: job.leased.trace.take(),
        scheduled_for: job.leased.scheduled_for,
        seat: seat.clone(),
    };
    let payload = Payload {
        json: std::mem::take(&mut job.leased.payload),
        version: job.leased.version,
        kept: job.leased.kept,
    };
    // The handler's future is dropped inside, so that a panic of that is caught too.
    let handled = AssertUnwindSafe(async {
        tokio::select! {
            biased;
            result = (handler.run)(payload, context) => Ok(result),
            cut = seat.cut_short() => Err(cut),
        }
    });
    let handled = handled.catch_unwind().await;
    seat.end();
    match handled {
        Ok(Ok(Ok(result))) => End::Completed(result),
        Ok(Ok(Err(Failure::Failed(error)))) => End::Failed(error),
        Ok(Ok(Err(Failure::Newer(version)))) => End::Newer(version),
        Ok(Ok(Err(Failure::Undecodable(error)))) => {
            let (error, _) = told(error);
            let error = format!("the payload does not decode: {error}");
            End::Dead(DeadReason::Undecodable, error)
        }
        Ok(Err(Cut::TimedOut)) => End::Broken(format!("timed out after {}", format_duration(timeout))),
        Ok(Err(cut)) => End::Cut(cut),
        Err(panic) => End::Broken(format!("panicked: {}", panic_message(panic.as_ref()))),
    }
}

/// Decides what becomes of the job, and reports it.
fn judge(
    shared: &Shared,
    job: &Job,
    handler: Option<&Handler>,
    meters: &Meters,
    end: End,
    started: Instant,
) -> Fate {
    let ended = |outcome| meters.ended(outcome, started.elapsed());
    let retry = |delay, error| Fate::Settled(Outcome::Retry { delay, error });
    let (error, asked) = match end {
        End::Completed(result) => {
            ended(telemetry::Outcome::Completed);
            return Fate::Completed(result);
        }
        End::Cut(Cut::Cancelled) => {
            tracing::info!("the job was cancelled; the attempt is dropped");
            return Fate::Gone;
        }
        End::Cut(Cut::Lost) => {
            tracing::warn!("the lease was lost; the attempt is dropped");
            // If nobody has taken the job yet, its worker was not dead, and it may run again at once.
            return Fate::Settled(Outcome::Released);
        }
        End::Cut(_) => return Fate::Settled(Outcome::Released),
        End::Newer(version) => {
            tracing::warn!(version, "a newer release pushed this job; it is left to newer workers");
            return retry(around(NEWER), None);
        }
        End::Dead(reason, error) => {
            ended(telemetry::Outcome::Dead);
            return dead(reason, error);
        }
        End::Broken(error) => (error, Verdict::Retry),
        End::Failed(error) => told(error),
    };
    let failures = job.leased.failures.saturating_add(1);
    let last = failures >= job.leased.max_attempts;
    let delay = match asked {
        Verdict::Snooze(delay) => {
            tracing::debug!(?delay, "the job asked to be run later");
            ended(telemetry::Outcome::Snoozed);
            return retry(delay, None);
        }
        Verdict::Discard => {
            ended(telemetry::Outcome::Dead);
            return dead(DeadReason::Discarded, error);
        }
        // What fails because the worker stops is no failure.
        _ if shared.stopping.is_cancelled() => return Fate::Settled(Outcome::Released),
        _ if last => {
            ended(telemetry::Outcome::Dead);
            return dead(DeadReason::Exhausted, error);
        }
        Verdict::RetryIn(delay) => delay,
        Verdict::Retry => handler
            .and_then(|handler| own_wait(handler, failures))
            .unwrap_or_else(|| full_jitter(shared.config.retry_base, shared.config.retry_max, failures)),
    };
    tracing::warn!(error, ?delay, "the attempt failed; the job will be tried again");
    ended(telemetry::Outcome::Retried);
    retry(delay, Some(storable(error)))
}

/// What an error says, and asks for. It is the program's, and may panic.
fn told(error: BoxError) -> (String, Verdict) {
    let told = AssertUnwindSafe(move || (chain(error.as_ref()), verdict(error.as_ref())));
    catch_unwind(told).unwrap_or_else(|panic| {
        (format!("failed, and its error panicked: {}", panic_message(panic.as_ref())), Verdict::Retry)
    })
}

/// The job type's own wait, which may panic too.
fn own_wait(handler: &Handler, failures: u32) -> Option<Duration> {
    let wait = handler.retry_after;
    catch_unwind(|| wait(failures)).unwrap_or_else(|panic| {
        tracing::error!(
            job = handler.name,
            panic = panic_message(panic.as_ref()),
            "`retry_after` panicked; the job waits as if it had none"
        );
        None
    })
}

fn dead(reason: DeadReason, error: String) -> Fate {
    tracing::error!(error, reason = reason.code(), "the job is dead");
    Fate::Settled(Outcome::Dead { reason, error: storable(error) })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with no message")
}
