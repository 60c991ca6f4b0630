//! Events that a consumer gave up: a stream of our own beside that of the events. What is redelivered goes through it
//! too, to that consumer alone.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream::{
    message::PublishMessage,
    stream::{self, LastRawMessageErrorKind, StorageType},
};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::{JetStream, message::Held};
use crate::{BoxError, Error, subscription::from_millis};

/// How many are asked for at once.
const LOOKS: u64 = 64;

/// An event from elsewhere that a consumer gave up, and why.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RemoteDeadLetter {
    /// Names it for [`JetStream::redeliver`].
    pub sequence: u64,
    /// The consumer's name.
    pub subscription: String,
    /// The message as it came: a CloudEvent, if it was one.
    pub message: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The last attempt's error.
    pub error: String,
    /// When it was given up, by the consumer's clock.
    #[serde(with = "humantime_serde")]
    pub died_at: SystemTime,
}

#[derive(Deserialize, Serialize)]
struct Stored {
    subscription: String,
    message: String,
    attempts: u32,
    error: String,
    died_at_ms: i64,
}

impl JetStream {
    pub(super) fn dead_stream(&self) -> String {
        format!("{}-dead", self.config.stream)
    }

    fn dead_subject(&self, consumer: &str) -> String {
        format!("{}-dead.dead.{consumer}", self.config.stream)
    }

    /// Where redelivered events wait for a consumer.
    pub(super) fn again_subject(&self, consumer: &str) -> String {
        format!("{}-dead.again.{consumer}", self.config.stream)
    }

    pub(super) async fn ensure_dead_stream(&self) -> Result<(), BoxError> {
        let name = self.dead_stream();
        let config = stream::Config {
            subjects: vec![format!("{name}.*.*")],
            name,
            storage: StorageType::File,
            duplicate_window: self.config.duplicate_window,
            ..stream::Config::default()
        };
        self.context.get_or_create_stream(config).await?;
        Ok(())
    }

    /// Stores a dead letter. The message itself is then still to be acknowledged.
    pub(super) async fn bury(
        &self,
        consumer: &str,
        held: &Held,
        attempts: u32,
        error: String,
    ) -> Result<(), BoxError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stored = Stored {
            subscription: consumer.to_owned(),
            message: String::from_utf8_lossy(&held.message.payload).into_owned(),
            attempts,
            error,
            died_at_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
        };
        // The same letter, when its message comes again because the acknowledgement got lost.
        let id = format!("dead-{consumer}-{}-{}", held.message.subject, held.sequence);
        self.store(self.dead_subject(consumer), &id, serde_json::to_vec(&stored)?).await
    }

    async fn store(&self, subject: String, id: &str, body: Vec<u8>) -> Result<(), BoxError> {
        let message = PublishMessage::build().payload(body.into()).message_id(id);
        self.context.send_publish(subject, message).await?.await?;
        Ok(())
    }

    /// The dead letters of all consumers of this stream, the latest first.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<RemoteDeadLetter>, Error> {
        let failed = Error::store("read dead letters from JetStream");
        self.read_dead_letters(limit).await.map_err(failed)
    }

    async fn read_dead_letters(&self, limit: usize) -> Result<Vec<RemoteDeadLetter>, BoxError> {
        self.ensure_dead_stream().await?;
        let stream = self.context.get_stream(self.dead_stream()).await?;
        let state = &stream.cached_info().state;
        let (first, mut last) = (state.first_sequence.max(1), state.last_sequence);
        let dead = self.dead_subject("");
        let mut letters = Vec::new();
        // Those that were redelivered have left holes.
        while last >= first && letters.len() < limit && state.messages > 0 {
            let from = last.saturating_sub(LOOKS - 1).max(first);
            for found in join_all((from..=last).rev().map(|at| stream.get_raw_message(at))).await {
                match found {
                    Ok(message) if message.subject.starts_with(&dead) => {
                        letters.extend(letter(message.sequence, &message.payload));
                    }
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            last = from - 1;
        }
        letters.truncate(limit);
        Ok(letters)
    }

    /// Hands a dead letter to its consumer again, with all its attempts before it. The error is
    /// [`Error::NoDeadLetter`] when there is none.
    pub async fn redeliver(&self, sequence: u64) -> Result<(), Error> {
        let found = self.redeliver_once(sequence).await;
        if found.map_err(Error::store("redeliver an event from JetStream"))? {
            return Ok(());
        }
        Err(Error::NoDeadLetter(i64::try_from(sequence).unwrap_or(i64::MAX)))
    }

    async fn redeliver_once(&self, sequence: u64) -> Result<bool, BoxError> {
        self.ensure_dead_stream().await?;
        let stream = self.context.get_stream(self.dead_stream()).await?;
        let message = match stream.get_raw_message(sequence).await {
            Ok(message) if message.subject.starts_with(&self.dead_subject("")) => message,
            Ok(_) => return Ok(false),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let stored: Stored = serde_json::from_slice(&message.payload)?;
        // Stored before it is removed, under an id, so that a call which is repeated after a crash stores it once.
        let subject = self.again_subject(&stored.subscription);
        self.store(subject, &format!("again-{sequence}"), stored.message.into_bytes()).await?;
        self.remove_dead(sequence).await?;
        Ok(true)
    }

    /// Removes a message from the stream of dead letters, if it is there.
    pub(super) async fn remove_dead(&self, sequence: u64) -> Result<(), BoxError> {
        let stream = self.context.get_stream_no_info(self.dead_stream()).await?;
        match stream.delete_message(sequence).await {
            Err(error) if !error.to_string().contains("no message found") => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// None for what is none of ours.
fn letter(sequence: u64, payload: &[u8]) -> Option<RemoteDeadLetter> {
    let Stored { subscription, message, attempts, error, died_at_ms } =
        serde_json::from_slice(payload).ok()?;
    let died_at = from_millis(died_at_ms);
    Some(RemoteDeadLetter { sequence, subscription, message, attempts, error, died_at })
}
