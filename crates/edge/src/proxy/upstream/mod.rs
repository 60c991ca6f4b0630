//! An HTTP/1.1 client for one core.
//!
//! No task drives a connection: whoever waits for an answer writes the request and reads the answer itself, and whoever
//! takes the answer's body reads it from the connection. Between requests a connection holds no buffer.

mod body;
mod chunked;
mod connection;
mod head;
mod pool;
mod upload;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::{HeaderValue, Response, StatusCode, request};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub(crate) use body::UpstreamBody;
use connection::{Connection, Exchange};
use pool::Idle;

use super::ProxyConfig;
use super::body::RequestBody;
use super::sweep;
use crate::Pick;

/// Why an attempt brought no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection: the upstream has seen nothing of the request.
    Unreachable(io::Error),
    /// This side could not open a connection, to whichever upstream.
    Local(io::Error),
    /// The connection ended before the head of the answer was whole.
    Died {
        /// Whether it had carried requests before and nothing of this answer had come, so that the upstream may have
        /// closed it before it saw the request.
        reused: bool,
        /// What the system said, if anything.
        cause: Option<io::Error>,
    },
    /// The answer can be read in two ways, or in none.
    Ambiguous(&'static str),
    /// The client sent nothing more of its request's body.
    ClientSilent,
    /// The client's body broke off, or is not as long as it said.
    BrokenBody,
    /// The upstream sent nothing.
    Silent,
}

/// What follows the head of an answer.
#[derive(Debug)]
pub(crate) enum Sent {
    Body(UpstreamBody),
    /// The connection, in another protocol, and what was read of it already.
    Switched(TcpStream, Bytes),
}

/// A connection that goes on in another protocol.
#[derive(Debug)]
pub(crate) struct Switched {
    pub(crate) stream: TcpStream,
    /// What was read of it already.
    pub(crate) read: Bytes,
    /// The place at the upstream, which it keeps.
    pub(crate) pick: Pick,
}

/// How long each step of an exchange may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    connect: Duration,
    client: Duration,
    answer: Duration,
    silence: Duration,
    /// When the whole request ends, if it does.
    until: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(config: &ProxyConfig, started: Instant) -> Self {
        Self {
            connect: config.connect_timeout,
            client: config.body_timeout,
            answer: config.answer_timeout,
            silence: config.answer_body_timeout,
            until: (!config.total_timeout.is_zero()).then(|| started + config.total_timeout),
        }
    }

    /// The limit, or what is left of the whole request's time if that is less.
    fn at_most(&self, limit: Duration) -> Duration {
        self.until.map_or(limit, |until| limit.min(until.saturating_duration_since(sweep::now())))
    }
}

/// Sends requests over connections that it keeps. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamPool {
    idle: Rc<Idle>,
}

impl UpstreamPool {
    pub(crate) fn new(config: &ProxyConfig) -> Self {
        Self { idle: Idle::new(config.max_idle_per_upstream, config.upstream_idle_timeout) }
    }

    /// Sends a request and returns its answer, whose body is still to come.
    ///
    /// The head is written as it is, apart from the fields that say how long the body is. `Upgrade` in it asks for
    /// another protocol; an answer that switches to it comes with the connection.
    ///
    /// Dropping the future closes the connection.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        head: &request::Parts,
        body: &RequestBody,
        patience: Patience,
    ) -> Result<Response<Sent>, SendError> {
        let (mut connection, reused) = match self.idle.take(address) {
            Some(connection) => (connection, true),
            // In a box: rare, and large beside the rest.
            None => {
                let opening = Connection::open(address, patience.at_most(patience.connect));
                (Box::pin(opening).await?, false)
            }
        };
        let mut exchange = Exchange::new(&mut connection, reused, address, head, body, patience);
        let mut answered = poll_fn(|cx| exchange.poll(cx)).await.inspect_err(|error| {
            if matches!(error, SendError::Died { .. }) {
                self.idle.forget(address);
            }
        })?;
        let home = self.idle.home(address);
        let asked = head.headers.get(UPGRADE);
        let status = answered.answer.head.status;
        let head = std::mem::replace(&mut answered.answer.head, Response::new(()).into_parts().0);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let is = |to: &HeaderValue| {
                asked.is_some_and(|asked| asked.as_bytes().eq_ignore_ascii_case(to.as_bytes()))
            };
            if !head.headers.get(UPGRADE).is_some_and(is) {
                return Err(SendError::Ambiguous("the protocol was switched to one that nobody asked for"));
            }
            // Both are halves of one.
            let died = |_| SendError::Died { reused: false, cause: None };
            let stream = connection.read.reunite(connection.write).map_err(died)?;
            return Ok(Response::from_parts(head, Sent::Switched(stream, answered.rest)));
        }
        let body = UpstreamBody::new(connection, answered, home, patience)?;
        Ok(Response::from_parts(head, Sent::Body(body)))
    }

    /// Closes connections that were idle for too long.
    pub(crate) fn sweep(&self) {
        self.idle.sweep();
    }
}
