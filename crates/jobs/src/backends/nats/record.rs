//! What is known of a job that has failed, crashed or been given back: a message of its own in a second stream, until
//! the job is done. A job that simply runs has none, and costs nothing here.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use serde::{Deserialize, Serialize};

use super::publish::{Outgoing, Refused, publish};
use super::{Inner, nats};
use crate::Error;
use crate::dead::StoredError;

/// How many errors are kept with a job.
const MAX_ERRORS: usize = 10;

/// A job's past.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) failures: u32,
    /// In a row.
    pub(super) crashes: u32,
    /// Up to which delivery it is known what became of them. Later ones that have ended are crashes.
    pub(super) accounted: u64,
    #[serde(default)]
    pub(super) errors: Vec<StoredError>,
}

impl Record {
    /// Notes an error of the attempt that follows `failures`.
    pub(super) fn note(&mut self, failures: u32, error: String) {
        if self.errors.len() >= MAX_ERRORS {
            self.errors.remove(0);
        }
        self.errors.push(StoredError { attempt: failures.saturating_add(1), at_ms: now_ms(), error });
    }
}

/// The worker's clock: JetStream tells no time.
pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

pub(super) async fn load(inner: &Inner, sequence: u64) -> Result<Option<Record>, Error> {
    let stream = inner.context.get_stream_no_info(inner.config.attempts_stream()).await.map_err(nats)?;
    let subject = inner.config.attempts_subject(sequence);
    match stream.get_last_raw_message_by_subject(&subject).await {
        // What cannot be read is as good as absent: the job must not be lost over it.
        Ok(message) => Ok(serde_json::from_slice(&message.payload).ok()),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(nats(error)),
    }
}

pub(super) async fn save(inner: &Inner, sequence: u64, record: &Record) -> Result<(), Error> {
    let body = serde_json::to_vec(record).map_err(nats)?;
    // Of the same record saved twice the second replaces the first; an id would hide a later one.
    let message_id = format!("{sequence}-{:x}", rand::random::<u64>());
    store(inner, Outgoing { subject: inner.config.attempts_subject(sequence), message_id, body }).await
}

/// Publishes one message.
pub(super) async fn store(inner: &Inner, message: Outgoing) -> Result<(), Error> {
    match publish(inner, [message]).await.pop() {
        Some(Ok(_)) => Ok(()),
        Some(Err(Refused::NoStream(error) | Refused::Unknown(error))) => Err(error),
        Some(Err(Refused::Full)) => Err(nats("the server's storage is full")),
        Some(Err(Refused::TooLarge)) => Err(nats("a message is larger than the server's max_payload")),
        None => Err(Error::Closed),
    }
}

pub(super) async fn remove(inner: &Inner, sequence: u64) -> Result<(), Error> {
    let stream = inner.context.get_stream_no_info(inner.config.attempts_stream()).await.map_err(nats)?;
    stream.purge().filter(inner.config.attempts_subject(sequence)).await.map(drop).map_err(nats)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_errors_are_kept() {
        let mut record = Record::default();
        for failures in 0..12 {
            record.note(failures, format!("error {failures}"));
        }
        let attempts: Vec<u32> = record.errors.iter().map(|error| error.attempt).collect();
        assert_eq!(attempts, (3..=12).collect::<Vec<_>>());
    }
}
