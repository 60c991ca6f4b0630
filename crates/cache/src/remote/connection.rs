//! One connection, of whatever kind.

use futures_util::future::try_join_all;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, Pipeline, ProtocolVersion, PushInfo,
    RedisError, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    from_redis_value,
};

use super::recovery::Repeat;

/// How many commands may wait to be written to the connection before callers wait for room.
const COMMANDS_WAITING: usize = 1024;

#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(Box<ClusterConnection>),
}

impl Connection {
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Connection::Single(connection) => connection.send_packed_command(command).await,
            Connection::Cluster(connection) => connection.req_packed_command(command).await,
        }?
        .extract_error()
    }

    /// One after the other; they have one key.
    pub(super) async fn send_in_order(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let answers = match self {
            Connection::Single(connection) => {
                connection.send_packed_commands(&pipeline, 0, commands.len()).await?
            }
            Connection::Cluster(connection) => {
                connection.req_packed_commands(&pipeline, 0, commands.len()).await?
            }
        };
        answers.into_iter().map(Value::extract_error).collect()
    }

    /// In any order; they have any keys.
    pub(super) async fn send_all(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        match self {
            Connection::Single(_) => self.send_in_order(commands).await,
            Connection::Cluster(cluster) => {
                let send = async |command| cluster.clone().req_packed_command(command).await?.extract_error();
                try_join_all(commands.iter().map(send)).await
            }
        }
    }

    pub(super) async fn delete<'a>(&mut self, keys: impl Iterator<Item = &'a [u8]>) -> RedisResult<()> {
        let mut command = redis::cmd("DEL");
        let mut is_empty = true;
        for key in keys {
            command.arg(key);
            is_empty = false;
        }
        if is_empty {
            return Ok(());
        }
        // A cluster's connection takes the command apart, and sends to each node what it has.
        self.send(&command).await.map(drop)
    }

    pub(super) async fn repeat(&mut self, changes: &[(&[u8], &Repeat)]) -> RedisResult<()> {
        let deleted = changes.iter().filter(|(_, repeat)| matches!(repeat, Repeat::Delete));
        self.delete(deleted.map(|(key, _)| *key)).await?;
        let commands: Vec<Cmd> = changes
            .iter()
            .filter_map(|(_, repeat)| match repeat {
                Repeat::Delete => None,
                Repeat::Run(command) => Some(command.clone()),
            })
            .collect();
        self.send_all(&commands).await.map(drop)
    }
}

/// Connects to one server. `push` gets what the server says unasked, and the end of the connection; not so where the
/// server is too old to say anything (before Redis 6), and that is told.
pub(super) async fn open(
    info: &ConnectionInfo,
    push: impl Fn(PushInfo) + Send + Sync + 'static,
) -> RedisResult<(MultiplexedConnection, bool)> {
    // Whoever waits has a clock of his own: a second one would only blur it.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(COMMANDS_WAITING);
    let pushing = config.clone().set_push_sender(move |info| {
        push(info);
        Ok::<_, redis::aio::SendError>(())
    });
    let client = Client::open(info.clone())?;
    match client.get_multiplexed_async_connection_with_config(&pushing).await {
        Ok(connection) => Ok((connection, true)),
        Err(error) if speaks_no_resp3(&error) => {
            let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
            let client = Client::open(info.clone().set_redis_settings(settings))?;
            Ok((client.get_multiplexed_async_connection_with_config(&config).await?, false))
        }
        Err(error) => Err(error),
    }
}

fn speaks_no_resp3(error: &RedisError) -> bool {
    error.kind() == ErrorKind::RESP3NotSupported || matches!(error.code(), Some("NOPROTO" | "NOPERM"))
}

/// What a server calls a connection.
#[derive(Clone)]
pub(super) struct Name {
    id: String,
    address: String,
}

/// Makes sure that the server is a primary that is ready, and asks what it calls this connection.
pub(super) async fn introduce(connection: &mut MultiplexedConnection) -> RedisResult<Option<Name>> {
    let mut pipeline = Pipeline::with_capacity(3);
    pipeline.cmd("PING").cmd("ROLE").cmd("CLIENT").arg("INFO");
    let mut answers = connection.send_packed_commands(&pipeline, 0, 3).await?.into_iter();
    answers.next().unwrap_or(Value::Nil).extract_error()?;
    // Users may be forbidden to ask the other two: then a replica shows when it refuses a write.
    if let Some(Value::Array(role)) = answers.next()
        && let Some(Value::BulkString(role)) = role.first()
        && role != b"master"
    {
        let what = "the server is a replica, which takes no invalidations";
        return Err(RedisError::from((ErrorKind::Client, what)));
    }
    let info = answers.next().and_then(|info| from_redis_value::<String>(info).ok()).unwrap_or_default();
    let field = |name: &str| {
        let mut fields = info.split_ascii_whitespace();
        fields.find_map(|field| field.strip_prefix(name)).map(str::to_owned)
    };
    Ok(field("id=").zip(field("addr=")).map(|(id, address)| Name { id, address }))
}

/// Ends a connection of before at the server, so that no command that still is on its way there takes effect.
pub(super) async fn end(connection: &mut MultiplexedConnection, name: &Name) {
    let Name { id, address } = name;
    // Both must match: after a restart, the same number is another client's.
    let command = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).arg("ADDR").arg(address).take();
    // Where it is not allowed, or not known, nothing is lost but this.
    let _ = connection.send_packed_command(&command).await;
}
