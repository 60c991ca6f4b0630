//! L2: Redis, shared by processes. It may fail at any time, and then costs little.

mod breaker;
mod codec;
mod coherence;
mod compress;
mod envelope;
mod kept;
mod lease;
#[cfg(feature = "postcard")]
mod postcard;
mod remote_tags;
mod script;
mod tally;
mod tier;
mod waits;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError,
    ServerErrorKind, aio::MultiplexedConnection,
};
use tokio::time::timeout;

use self::breaker::Breaker;
pub use self::codec::{Codec, MessagePack};
#[cfg(feature = "postcard")]
pub use self::postcard::Postcard;
pub(crate) use self::{
    coherence::{Coherence, Seal, Standing},
    kept::{Filled, Kept, Outgoing, Turn},
    lease::Lease,
    tier::{MakeKey, Tier, display},
};
use crate::{Error, RemoteConfig, telemetry::REMOTE_TARGET};

/// How many commands may wait to be written to the connection before callers wait for room.
const COMMANDS_WAITING: usize = 1024;

/// A Redis (or Valkey) that caches keep their values in.
///
/// It never fails a read. Every operation ends within [`RemoteConfig::timeout`]; after a failure the remote is left
/// alone for [`RemoteConfig::retry_after`], and then tried by one operation at a time until one succeeds. Only
/// invalidations are always tried. All caches given a clone share one connection, which is opened by the first
/// operation and again whenever it is lost.
///
/// ```no_run
/// use greenwave_cache::{Cache, Remote};
///
/// # fn main() -> Result<(), greenwave_cache::Error> {
/// let remote = Remote::connect("redis://127.0.0.1:6379")?;
/// let names = Cache::<u64, String>::builder("name").remote(remote.clone()).build();
/// let ages = Cache::<u64, u8>::builder("age").remote(remote).build();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    config: RemoteConfig,
    breaker: Breaker,
    connection: Mutex<Slot>,
    connecting: tokio::sync::Mutex<()>,
    coherence: Arc<Coherence>,
    prefix: String,
}

/// The connection that is in use, and how many there were before it.
struct Slot {
    connection: Option<MultiplexedConnection>,
    epoch: u64,
}

/// Why the remote gave no answer.
#[derive(Debug)]
enum Failure {
    /// It was not asked: it has just failed.
    Skipped,
    TimedOut(Duration),
    Broken(RedisError),
    /// It answered, with an error.
    Refused(RedisError),
}

impl Remote {
    /// A remote at a URL like `redis://:password@host:6379/0`, `rediss://…` for TLS, `unix:///path`.
    ///
    /// It connects when it is first needed: a Redis that is down fails no start. For TLS it makes ring rustls's
    /// provider for the process, unless the process has chosen one.
    pub fn connect(url: &str) -> Result<Remote, Error> {
        Remote::connect_with(url, RemoteConfig::default())
    }

    /// The same, with other limits than the default ones.
    pub fn connect_with(url: &str, config: RemoteConfig) -> Result<Remote, Error> {
        let client = Client::open(url).map_err(Error::RemoteUrl)?;
        if matches!(client.get_connection_info().addr(), ConnectionAddr::TcpTls { .. }) {
            // Without a provider the first connection would panic. This fails only where there is one.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let shared = Shared {
            client,
            breaker: Breaker::new(config.retry_after),
            config,
            connection: Mutex::new(Slot { connection: None, epoch: 0 }),
            connecting: tokio::sync::Mutex::new(()),
            coherence: Arc::new(Coherence::new(std::time::Duration::from_secs(1))),
            prefix: String::new(),
        };
        Ok(Remote { shared: Arc::new(shared) })
    }

    /// Asks Redis, within the timeout and if the breaker lets it.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        match self.shared.breaker.lets_through() {
            true => self.insist(command).await,
            false => Err(Failure::Skipped),
        }
    }

    /// Asks Redis, within the timeout, even if it has just failed.
    async fn insist<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let shared = &*self.shared;
        let epoch = shared.slot().epoch;
        let limit = shared.config.timeout;
        let answer = timeout(limit, shared.exchange(command)).await.unwrap_or(Err(Failure::TimedOut(limit)));
        match &answer {
            Ok(_) | Err(Failure::Refused(_)) => self.recovered(),
            Err(failure) => {
                // A connection that owes an answer may owe it for ever.
                shared.forget(epoch);
                self.failed(failure);
            }
        }
        answer
    }

    async fn ask_all(&self, commands: &[Cmd]) -> Result<Vec<redis::Value>, Failure> {
        let mut answers = Vec::new();
        for command in commands {
            answers.push(self.ask(command).await?);
        }
        Ok(answers)
    }

    async fn forget(&self, redis_keys: Vec<Vec<u8>>) {
        let _ = self.insist::<redis::Value>(redis::cmd("DEL").arg(redis_keys)).await;
    }

    async fn change(&self, command: &Cmd, _: &[&[u8]]) -> Result<redis::Value, Failure> {
        self.insist(command).await
    }

    fn coherence(&self) -> &Arc<Coherence> {
        &self.shared.coherence
    }

    fn on_change(&self, _: Arc<dyn Fn(Option<&[u8]>) + Send + Sync>) {}

    fn prefix(&self) -> &str {
        &self.shared.prefix
    }

    fn compress_above(&self) -> usize {
        self.shared.config.compress_above
    }

    fn recovered(&self) {
        if self.shared.breaker.close() {
            tracing::info!(target: REMOTE_TARGET, address = %self.address(), "the cache's remote answers again");
        }
    }

    fn failed(&self, failure: &Failure) {
        if self.shared.breaker.open() {
            tracing::warn!(
                target: REMOTE_TARGET, address = %self.address(), error = %failure,
                "the cache's remote does not answer; going on without it",
            );
        }
    }

    /// Without the password that the URL may hold.
    fn address(&self) -> impl fmt::Display {
        self.shared.client.get_connection_info().addr()
    }
}

impl Shared {
    async fn exchange<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let (mut connection, epoch, fresh) = self.connection().await?;
        let error = match command.query_async(&mut connection).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if !is_broken(&error) {
            return Err(Failure::Refused(error));
        }
        self.forget(epoch);
        if fresh {
            return Err(Failure::Broken(error));
        }
        // Redis closed the connection while it was idle, or has been restarted: nothing is wrong with it now.
        let (mut connection, ..) = self.connection().await?;
        command.query_async(&mut connection).await.map_err(|error| match is_broken(&error) {
            true => Failure::Broken(error),
            false => Failure::Refused(error),
        })
    }

    /// The connection with its epoch, and whether it was opened just now.
    async fn connection(&self) -> Result<(MultiplexedConnection, u64, bool), Failure> {
        if let Some((connection, epoch)) = self.open_connection() {
            return Ok((connection, epoch, false));
        }
        let _turn = self.connecting.lock().await;
        if let Some((connection, epoch)) = self.open_connection() {
            return Ok((connection, epoch, false));
        }
        // The caller's timeout spans connecting and asking: a second clock would only blur it.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(COMMANDS_WAITING);
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(Failure::Broken)?;
        let mut slot = self.slot();
        slot.connection = Some(connection.clone());
        slot.epoch += 1;
        Ok((connection, slot.epoch, true))
    }

    fn open_connection(&self) -> Option<(MultiplexedConnection, u64)> {
        let slot = self.slot();
        slot.connection.clone().map(|connection| (connection, slot.epoch))
    }

    /// Gives the connection up, unless another took its place.
    fn forget(&self, epoch: u64) {
        let mut slot = self.slot();
        if slot.epoch == epoch {
            slot.connection = None;
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nothing more is to be expected of the connection that it came by.
fn is_broken(error: &RedisError) -> bool {
    // After a failover the connection is still to the old primary, which takes no writes; a new one finds the other.
    error.is_unrecoverable_error() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Skipped => f.write_str("it has just failed"),
            Failure::TimedOut(after) => write!(f, "no answer within {after:?}"),
            Failure::Broken(error) | Failure::Refused(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("address", &self.address().to_string()).finish_non_exhaustive()
    }
}
