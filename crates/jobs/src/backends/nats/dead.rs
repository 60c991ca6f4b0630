//! Dead jobs: a stream of our own, one message each, with everything that is needed to bring it back.

use async_nats::jetstream::AckKind;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::fetch::Held;
use super::publish::Outgoing;
use super::record::{self, now_ms};
use super::{Envelope, Inner, nats, settle};
use crate::dead::{DeadJob, DeadReason, StoredError, time};
use crate::{Error, JobId};

/// How many are asked for at once.
const LOOKS: u64 = 64;

#[derive(Debug, Serialize, Deserialize)]
struct Dead {
    queue: String,
    reason: String,
    attempts: u32,
    died_at_ms: i64,
    errors: Vec<StoredError>,
    job: Envelope,
}

/// Moves a job to the dead. A crash half way leaves it in both places: it then runs once more.
pub(super) async fn bury(
    inner: &Inner,
    held: &Held,
    reason: DeadReason,
    error: Option<String>,
) -> Result<(), Error> {
    let (mut record, failures) = (held.record.clone(), held.failures());
    let attempts = failures + u32::from(error.is_some());
    if let Some(error) = error {
        record.note(failures, error);
    }
    let died_at_ms = now_ms();
    let dead = serde_json::json!({
        "queue": held.queue, "reason": reason.code(), "attempts": attempts, "died_at_ms": died_at_ms,
        "errors": record.errors, "job": held.envelope,
    });
    let message = Outgoing {
        subject: inner.config.dead_subject(held.lease.job),
        message_id: format!("{}-{died_at_ms}", held.sequence),
        body: serde_json::to_vec(&dead).map_err(nats)?,
    };
    record::store(inner, message).await?;
    settle::acknowledge(inner, held, AckKind::Ack).await?;
    if held.recorded { record::remove(inner, held.sequence).await } else { Ok(()) }
}

pub(super) async fn list(inner: &Inner, limit: usize) -> Result<Vec<DeadJob>, Error> {
    let stream = inner.context.get_stream(inner.config.dead_stream()).await.map_err(nats)?;
    let state = &stream.cached_info().state;
    let (first, mut last) = (state.first_sequence.max(1), state.last_sequence);
    let mut jobs = Vec::new();
    // Those that were brought back have left holes.
    while last >= first && jobs.len() < limit && state.messages > 0 {
        let from = last.saturating_sub(LOOKS - 1).max(first);
        let looks = (from..=last).rev().map(|sequence| stream.get_raw_message(sequence));
        for found in join_all(looks).await {
            match found {
                Ok(message) => jobs.extend(read(&message.subject, &message.payload)),
                Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => {}
                Err(error) => return Err(nats(error)),
            }
        }
        last = from - 1;
    }
    jobs.truncate(limit);
    Ok(jobs)
}

/// None for what is none of ours.
fn read(subject: &str, payload: &[u8]) -> Option<DeadJob> {
    let id: i64 = subject.rsplit('.').next()?.parse().ok()?;
    let Dead { queue, reason, attempts, died_at_ms, errors, job } = serde_json::from_slice(payload).ok()?;
    Some(DeadJob {
        id: id.into(),
        queue,
        name: job.name,
        payload: job.payload.get().to_owned(),
        attempts,
        reason: DeadReason::from_code(&reason),
        errors: errors.into_iter().map(StoredError::read).collect(),
        died_at: time(died_at_ms),
    })
}

pub(super) async fn revive(inner: &Inner, id: JobId) -> Result<bool, Error> {
    let stream = inner.context.get_stream_no_info(inner.config.dead_stream()).await.map_err(nats)?;
    let message = match stream.get_last_raw_message_by_subject(&inner.config.dead_subject(id)).await {
        Ok(message) => message,
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => return Ok(false),
        Err(error) => return Err(nats(error)),
    };
    let Dead { queue, errors, mut job, .. } = serde_json::from_slice(&message.payload).map_err(nats)?;
    job.id = Some(id.get());
    job.errors = errors;
    job.failures = 0;
    let message_id = format!("revived-{id}-{}", message.sequence);
    let subject = inner.config.subject(&queue);
    // Stored before it is removed, under an id, so that a call which is repeated after a crash stores it once.
    record::store(inner, Outgoing { subject, message_id, body: job.encode()? }).await?;
    match stream.delete_message(message.sequence).await {
        Ok(removed) => Ok(removed),
        // Somebody else was faster.
        Err(error) if error.to_string().contains("no message found") => Ok(false),
        Err(error) => Err(nats(error)),
    }
}
