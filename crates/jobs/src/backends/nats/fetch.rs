//! Pulling messages, and what their deliveries say about the workers before.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_nats::Subject;
use async_nats::jetstream::Message;
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::record::{self, Record};
use super::{Envelope, Inner, dead, nats, settle, setup};
use crate::Error;
use crate::backends::{LEASE_ENDED, Lease, LeasedJob, Want};
use crate::backoff::ceiling;
use crate::dead::{DeadReason, time};
use crate::error::chain;
use crate::job::JobId;

/// How long a pull may take at most. What the server sent after it counts as a crash when its lease ends.
const PULL: Duration = Duration::from_secs(5);

/// For how long a lease that has ended can still be settled.
const SETTLED_LATE: Duration = Duration::from_secs(600);

/// A delivery that this process holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) queue: String,
    /// Where it is acknowledged.
    pub(super) reply: Subject,
    pub(super) sequence: u64,
    /// The number of this delivery; the first is 1.
    pub(super) delivered: u64,
    pub(super) envelope: Envelope,
    /// As it was when the job was fetched.
    pub(super) record: Record,
    /// True if there is a record in the stream.
    pub(super) recorded: bool,
    /// Before this the server gives the job to nobody else.
    until: Mutex<Instant>,
}

impl Held {
    /// How often it has failed, wherever that was.
    pub(super) fn failures(&self) -> u32 {
        self.envelope.failures.saturating_add(self.record.failures)
    }

    /// True if another worker may have the job by now.
    pub(super) fn is_late(&self) -> bool {
        self.until() <= Instant::now()
    }

    fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn extended(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

impl Inner {
    fn hold(&self, held: Held) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(held.lease, Arc::new(held));
    }

    pub(super) fn find(&self, lease: Lease) -> Option<Arc<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(&lease).cloned()
    }

    pub(super) fn let_go(&self, leases: impl IntoIterator<Item = Lease>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in leases {
            held.remove(&lease);
        }
    }

    /// Forgets what workers of this process that were dropped have left.
    pub(super) fn forget_lost(&self, now: Instant) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, held| held.until() + SETTLED_LATE > now);
    }
}

pub(super) async fn fetch(inner: &Inner, want: Want<'_>) -> Result<Vec<LeasedJob>, Error> {
    let until = Instant::now() + want.lease;
    let messages = pull(inner, want).await?;
    let received = messages.into_iter().map(|message| async move {
        match receive(inner, want, until, message).await {
            Ok(job) => job,
            Err(error) => {
                // It comes again when its lease ends.
                tracing::warn!(error = chain(&error), "could not look up what is known of a fetched job");
                None
            }
        }
    });
    Ok(join_all(received).await.into_iter().flatten().collect())
}

/// What the server has at once.
async fn pull(inner: &Inner, want: Want<'_>) -> Result<Vec<Message>, Error> {
    let deadline = Instant::now() + PULL.min(want.lease / 3);
    let pulling = async {
        let consumer = setup::consumer(inner, want.queue, want.lease).await?;
        consumer.fetch().max_messages(want.limit).messages().await.map_err(nats)
    };
    let mut batch = match timeout_at(deadline, pulling).await {
        Ok(Ok(batch)) => batch,
        Ok(Err(error)) => {
            setup::forget_consumer(inner, want.queue);
            return Err(error);
        }
        Err(_) => return Err(nats("the server did not answer a pull in time")),
    };
    let mut messages = Vec::new();
    loop {
        match timeout_at(deadline, batch.next()).await {
            Ok(Some(Ok(message))) => messages.push(message),
            Ok(None) => return Ok(messages),
            Ok(Some(Err(error))) if messages.is_empty() => {
                setup::forget_consumer(inner, want.queue);
                return Err(Error::Nats(error));
            }
            Err(_) if messages.is_empty() => return Err(nats("the server did not answer a pull in time")),
            Ok(Some(Err(_))) | Err(_) => return Ok(messages),
        }
    }
}

/// Takes a delivery, unless it says that the job crashed: that is noted, and the job waits, or is dead.
async fn receive(
    inner: &Inner,
    want: Want<'_>,
    until: Instant,
    message: Message,
) -> Result<Option<LeasedJob>, Error> {
    let info = message.info().map_err(Error::Nats)?;
    let (sequence, delivered) = (info.stream_sequence, u64::try_from(info.delivered).unwrap_or(1));
    let waited = SystemTime::now().duration_since(SystemTime::from(info.published)).unwrap_or_default();
    let id = i64::try_from(info.consumer_sequence).unwrap_or(i64::MAX);
    let found = if delivered > 1 { record::load(inner, sequence).await? } else { None };
    let recorded = found.is_some();
    let decoded = serde_json::from_slice::<Envelope>(&message.payload);
    let fault = decoded.as_ref().err().map(|error| format!("the message is no job: {error}"));
    let envelope = match decoded {
        Ok(envelope) => envelope,
        Err(_) => foreign(&message.payload)?,
    };
    let job = JobId::from(envelope.id.unwrap_or(i64::try_from(sequence).unwrap_or(i64::MAX)));
    let record = found.unwrap_or_else(|| Record { errors: envelope.errors.clone(), ..Record::default() });
    let mut held = Held {
        lease: Lease { job, id },
        queue: want.queue.to_owned(),
        reply: message.reply.clone().ok_or_else(|| nats("a message without a reply subject"))?,
        sequence,
        delivered,
        envelope,
        record,
        recorded,
        until: Mutex::new(until),
    };
    if let Some(fault) = fault {
        dead::bury(inner, &held, DeadReason::Undecodable, Some(fault)).await?;
        return Ok(None);
    }
    let crashes = delivered.saturating_sub(1).saturating_sub(held.record.accounted);
    if crashes > 0 {
        rescue(inner, &mut held, crashes).await?;
        return Ok(None);
    }
    if held.record.crashes >= inner.max_crashes() {
        dead::bury(inner, &held, DeadReason::Crashed, None).await?;
        inner.buried.fetch_add(1, Ordering::Relaxed);
        return Ok(None);
    }
    let leased = LeasedJob {
        lease: held.lease,
        name: held.envelope.name.clone(),
        version: held.envelope.version,
        payload: held.envelope.payload.get().to_owned(),
        failures: held.failures(),
        crashes: held.record.crashes,
        max_attempts: held.envelope.max_attempts.max(1),
        timeout: held.envelope.timeout_ms.map(Duration::from_millis),
        waited,
        trace: held.envelope.trace.clone(),
        scheduled_for: held.envelope.scheduled_for_ms.map(time),
        awaited: false,
        kept: false,
    };
    inner.hold(held);
    Ok(Some(leased))
}

/// Counts crashes, and gives the job back for after a backoff, which parts it from those it ran beside.
async fn rescue(inner: &Inner, held: &mut Held, crashes: u64) -> Result<(), Error> {
    let failures = held.failures();
    for _ in 0..crashes.min(10) {
        held.record.note(failures, LEASE_ENDED.to_owned());
    }
    held.record.crashes = held.record.crashes.saturating_add(u32::try_from(crashes).unwrap_or(u32::MAX));
    held.record.accounted = held.delivered;
    record::save(inner, held.sequence, &held.record).await?;
    inner.rescued.fetch_add(1, Ordering::Relaxed);
    let backoff = inner.backoff();
    let wait = ceiling(backoff.base, backoff.max, held.record.crashes);
    settle::give_back(inner, held, Some(wait.mul_f64(rand::random_range(0.5..=1.0)))).await
}

/// What somebody else put into the stream, as far as it can be shown.
fn foreign(payload: &[u8]) -> Result<Envelope, Error> {
    let text = String::from_utf8_lossy(payload);
    let payload = match serde_json::from_str::<Box<RawValue>>(&text) {
        Ok(json) => json,
        Err(_) => serde_json::value::to_raw_value(&text).map_err(nats)?,
    };
    Ok(Envelope {
        name: String::new(),
        version: 1,
        payload,
        max_attempts: 1,
        timeout_ms: None,
        trace: None,
        scheduled_for_ms: None,
        id: None,
        errors: Vec::new(),
        failures: 0,
    })
}

impl Inner {
    fn max_crashes(&self) -> u32 {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).max_crashes
    }

    fn backoff(&self) -> crate::backoff::Backoff {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner).backoff
    }
}
