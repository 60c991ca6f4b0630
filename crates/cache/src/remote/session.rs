//! What is open between a loss of the remote and the next: where commands go, and how changes are heard of.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use redis::{
    ConnectionInfo, ErrorKind, PushInfo, PushKind, RedisError, RedisResult, aio::MultiplexedConnection,
    cluster::ClusterClientBuilder,
};
use tokio::time::{Instant, timeout};

use super::{
    connection::{self, Connection, Ends},
    failure::Failure,
    link::Link,
    published::{News, Publisher, Subscriber},
    recovery::Repeat,
    sentinel,
    target::Target,
};
use crate::{CoherenceMode, telemetry::REMOTE_TARGET};

#[derive(Clone)]
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) connection: Connection,
    pub(super) hearing: Hearing,
}

/// How changes that others make are heard of.
#[derive(Clone)]
pub(super) enum Hearing {
    Not,
    Tracked,
    Published(Arc<(Publisher, Arc<Subscriber>)>),
}

/// A session that is being opened.
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) ends: Ends,
    /// One of its connections has ended meanwhile.
    pub(super) is_gone: Arc<AtomicBool>,
}

impl Session {
    pub(super) async fn delete(&mut self, keys: &[Vec<u8>]) -> RedisResult<()> {
        self.connection.delete(keys.iter().map(Vec::as_slice)).await?;
        self.publish(keys.iter().map(|key| Some(key.as_slice()))).await
    }

    pub(super) async fn change(&mut self, key: &[u8], command: &redis::Cmd) -> RedisResult<()> {
        self.connection.send(command).await?;
        self.publish([Some(key)].into_iter()).await
    }

    pub(super) async fn repeat(&mut self, changes: &[(&[u8], &Repeat)]) -> RedisResult<()> {
        let repeated = self.connection.repeat(changes).await;
        let loud = changes.iter().filter(|(_, repeat)| !repeat.is_quiet());
        self.publish(loud.map(|(key, _)| Some(*key))).await?;
        repeated
    }

    pub(super) async fn clear(&mut self, commands: &[redis::Cmd]) -> RedisResult<()> {
        self.connection.send_all(commands).await?;
        self.publish([None].into_iter()).await
    }

    async fn publish(&self, keys: impl Iterator<Item = Option<&[u8]>>) -> RedisResult<()> {
        match &self.hearing {
            Hearing::Published(channel) => channel.0.tell(keys).await,
            Hearing::Not | Hearing::Tracked => Ok(()),
        }
    }

    /// Whether all answer. Says whether something was missed.
    pub(super) async fn probe(mut self) -> RedisResult<bool> {
        self.connection.probe().await?;
        let Hearing::Published(channel) = &self.hearing else { return Ok(false) };
        channel.0.beat().await?;
        Ok(channel.1.lacks())
    }
}

impl Link {
    pub(super) async fn connect(self: &Arc<Link>, number: u64) -> Result<Opened, Failure> {
        let is_gone = Arc::<AtomicBool>::default();
        let (connection, ends, tracked) = match &self.target {
            Target::Single(info) => self.connect_to(info, number, &is_gone).await?,
            Target::Sentinel { sentinels, primary, node } => {
                let info = sentinel::primary(sentinels, primary, node, self.config.timeout).await?;
                self.connect_to(&info, number, &is_gone).await?
            }
            Target::Cluster { nodes, certificates } => {
                let mut builder = ClusterClientBuilder::new(nodes.clone())
                    .use_protocol(redis::ProtocolVersion::RESP3)
                    .connection_timeout(self.patience())
                    .response_timeout(self.patience());
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates.clone());
                }
                let cluster = builder.build()?.get_async_connection().await?;
                let mut connection = Connection::Cluster(Box::new(cluster));
                // With a node that is away, the session would be given up at its first probe, after readers came.
                connection.probe().await?;
                (connection, Ends::default(), None)
            }
        };
        let hearing = match self.config.coherence {
            CoherenceMode::Off => Hearing::Not,
            // Tracking is not enough: what Redis evicts for a command of this process it does not tell this process of
            // (NOLOOP), nor of later changes of what it has not got.
            CoherenceMode::Tracking | CoherenceMode::Published => {
                let is_tracked = tracked.as_ref().is_some_and(|tracked| tracked.hears);
                let place = tracked.map(|tracked| tracked.info);
                match self.subscribe(place, number, &is_gone).await? {
                    Hearing::Not if is_tracked => Hearing::Tracked,
                    hearing => hearing,
                }
            }
        };
        Ok(Opened { session: Session { number, connection, hearing }, ends, is_gone })
    }

    async fn connect_to(
        self: &Arc<Link>,
        info: &ConnectionInfo,
        number: u64,
        is_gone: &Arc<AtomicBool>,
    ) -> Result<(Connection, Ends, Option<Tracked>), Failure> {
        let invalidated = |link: &Link, push: PushInfo| {
            if push.kind == PushKind::Invalidate {
                link.hearers.invalidated(&link.coherence, &push.data);
            }
        };
        let listener = self.listener(number, is_gone, invalidated);
        let (mut connection, speaks) = connection::open(info, listener).await?;
        let ends = connection::introduce(&mut connection, info.addr().to_string()).await?;
        let hears = match self.config.coherence {
            CoherenceMode::Tracking => speaks && self.track(&mut connection).await?,
            CoherenceMode::Published | CoherenceMode::Off => false,
        };
        Ok((Connection::Single(connection), ends, Some(Tracked { info: info.clone(), hears })))
    }

    /// Asks to be told of changes of what is read on this connection; says whether that is granted.
    async fn track(&self, connection: &mut MultiplexedConnection) -> Result<bool, Failure> {
        let command = redis::cmd("CLIENT").arg("TRACKING").arg("ON").arg("NOLOOP").take();
        let answer = connection.send_packed_command(&command).await?.extract_error();
        match answer.map_err(Failure::of) {
            Ok(_) => Ok(true),
            Err(failure @ Failure::Refused(_)) => {
                self.is_hard_of_hearing(
                    &failure,
                    "it refuses client tracking; its caches tell each other instead",
                );
                Ok(false)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Subscribes to what other caches tell, at this server or at any node of the cluster.
    async fn subscribe(
        self: &Arc<Link>,
        place: Option<ConnectionInfo>,
        number: u64,
        is_gone: &Arc<AtomicBool>,
    ) -> Result<Hearing, Failure> {
        let nodes = match (&place, &self.target) {
            (Some(info), _) => std::slice::from_ref(info),
            (None, Target::Cluster { nodes, .. }) => nodes.as_slice(),
            (None, _) => &[],
        };
        let mut failure = Failure::Skipped;
        for node in nodes {
            let subscribing = self.subscribe_at(node, number, is_gone);
            match timeout(self.config.timeout, subscribing).await {
                Ok(Ok(channel)) => return Ok(Hearing::Published(Arc::new(channel))),
                Ok(Err(error)) => failure = Failure::of(error),
                Err(_) => failure = Failure::TimedOut(self.config.timeout),
            }
        }
        match failure {
            Failure::Refused(_) => {
                self.is_hard_of_hearing(&failure, "its caches cannot tell each other of changes");
                Ok(Hearing::Not)
            }
            failure => Err(failure),
        }
    }

    async fn subscribe_at(
        self: &Arc<Link>,
        node: &ConnectionInfo,
        number: u64,
        is_gone: &Arc<AtomicBool>,
    ) -> RedisResult<(Publisher, Arc<Subscriber>)> {
        let id = rand::random();
        let subscriber = Arc::new(Subscriber::new(id));
        let listener = self.listener(number, is_gone, {
            let subscriber = Arc::clone(&subscriber);
            move |link, push| {
                if push.kind != PushKind::Message {
                    return;
                }
                match subscriber.hear(&push.data) {
                    News::Nothing => {}
                    News::Changed(key) => link.hearers.tell(&link.coherence, Some(key)),
                    News::AllChanged => link.hearers.tell(&link.coherence, None),
                    News::Missed => link.missed(number),
                }
            }
        });
        let (mut connection, speaks) = connection::open(node, listener).await?;
        if !speaks {
            return Err(RedisError::from((ErrorKind::RESP3NotSupported, "the server does not speak RESP3")));
        }
        let channel = format!("{}greenwave-cache", self.prefix);
        connection.subscribe(&channel).await?;
        Ok((Publisher::new(id, connection, channel), subscriber))
    }

    /// Says once why changes are not heard as they should be.
    fn is_hard_of_hearing(&self, failure: &Failure, what: &'static str) {
        if !self.is_deaf.swap(true, Ordering::Relaxed) {
            tracing::warn!(target: REMOTE_TARGET, address = %self.target, error = %failure, "{what}");
        }
    }

    /// What is to be done with what a server says unasked on a connection of this session.
    fn listener(
        self: &Arc<Link>,
        number: u64,
        is_gone: &Arc<AtomicBool>,
        hear: impl Fn(&Link, PushInfo) + Send + Sync + 'static,
    ) -> impl Fn(PushInfo) + Send + Sync + 'static {
        let (link, is_gone) = (Arc::downgrade(self), Arc::clone(is_gone));
        move |push| {
            let Some(link) = link.upgrade() else { return };
            if push.kind != PushKind::Disconnection {
                return hear(&link, push);
            }
            is_gone.store(true, Ordering::SeqCst);
            link.give_up(number, Instant::now(), &closed());
        }
    }
}

pub(super) fn closed() -> Failure {
    Failure::Broken(RedisError::from((ErrorKind::Io, "the server closed the connection")))
}

/// A single server, and whether it tells of changes of what is read there.
struct Tracked {
    info: ConnectionInfo,
    hears: bool,
}
