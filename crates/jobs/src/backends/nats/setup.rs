//! The streams and consumers, and what they count.

use std::sync::PoisonError;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{ErrorCode, stream};
use futures_util::TryStreamExt;

use super::{Inner, nats, token};
use crate::Error;
use crate::queue::QueueStats;

/// Negative acknowledgements with a delay, and refusing what is too much for one subject.
const OLDEST: (u32, u32) = (2, 9);

/// The first that can be told to write each message to the disk before it acknowledges it.
const WITH_SYNC: (u32, u32) = (2, 10);

pub(super) async fn migrate(inner: &Inner) -> Result<(), Error> {
    check_server(inner)?;
    for config in streams(inner) {
        let name = config.name.clone();
        let stream = inner.context.get_or_create_stream(config).await.map_err(nats)?;
        check_stream(inner, &name, &stream.cached_info().config)?;
    }
    Ok(())
}

fn check_server(inner: &Inner) -> Result<(), Error> {
    let info = inner.client.server_info();
    let version = info.version.as_str();
    let known = parse_version(version);
    if known.is_some_and(|known| known < OLDEST) {
        return Err(nats(format!("NATS server {version} is too old: jobs need 2.9 or later")));
    }
    if known.is_some_and(|known| known < WITH_SYNC) {
        tracing::warn!(
            version,
            "this NATS server acknowledges jobs before they are on the disk, and cannot be told otherwise: a power \
             cut may lose the last two minutes of them. From 2.10 on `sync_interval: always` waits for the disk"
        );
    } else {
        tracing::info!(
            version,
            "unless its configuration says `sync_interval: always`, a NATS server acknowledges jobs before they are \
             on the disk: a power cut may lose the last of them"
        );
    }
    Ok(())
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

fn streams(inner: &Inner) -> [Config; 3] {
    let config = &inner.config;
    let bound = config.max_waiting.and_then(|max| i64::try_from(max).ok());
    // Bounds refuse what is new: the default, to drop what is old, would lose jobs.
    let common = || Config {
        storage: StorageType::File,
        num_replicas: config.replicas,
        duplicate_window: config.duplicate_window,
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    let latest = |name: String| Config {
        subjects: vec![format!("{name}.*")],
        name,
        max_messages_per_subject: 1,
        // Here a new one replaces its predecessor.
        discard: DiscardPolicy::Old,
        ..common()
    };
    let jobs = Config {
        name: config.stream.clone(),
        subjects: vec![format!("{}.*", config.stream)],
        retention: RetentionPolicy::WorkQueue,
        max_messages_per_subject: bound.unwrap_or_default(),
        discard_new_per_subject: bound.is_some(),
        ..common()
    };
    [jobs, latest(config.attempts_stream()), latest(config.dead_stream())]
}

/// Refuses a stream that somebody made in a way that would lose jobs.
fn check_stream(inner: &Inner, name: &str, found: &Config) -> Result<(), Error> {
    let jobs = name == inner.config.stream;
    let fault = if jobs && found.retention != RetentionPolicy::WorkQueue {
        "must have the retention `workqueue`"
    } else if jobs && found.discard != DiscardPolicy::New {
        "must discard new messages: with `old`, a bound drops jobs"
    } else if !found.max_age.is_zero() {
        "must not have a `max_age`, which drops jobs"
    } else if !found.subjects.contains(&format!("{name}.*")) {
        "must have the subjects `{stream}.*`"
    } else {
        return Ok(());
    };
    Err(nats(format!("the stream `{name}` {fault}")))
}

pub(super) async fn is_migrated(inner: &Inner) -> Result<bool, Error> {
    for config in streams(inner) {
        match find(inner, &config.name).await? {
            Some(stream) => check_stream(inner, &config.name, &stream.cached_info().config)?,
            None => return Ok(false),
        }
    }
    Ok(true)
}

async fn find(inner: &Inner, name: &str) -> Result<Option<stream::Stream>, Error> {
    match inner.context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(None)
            }
            _ => Err(nats(error)),
        },
    }
}

/// The durable consumer of a queue; made on first use, and made anew when the lease is another.
pub(super) async fn consumer(inner: &Inner, queue: &str, lease: Duration) -> Result<PullConsumer, Error> {
    {
        let consumers = inner.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_for, consumer)) = consumers.get(queue)
            && *made_for == lease
        {
            return Ok(consumer.clone());
        }
    }
    let config = pull::Config {
        durable_name: Some(token(queue)),
        filter_subject: inner.config.subject(queue),
        ack_policy: AckPolicy::Explicit,
        ack_wait: lease,
        // Never given up by the server, which would leave the job undelivered for ever and tell nobody: failures and
        // crashes are counted here.
        max_deliver: -1,
        // Jobs that wait for their next attempt are pending too: a bound would let them stop the queue.
        max_ack_pending: -1,
        num_replicas: inner.config.replicas,
        ..pull::Config::default()
    };
    let consumer =
        inner.context.create_consumer_on_stream(config, &inner.config.stream).await.map_err(nats)?;
    remove_done(inner, queue, &consumer).await?;
    let mut consumers = inner.consumers.lock().unwrap_or_else(PoisonError::into_inner);
    consumers.insert(queue.to_owned(), (lease, consumer.clone()));
    Ok(consumer)
}

/// Removes what has been acknowledged and is there all the same: a server that is killed may come back with messages
/// that it had removed, and never delivers them again. Nothing below the consumer's floor is still to be done.
async fn remove_done(inner: &Inner, queue: &str, consumer: &PullConsumer) -> Result<(), Error> {
    let floor = consumer.cached_info().ack_floor.stream_sequence;
    if floor == 0 {
        return Ok(());
    }
    let stream = inner.context.get_stream_no_info(&inner.config.stream).await.map_err(nats)?;
    let purge = stream.purge().filter(inner.config.subject(queue)).sequence(floor + 1);
    let removed = purge.await.map_err(nats)?.purged;
    if removed > 0 {
        tracing::info!(queue, removed, "removed jobs that were done before the NATS server was killed");
    }
    Ok(())
}

/// After an error: the consumer may be gone.
pub(super) fn forget_consumer(inner: &Inner, queue: &str) {
    inner.consumers.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
}

/// JetStream tells what is unacknowledged, not why. What has a record has been started before.
pub(super) async fn stats(inner: &Inner) -> Result<QueueStats, Error> {
    let Some(stream) = find(inner, &inner.config.stream).await? else { return Err(Error::NotMigrated) };
    let by_subject: Vec<(String, usize)> = stream
        .info_with_subjects(format!("{}.*", inner.config.stream))
        .await
        .map_err(nats)?
        .try_collect()
        .await
        .map_err(nats)?;
    let consumers: Vec<_> = stream.consumers().try_collect().await.map_err(nats)?;
    let pending: u64 = consumers.iter().map(|consumer| consumer.num_ack_pending as u64).sum();
    // Not what the stream holds: see `remove_done`.
    let waiting: u64 = consumers.iter().map(|consumer| consumer.num_pending).sum();
    let served = |subject: &str| consumers.iter().any(|consumer| consumer.config.filter_subject == subject);
    let unserved = by_subject.iter().filter(|(subject, _)| !served(subject));
    let ready = waiting + unserved.map(|(_, count)| *count as u64).sum::<u64>();
    let count = async |name: String| -> Result<u64, Error> {
        Ok(find(inner, &name).await?.map_or(0, |stream| stream.cached_info().state.messages))
    };
    let recorded = count(inner.config.attempts_stream()).await?;
    let dead = count(inner.config.dead_stream()).await?;
    let scheduled = recorded.min(pending);
    Ok(QueueStats { ready, scheduled, running: pending - scheduled, blocked: 0, dead })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_far_as_they_matter() {
        assert_eq!(parse_version("2.9.10"), Some((2, 9)));
        assert_eq!(parse_version("2.12.0-RC.1"), Some((2, 12)));
        assert_eq!(parse_version("nightly"), None);
    }
}
