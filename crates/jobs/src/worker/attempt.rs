use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use humantime_serde::re::humantime::format_duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::handlers::{Failure, Handler, Handlers};
use super::leases::Guard;
use super::settle::{Outcome, Settlement};
use crate::backends::LeasedJob;
use crate::backoff::full_jitter;
use crate::dead::{DeadReason, storable};
use crate::error::chain;
use crate::{JobContext, WorkerConfig, telemetry};

/// What all attempts of a worker share.
pub(super) struct Shared {
    pub(super) config: WorkerConfig,
    pub(super) handlers: Handlers,
    pub(super) settle: mpsc::Sender<Settlement>,
    /// Fires when the worker shall stop; handlers see it.
    pub(super) stopping: CancellationToken,
    /// Fires when the grace is over.
    pub(super) grace_over: CancellationToken,
}

/// How an attempt ended.
enum End {
    Completed,
    Failed(String),
    Undecodable(String),
    Unknown(String),
    /// Cut short through no fault of the job's.
    Interrupted,
}

/// Runs one job once and sends its outcome. The permit is its place among the running jobs.
pub(super) async fn attempt(
    shared: Arc<Shared>,
    queue: &'static str,
    mut job: LeasedJob,
    guard: Guard,
    permit: OwnedSemaphorePermit,
) {
    let number = job.failures.saturating_add(1);
    let context = JobContext {
        id: job.lease.job,
        attempt: number,
        max_attempts: job.max_attempts,
        cancellation: shared.stopping.child_token(),
    };
    let span = tracing::info_span!(
        telemetry::ATTEMPT_SPAN,
        job.id = context.id.get(),
        job.name = job.name,
        job.queue = queue,
        job.attempt = number
    );
    let started = Instant::now();
    let payload = std::mem::take(&mut job.payload);
    let end = match shared.handlers.get(&job.name) {
        Some(handler) => run(&shared, handler, payload, context, &guard).instrument(span.clone()).await,
        None => End::Unknown(format!("no handler for job `{}` in a worker of queue `{queue}`", job.name)),
    };
    let outcome = span.in_scope(|| judge(&shared.config, &job, end, started));
    // The permit goes after the settlement is taken, so that results which cannot be recorded stop the fetching.
    shared.settle.send(Settlement { guard, awaited: job.awaited, kept: job.kept, outcome }).await.ok();
    drop(permit);
}

async fn run(shared: &Shared, handler: &Handler, payload: String, context: JobContext, guard: &Guard) -> End {
    let _cancel_at_end = context.cancellation.clone().drop_guard();
    let handled = AssertUnwindSafe(handler(payload, context)).catch_unwind();
    tokio::select! {
        biased;
        result = handled => match result {
            Ok(Ok(())) => End::Completed,
            Ok(Err(Failure::Undecodable(error))) => End::Undecodable(format!("the payload does not decode: {error}")),
            Ok(Err(Failure::Failed(_))) if shared.stopping.is_cancelled() => End::Interrupted,
            Ok(Err(Failure::Failed(error))) => End::Failed(chain(error.as_ref())),
            Err(panic) => End::Failed(format!("panicked: {}", panic_message(panic.as_ref()))),
        },
        () = guard.lost.cancelled() => {
            tracing::warn!("the lease was lost; the attempt is dropped");
            End::Interrupted
        }
        () = shared.grace_over.cancelled() => End::Interrupted,
        () = sleep(shared.config.attempt_timeout) => {
            End::Failed(format!("timed out after {}", format_duration(shared.config.attempt_timeout)))
        }
    }
}

/// Decides what becomes of the job, and reports it.
fn judge(config: &WorkerConfig, job: &LeasedJob, end: End, started: Instant) -> Outcome {
    let failures = job.failures.saturating_add(1);
    let (label, outcome) = match end {
        End::Completed => (telemetry::COMPLETED, Outcome::Completed),
        End::Interrupted => return Outcome::Released,
        End::Failed(error) if failures < job.max_attempts => {
            let delay = full_jitter(config.retry_base, config.retry_max, failures);
            tracing::warn!(error, ?delay, "the attempt failed; the job will be tried again");
            (telemetry::RETRIED, Outcome::Retry { delay, error: Some(storable(error)) })
        }
        End::Failed(error) => (telemetry::DEAD, dead(DeadReason::Exhausted, error)),
        End::Undecodable(error) => (telemetry::DEAD, dead(DeadReason::Undecodable, error)),
        End::Unknown(error) => (telemetry::DEAD, dead(DeadReason::UnknownJob, error)),
    };
    telemetry::attempt_ended(&job.name, label, started.elapsed());
    outcome
}

fn dead(reason: DeadReason, error: String) -> Outcome {
    tracing::error!(error, reason = reason.code(), "the job is dead");
    Outcome::Dead { reason, error: storable(error) }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with no message")
}
