//! What becomes of fetched jobs, by acknowledgements that the server acknowledges in turn.
//!
//! JetStream takes an acknowledgement by the message's number, from whoever sends it: it does not know who holds a
//! message now. So nothing that sets a job free is sent once the lease has ended by this process's clock; a completion
//! is sent all the same, for the work is done.

use std::sync::Arc;

use async_nats::Request;
use async_nats::jetstream::AckKind;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::fetch::Held;
use super::record::{self, Record};
use super::{Inner, REQUEST, dead, nats};
use crate::Error;
use crate::backends::{Burial, Completion, Lease, Retry};
use std::time::Duration;

/// Sends an acknowledgement and waits until the server has taken it. The client has one inbox for all answers, so that
/// thousands may be under way.
pub(super) async fn acknowledge(inner: &Inner, held: &Held, kind: AckKind) -> Result<(), Error> {
    let request = Request::new().payload(kind.into()).timeout(Some(REQUEST));
    inner.client.send_request(held.reply.clone(), request).await.map(drop).map_err(nats)
}

/// Sets a job free, now or after a wait.
pub(super) async fn give_back(inner: &Inner, held: &Held, wait: Option<Duration>) -> Result<(), Error> {
    // Less than a millisecond is none.
    let wait = wait.filter(|wait| wait.as_millis() > 0);
    acknowledge(inner, held, AckKind::Nak(wait)).await
}

/// Runs one settlement for each lease that is still known, all at once, and lets go of those that succeed: when the
/// batch is repeated after an error they must not be set free again, from whoever has them then.
async fn each<T, F>(
    inner: &Inner,
    items: Vec<T>,
    lease: impl Fn(&T) -> Lease,
    settle: impl Fn(Arc<Held>, T) -> F,
) -> Result<usize, Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let found = items.into_iter().filter_map(|item| Some((inner.find(lease(&item))?, item)));
    let settled = found.map(|(held, item)| {
        let (lease, settling) = (held.lease, settle(held, item));
        async move { settling.await.map(|()| inner.let_go([lease])) }
    });
    let settled = join_all(settled).await.into_iter().collect::<Result<Vec<()>, Error>>()?;
    Ok(settled.len())
}

pub(super) async fn complete(inner: &Inner, done: Vec<Completion>) -> Result<usize, Error> {
    each(
        inner,
        done,
        |completion| completion.lease,
        |held, _| async move {
            acknowledge(inner, &held, AckKind::Ack).await?;
            // After the acknowledgement: a job that came again without its record would seem to have crashed.
            if held.recorded { record::remove(inner, held.sequence).await } else { Ok(()) }
        },
    )
    .await
}

pub(super) async fn release(inner: &Inner, leases: Vec<Lease>) -> Result<usize, Error> {
    each(
        inner,
        leases,
        |lease| *lease,
        |held, _| async move {
            let crashes = held.record.crashes;
            ended(inner, &held, None, |record| record.crashes = crashes.min(record.crashes)).await
        },
    )
    .await
}

pub(super) async fn retry(inner: &Inner, retries: Vec<Retry>) -> Result<usize, Error> {
    each(
        inner,
        retries,
        |retry| retry.lease,
        |held, Retry { delay, error, .. }| async move {
            let failures = held.failures();
            ended(inner, &held, Some(delay), |record| {
                record.crashes = 0;
                if let Some(error) = error {
                    record.note(failures, error);
                    record.failures = record.failures.saturating_add(1);
                }
            })
            .await
        },
    )
    .await
}

/// Notes that the delivery has ended, and gives the job back.
async fn ended(
    inner: &Inner,
    held: &Held,
    wait: Option<Duration>,
    note: impl FnOnce(&mut Record),
) -> Result<(), Error> {
    let late = held.is_late();
    let mut record = held.record.clone();
    if late && let Some(newer) = record::load(inner, held.sequence).await? {
        // Another worker has counted this delivery as a crash.
        record = newer;
        record.crashes = record.crashes.saturating_sub(1);
    }
    note(&mut record);
    record.accounted = record.accounted.max(held.delivered);
    record::save(inner, held.sequence, &record).await?;
    // Late, the server gives it to somebody by itself, or has done so: it must not be taken from them.
    if late { Ok(()) } else { give_back(inner, held, wait).await }
}

pub(super) async fn bury(inner: &Inner, burials: Vec<Burial>) -> Result<usize, Error> {
    each(
        inner,
        burials,
        |burial| burial.lease,
        |held, Burial { reason, error, .. }| async move {
            dead::bury(inner, &held, reason, Some(error)).await
        },
    )
    .await
}

pub(super) async fn extend(inner: &Inner, leases: Vec<Lease>, length: Duration) -> Result<Vec<Lease>, Error> {
    let until = Instant::now() + length;
    let found = leases.into_iter().filter_map(|lease| inner.find(lease));
    let extended = found.map(|held| async move {
        acknowledge(inner, &held, AckKind::Progress).await?;
        held.extended(until);
        Ok(held.lease)
    });
    join_all(extended).await.into_iter().collect()
}
