//! Where the primary is, by what the sentinels say.

use std::time::Duration;

use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{connection, failure::Failure};

/// Asks one sentinel after the other, in turns, each for so long at most.
pub(super) async fn primary(
    sentinels: &[ConnectionInfo],
    name: &str,
    node: &ConnectionInfo,
    patience: Duration,
) -> Result<ConnectionInfo, Failure> {
    let mut failure = Failure::Skipped;
    // Each attempt begins with another one: a sentinel that is cut off from the rest may be the first of the list.
    let first = rand::random_range(0..sentinels.len().max(1));
    let (before, after) = sentinels.split_at(first.min(sentinels.len()));
    for sentinel in after.iter().chain(before) {
        match timeout(patience, ask(sentinel, name)).await {
            Ok(Ok((host, port))) => return Ok(node.clone().set_addr(address(node.addr(), host, port))),
            Ok(Err(error)) => failure = Failure::of(error),
            Err(_) => failure = Failure::TimedOut(patience),
        }
    }
    Err(failure)
}

async fn ask(sentinel: &ConnectionInfo, name: &str) -> RedisResult<(String, u16)> {
    let (mut connection, _): (MultiplexedConnection, bool) = connection::open(sentinel, |_| {}).await?;
    let command = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).take();
    let found: Option<(String, u16)> = command.query_async(&mut connection).await?;
    found.ok_or_else(|| {
        let what = "the sentinels know no primary of the name that the URL gives";
        RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, what, name.to_owned()))
    })
}

/// The same way to connect, to another place.
fn address(like: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match like {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}
