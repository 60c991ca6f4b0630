//! One connection, of whatever kind.

use futures_util::future::join_all;
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

    /// In any order; they have any keys.
    pub(super) async fn send_all(&mut self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Connection::Single(connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command.clone());
                }
                let answers = connection.send_packed_commands(&pipeline, 0, commands.len()).await?;
                answers.into_iter().map(Value::extract_error).collect()
            }
            Connection::Cluster(cluster) => {
                let send = async |command| cluster.clone().req_packed_command(command).await?.extract_error();
                // All are sent, though one may fail.
                join_all(commands.iter().map(send)).await.into_iter().collect()
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
        let deleted = self.delete(deleted.map(|(key, _)| *key)).await;
        let commands: Vec<Cmd> = changes.iter().filter_map(|(_, repeat)| repeat.command().cloned()).collect();
        let ran = self.send_all(&commands).await;
        deleted.and(ran.map(drop))
    }

    /// Whether whoever is at the other end answers, and still takes changes.
    pub(super) async fn probe(&mut self) -> RedisResult<()> {
        match self {
            Connection::Single(connection) => {
                check_role(&connection.send_packed_command(&redis::cmd("ROLE")).await?)
            }
            Connection::Cluster(_) => self.send(&redis::cmd("PING")).await.map(drop),
        }
    }
}

/// A user may be forbidden to ask: then a replica shows when it refuses a write.
fn check_role(answer: &Value) -> RedisResult<()> {
    if let Value::Array(role) = answer
        && let Some(Value::BulkString(role)) = role.first()
        && role != b"master"
    {
        let what = "the server is a replica, which takes no invalidations";
        return Err(RedisError::from((ErrorKind::Io, what)));
    }
    Ok(())
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

/// Who is at the ends of a connection, as far as the user may know it.
#[derive(Clone, Default)]
pub(super) struct Ends {
    /// What the server calls the connection: by number and by address.
    client: Option<(String, String)>,
    /// Where the server is.
    place: String,
    /// Another one after each start.
    server: Option<String>,
    /// What it began with may be an old state: a snapshot, rather than all that it had confirmed.
    is_of_a_snapshot: bool,
}

impl Ends {
    pub(super) fn same_server(&self, other: &Ends) -> bool {
        self.server.is_some() && self.server == other.server
    }

    /// It is this server by now.
    pub(super) fn now_with(&mut self, other: &Ends) {
        (self.place, self.server) = (other.place.clone(), other.server.clone());
    }

    /// Whether the server was restarted since, and may have come back with what was deleted. At another place, as after
    /// a failover, it is a replica: that has what its primary had, but for the last moments.
    pub(super) fn went_back(&self, other: &Ends) -> bool {
        self.server.is_some()
            && self.server != other.server
            && self.place == other.place
            && other.is_of_a_snapshot
    }
}

/// Makes sure that the server is a primary that is ready, and asks who is at the ends.
pub(super) async fn introduce(connection: &mut MultiplexedConnection, place: String) -> RedisResult<Ends> {
    let mut pipeline = Pipeline::with_capacity(4);
    pipeline.cmd("PING").cmd("ROLE").cmd("CLIENT").arg("INFO").cmd("INFO");
    let mut answers = connection.send_packed_commands(&pipeline, 0, 4).await?.into_iter();
    answers.next().unwrap_or(Value::Nil).extract_error()?;
    check_role(&answers.next().unwrap_or(Value::Nil))?;
    let mut text =
        || answers.next().and_then(|text| from_redis_value::<String>(text).ok()).unwrap_or_default();
    let (client, server) = (text(), text());
    Ok(Ends {
        client: field(&client, "id=").zip(field(&client, "addr=")),
        place,
        server: field(&server, "run_id:"),
        is_of_a_snapshot: is_of_a_snapshot(&server),
    })
}

/// Not so where each change is in a log, or where nothing came back.
fn is_of_a_snapshot(info: &str) -> bool {
    let is = |name, value| field(info, name).as_deref() == Some(value);
    let is_empty = !info.contains(":keys=");
    !is("aof_enabled:", "1") && !is("rdb_last_load_keys_loaded:", "0") && !is_empty
}

fn field(text: &str, name: &str) -> Option<String> {
    text.split_ascii_whitespace().find_map(|field| field.strip_prefix(name)).map(str::to_owned)
}

/// Ends a connection of before at the server, so that no command that still is on its way there takes effect.
pub(super) async fn end(connection: &mut MultiplexedConnection, before: &Ends) {
    let Some((id, address)) = &before.client else { return };
    // Both must match: after a restart, the same number is another client's.
    let command = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).arg("ADDR").arg(address).take();
    // Where it is not allowed, or not known, nothing is lost but this.
    let _ = connection.send_packed_command(&command).await;
}
