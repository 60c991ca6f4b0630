//! Publishing: sent in order, all acknowledgements awaited together.

use std::time::Duration;

use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::time::{Instant, sleep};

use super::{Envelope, Inner, Nats, nats};
use crate::Error;
use crate::backoff::Weather;
use crate::job::{NewJob, Pushed};

/// How many publishes of one call are under way at once; well below what the client allows for all.
const IN_FLIGHT: usize = 1000;

/// How long a push that the server does not answer is repeated, under the same message ids.
const PATIENCE: Duration = Duration::from_secs(20);

/// The same while the server answers, and knows of no stream: after its start it may not have it yet.
const PATIENCE_WITHOUT_STREAM: Duration = Duration::from_secs(2);

/// A message to be published.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) subject: String,
    /// Two messages of the same id within the stream's window are stored once.
    pub(crate) message_id: String,
    pub(crate) body: Vec<u8>,
}

/// Why a message was not acknowledged.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is larger than the server allows.
    TooLarge,
    /// The stream's bounds are reached.
    Full,
    /// The server has no stream of the subject; or not yet.
    NoStream(Error),
    /// There was no answer. It may or may not be stored.
    Unknown(Error),
}

pub(super) async fn push(inner: &Inner, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
    let batch: u128 = rand::random();
    let mut outgoing = Vec::with_capacity(jobs.len());
    let mut queue = "";
    for (n, job) in jobs.into_iter().enumerate() {
        queue = job.queue;
        let subject = inner.config.subject(queue);
        let body = Envelope::of(job)?.encode()?;
        outgoing.push(Outgoing { subject, message_id: format!("{batch:x}-{n}"), body });
    }
    let limit = inner.client.server_info().max_payload;
    // The headers are counted too.
    if outgoing.iter().any(|message| limit > 0 && message.body.len() + 200 > limit) {
        return Err(Error::Unsupported("a job larger than the server's max_payload"));
    }
    let mut sequences: Vec<Option<u64>> = vec![None; outgoing.len()];
    let (began, mut weather) = (Instant::now(), Weather::default());
    loop {
        let waiting: Vec<usize> = (0..outgoing.len()).filter(|at| sequences[*at].is_none()).collect();
        let again: Vec<Outgoing> = waiting.iter().map(|at| outgoing[*at].clone()).collect();
        let results = publish(inner, again).await;
        let mut unknown = None;
        for (at, result) in waiting.into_iter().zip(results) {
            match result {
                Ok(sequence) => sequences[at] = Some(sequence),
                Err(refused) => unknown = Some(refused),
            }
        }
        let stored = sequences.iter().flatten().count();
        let (error, patience) = match unknown {
            None => return Ok(sequences.into_iter().flatten().map(pushed).collect()),
            // `Full` says that nothing was stored.
            Some(Refused::Full) if stored == 0 => {
                let max_waiting = inner.config.max_waiting.unwrap_or_default();
                return Err(Error::Full { queue: queue.to_owned(), max_waiting });
            }
            Some(Refused::Full | Refused::TooLarge) => {
                return Err(nats(format!("the server took {stored} of {} jobs", outgoing.len())));
            }
            Some(Refused::NoStream(error)) => (error, PATIENCE_WITHOUT_STREAM),
            Some(Refused::Unknown(error)) => (error, PATIENCE),
        };
        if began.elapsed() >= patience {
            return Err(error);
        }
        sleep(weather.next()).await;
    }
}

fn pushed(sequence: u64) -> Pushed {
    Pushed::new(i64::try_from(sequence).unwrap_or(i64::MAX))
}

impl Nats {
    /// Publishes once, in order, and answers for each with its sequence.
    pub(crate) async fn publish(
        &self,
        outgoing: impl IntoIterator<Item = Outgoing>,
    ) -> Vec<Result<u64, Refused>> {
        publish(&self.inner, outgoing).await
    }

    pub(crate) fn duplicate_window(&self) -> Duration {
        self.inner.config.duplicate_window
    }

    /// Where jobs of this queue are published.
    pub(crate) fn subject(&self, queue: &str) -> String {
        self.inner.config.subject(queue)
    }
}

/// Publishes once, in order, and answers for each with its sequence.
pub(super) async fn publish(
    inner: &Inner,
    outgoing: impl IntoIterator<Item = Outgoing>,
) -> Vec<Result<u64, Refused>> {
    let mut results = Vec::new();
    let mut under_way = FuturesOrdered::new();
    let mut away = false;
    for Outgoing { subject, message_id, body } in outgoing {
        if under_way.len() >= IN_FLIGHT
            && let Some(first) = under_way.next().await
        {
            away |= matches!(first, Err(Refused::Unknown(_)));
            results.push(first);
        }
        let sent = if away {
            Err(Refused::Unknown(nats("not sent: the server does not answer")))
        } else {
            let message = PublishMessage::build().payload(body.into()).message_id(message_id);
            inner.context.send_publish(subject, message).await.map_err(refused)
        };
        under_way.push_back(answer(sent));
    }
    results.extend(under_way.collect::<Vec<_>>().await);
    results
}

async fn answer(sent: Result<PublishAckFuture, Refused>) -> Result<u64, Refused> {
    sent?.await.map(|ack| ack.sequence).map_err(refused)
}

fn refused(error: PublishError) -> Refused {
    let store_failed = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .is_some_and(|error| error.error_code() == ErrorCode::STREAM_STORE_FAILED);
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Refused::TooLarge,
        PublishErrorKind::StreamNotFound => Refused::NoStream(nats(error)),
        PublishErrorKind::Other if store_failed => Refused::Full,
        _ => Refused::Unknown(nats(error)),
    }
}
