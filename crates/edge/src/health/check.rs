//! One check of one server.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{CheckConfig, Health};

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckFailure {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("no HTTP answer: {0}")]
    Http(hyper::Error),
    #[error("no request could be made: {0}")]
    Request(http::Error),
    #[error("status {0}")]
    Status(StatusCode),
}

/// One check.
pub(crate) async fn check(
    health: &Health,
    address: SocketAddr,
    config: &CheckConfig,
) -> Result<(), CheckFailure> {
    let checked = async {
        match health {
            Health::None => Ok(()),
            Health::Tcp => TcpStream::connect(address).await.map(drop).map_err(CheckFailure::Connect),
            Health::Http { path } => check_http(path, address, config).await,
        }
    };
    let limit = config.timeout;
    tokio::time::timeout(limit, checked).await.unwrap_or(Err(CheckFailure::Timeout(limit)))
}

async fn check_http(path: &str, address: SocketAddr, config: &CheckConfig) -> Result<(), CheckFailure> {
    let host = if config.host.is_empty() { address.to_string() } else { config.host.clone() };
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "greenwave-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(CheckFailure::Request)?;
    let stream = TcpStream::connect(address).await.map_err(CheckFailure::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(CheckFailure::Http)?;
    let answer = sender.send_request(request);
    // The connection is driven here and not in a task of its own, so that it ends with the check.
    tokio::pin!(answer, connection);
    let response = tokio::select! {
        biased;
        response = &mut answer => response,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let status = response.map_err(CheckFailure::Http)?.status();
    if config.expect.contains(status.as_u16()) { Ok(()) } else { Err(CheckFailure::Status(status)) }
}
