//! NATS JetStream: a work-queue stream with a subject and a durable consumer for each queue.
//!
//! One stream, not one a queue: its sequence gives job ids that no two queues share, publishes to different queues
//! share one pipeline, and there is one set of replicas, limits and message ids to know of. What a server can keep of a
//! job's past is a count of deliveries; failures, crashes and errors stand in a second stream, for those jobs only that
//! had any, and the dead in a third.

mod config;
mod dead;
mod envelope;
mod fetch;
mod notify;
mod publish;
mod record;
mod settle;
mod setup;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::{self, Context, consumer::PullConsumer};
use tokio::time::Instant;

use super::{
    Backend, Burial, Completion, Exchanged, Kept, Kind, Lease, PROGRESS, Retry, Store, Upkeep, Want,
};
use crate::announcer::Announcer;
use crate::backends::inspect::Observed;
use crate::backoff::Backoff;
use crate::dead::DeadJob;
use crate::job::{NewJob, Pushed};
use crate::queue::QueueStats;
use crate::wakeups::{Notice, Wakeups};
use crate::{BoxError, Error, JobId, Queue};
pub use config::NatsConfig;
pub(crate) use envelope::{Envelope, raw};
pub(crate) use publish::{Outgoing, Refused};

/// A queue in NATS JetStream.
#[derive(Debug, Clone)]
pub struct Nats {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    context: Context,
    config: NatsConfig,
    announcer: Arc<Announcer<notify::Publish>>,
    /// What this process has fetched and not settled: how to acknowledge it.
    held: Mutex<HashMap<Lease, Arc<fetch::Held>>>,
    /// The consumer of each queue, and the lease it was made for.
    consumers: Mutex<HashMap<String, (Duration, PullConsumer)>>,
    upkeep: Mutex<Upkeep>,
    /// Since the last upkeep.
    rescued: AtomicUsize,
    buried: AtomicUsize,
}

/// How long a request to the server may take; there are retries around each.
const REQUEST: Duration = Duration::from_secs(5);

impl Queue<Nats> {
    /// A queue in JetStream, over this connection. Nothing is sent until the first call; [`Queue::migrate`] creates the
    /// streams.
    ///
    /// For what outgrows one database: push in a transaction of the database, and let
    /// [`forward_to`](Queue::forward_to) move the jobs here. What JetStream cannot do is refused: a push with a delay, a
    /// priority, a key or uniqueness, a worker of jobs that are kept, one with
    /// [objectives](crate::WorkerConfig::objectives), and [progress](crate::JobContext::progress), with
    /// [`Error::Unsupported`].
    ///
    /// Make the client with `retry_on_initial_connect`, so that a server that is down at the start is waited for.
    ///
    /// ```no_run
    /// use greenwave_jobs::{NatsConfig, Queue};
    ///
    /// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = async_nats::ConnectOptions::new()
    ///     .retry_on_initial_connect()
    ///     .connect("nats://127.0.0.1:4222")
    ///     .await?;
    /// let queue = Queue::nats(client, NatsConfig::default())?;
    /// queue.migrate().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn nats(client: Client, config: NatsConfig) -> Result<Self, Error> {
        config.check()?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(REQUEST);
        let defaults = crate::WorkerConfig::default();
        let backoff = Backoff { base: defaults.retry_base, max: defaults.retry_max };
        let announcer = Arc::new(Announcer::new(notify::Publish {
            client: client.clone(),
            subject: config.wake_subject(),
        }));
        let inner = Inner {
            client,
            context,
            config,
            announcer,
            held: Mutex::default(),
            consumers: Mutex::default(),
            upkeep: Mutex::new(Upkeep { max_crashes: defaults.max_crashes, backoff }),
            rescued: AtomicUsize::new(0),
            buried: AtomicUsize::new(0),
        };
        Ok(Queue::over(Nats { inner: Arc::new(inner) }, Arc::default()))
    }
}

impl Backend for Nats {}

impl Nats {
    /// An error at once while the connection is away, where the client would keep what it is given and wait.
    pub(crate) fn check_connected(&self) -> Result<(), Error> {
        match self.inner.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err(nats("the connection is away")),
        }
    }
}

impl Store for Nats {
    /// The server's own monitoring knows the depth of each consumer.
    const OBSERVES: bool = false;
    const REPORTS: bool = false;

    async fn migrate(&self) -> Result<(), Error> {
        self.check_connected()?;
        setup::migrate(&self.inner).await
    }

    fn unsupported(&self, kind: &Kind) -> Option<&'static str> {
        envelope::unsupported_kind(kind.priority, kind.keep)
    }

    async fn is_migrated(&self) -> Result<bool, Error> {
        self.check_connected()?;
        setup::is_migrated(&self.inner).await
    }

    async fn push(&self, jobs: Vec<NewJob>) -> Result<Vec<Pushed>, Error> {
        publish::push(&self.inner, jobs).await
    }

    async fn exchange(&self, done: Vec<Completion>, want: Option<Want<'_>>) -> Result<Exchanged, Error> {
        self.check_connected()?;
        let completing =
            async { if done.is_empty() { Ok(0) } else { settle::complete(&self.inner, done).await } };
        let fetching = async {
            match want {
                Some(want) => fetch::fetch(&self.inner, want).await,
                None => Ok(Vec::new()),
            }
        };
        // What was fetched is held, so an answer that completing failed must not lose it.
        match tokio::join!(completing, fetching) {
            (Ok(completed), Ok(jobs)) => Ok(Exchanged { completed, jobs, ..Exchanged::default() }),
            (Err(error), Ok(jobs)) => {
                let leases = jobs.into_iter().map(|job| job.lease).collect();
                settle::release(&self.inner, leases).await.ok();
                Err(error)
            }
            // What is completed must be known as such; the next fetch says what is wrong.
            (Ok(completed), Err(_)) if completed > 0 => Ok(Exchanged { completed, ..Exchanged::default() }),
            (_, Err(error)) => Err(error),
        }
    }

    async fn upkeep(&self, upkeep: Upkeep) -> Result<Kept, Error> {
        *self.inner.upkeep.lock().unwrap_or_else(PoisonError::into_inner) = upkeep;
        self.inner.forget_lost(Instant::now());
        // The server promotes and rescues by itself; what it gave again was found when it was fetched.
        Ok(Kept {
            rescued: self.inner.rescued.swap(0, Ordering::Relaxed),
            buried: self.inner.buried.swap(0, Ordering::Relaxed),
            ..Kept::default()
        })
    }

    async fn extend(&self, leases: Vec<Lease>, lease: Duration) -> Result<Vec<Lease>, Error> {
        self.check_connected()?;
        settle::extend(&self.inner, leases, lease).await
    }

    async fn report(&self, _progress: Vec<(Lease, String)>) -> Result<usize, Error> {
        Err(Error::Unsupported(PROGRESS))
    }

    async fn release(&self, leases: Vec<Lease>) -> Result<usize, Error> {
        self.check_connected()?;
        settle::release(&self.inner, leases).await
    }

    async fn retry(&self, retries: Vec<Retry>) -> Result<usize, Error> {
        self.check_connected()?;
        settle::retry(&self.inner, retries).await
    }

    async fn bury(&self, burials: Vec<Burial>) -> Result<usize, Error> {
        self.check_connected()?;
        settle::bury(&self.inner, burials).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.check_connected()?;
        setup::stats(&self.inner).await
    }

    async fn dead(&self, limit: usize) -> Result<Vec<DeadJob>, Error> {
        self.check_connected()?;
        dead::list(&self.inner, limit).await
    }

    async fn retry_dead(&self, id: JobId) -> Result<bool, Error> {
        self.check_connected()?;
        dead::revive(&self.inner, id).await
    }

    async fn observe(&self, _holder: i64, _queues: &[&str], _hold: Duration) -> Result<Vec<Observed>, Error> {
        Ok(Vec::new())
    }

    fn announce(&self, notice: Notice) {
        self.inner.announcer.announce(notice);
    }

    fn listen(&self, wakeups: Arc<Wakeups>) -> impl Future<Output = ()> + Send {
        notify::listen(Arc::clone(&self.inner), wakeups)
    }
}

pub(crate) fn nats(error: impl Into<BoxError>) -> Error {
    Error::Nats(error.into())
}

/// A queue's name as a part of a subject and of a consumer's name: what either forbids is written as `=` and two
/// digits for each byte.
fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => token.push(byte.into()),
            _ => token.push_str(&format!("={byte:02X}")),
        }
    }
    // An empty token is none.
    if token.is_empty() { "=".to_owned() } else { token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_queue_is_a_token() {
        assert_eq!(token("mail-1_b"), "mail-1_b");
        assert_eq!(token("mail.high *"), "mail=2Ehigh=20=2A");
        assert_eq!(token("ä="), "=C3=A4=3D");
        assert_eq!(token(""), "=");
    }
}
