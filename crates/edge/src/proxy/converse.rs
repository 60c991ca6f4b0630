//! One connection of a client, from its first byte to its last.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::client_stream::{ClientStream, Transport};
use super::context::{Connection, Moved};
use super::framing::MAX_LINE;
use super::sweep::{Deadline, within};
use super::upstream::Switched;
use super::worker::Worker;
use super::{proxy_protocol, tunnel};
use crate::telemetry::PROXY_TARGET;

/// hyper's own limit, with which it needs no memory apart for the headers of a request.
const USUAL_HEADERS: usize = 100;
/// How long is still read of a client that does not know yet that its connection has ended.
const LINGER: Duration = Duration::from_secs(2);

// What a client of HTTP/2 may have under way at once, and what it may make this side keep for it.
const STREAMS: u32 = 128;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were reset and have not been seen by this side: more are a rapid reset attack (CVE-2023-44487).
const PENDING_RESETS: usize = 20;
/// Streams that this side has to reset for what the client does wrong.
const FAULTY_RESETS: usize = 100;

/// Serves one connection to its end.
pub(super) async fn converse(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = begin(worker, stream, peer).await {
        tracing::debug!(target: PROXY_TARGET, %peer, %error, "connection of a client failed");
    }
}

async fn begin(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    // In a box, so that nothing of it lies in a connection that has begun.
    let (connection, transport) = Box::pin(greet(worker, stream, peer)).await?;
    if connection.http2 {
        Box::pin(http2(connection, transport)).await
    } else {
        http1(connection, transport).await
    }
}

/// What comes before HTTP.
async fn greet(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> io::Result<(Rc<Connection>, Transport)> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let limit = worker.config().header_timeout;
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let mut source = peer;
    if worker.config().trust.proxy_protocol && worker.trusts(peer.ip()) {
        let header = Box::pin(within(limit, proxy_protocol::read(&mut stream))).await;
        source = header.ok_or_else(late)??.unwrap_or(peer);
    }
    let mut connection = Connection::new(Rc::clone(&worker), source, local);
    let Some(tls) = worker.shared().tls.as_ref() else {
        return Ok((Rc::new(connection), Transport::Plain(stream)));
    };
    let stream = Box::pin(within(limit, tls.acceptor.accept(stream))).await.ok_or_else(late)??;
    connection.secure = true;
    connection.http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Rc::new(connection), Transport::Tls(Box::new(stream))))
}

async fn http1(connection: Rc<Connection>, transport: Transport) -> io::Result<()> {
    let stream = ClientStream::new(transport, Rc::clone(&connection));
    let service = service_fn(|request| {
        // In a box of its own: what is needed for a request does not lie idle in each connection.
        Box::pin(Worker::answer(request, Rc::clone(&connection)))
    });
    let config = connection.worker.config();
    let mut http = http1::Builder::new();
    http.header_read_timeout(None).max_buf_size(MAX_LINE).max_header_size(config.max_head_size);
    if config.max_headers != USUAL_HEADERS {
        http.max_headers(config.max_headers);
    }
    // Not hyper's own `without_shutdown`, whose future has room for two of these, in every idle connection.
    let mut served = http.serve_connection(TokioIo::new(stream), service);
    poll_fn(|cx| served.poll_without_shutdown(cx)).await.map_err(io::Error::other)?;
    let parts = served.into_parts();
    let mut stream = parts.io.into_inner();
    stream.stop_following();
    let upgrade = connection.upgrade.borrow_mut().take();
    match upgrade {
        Some((upstream, in_flight)) => {
            let silence = config.answer_body_timeout;
            let Switched { stream: there, read, pick } = *upstream;
            let passed = tunnel::pass(stream, parts.read_buf, there, read, silence);
            let passed = Box::pin(passed).await;
            drop((in_flight, pick));
            passed
        }
        None => Box::pin(linger(&mut stream)).await,
    }
}

/// Ends a connection so that the client gets what was written. A close with something unread would reset it, and that
/// takes away what the client has not read yet.
async fn linger(stream: &mut ClientStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 8 * 1024];
    within(LINGER, async { while let Ok(1..) = stream.read(&mut rest).await {} }).await;
    Ok(())
}

async fn http2(connection: Rc<Connection>, transport: Transport) -> io::Result<()> {
    let stream = ClientStream::new(transport, Rc::clone(&connection));
    let service = service_fn(|request| Worker::answer(request, Rc::clone(&connection)));
    let worker = &connection.worker;
    let mut http = http2::Builder::new(Streams(Rc::clone(&connection)));
    http.max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(FAULTY_RESETS)
        .max_header_list_size(u32::try_from(worker.config().max_head_size).unwrap_or(u32::MAX));
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut told = false;
    let ended = poll_fn(|cx| {
        if worker.is_draining() && !told {
            told = true;
            served.as_mut().graceful_shutdown();
        }
        served.as_mut().poll(cx)
    });
    ended.await.map_err(io::Error::other)
}

/// Runs the streams of a connection. One whose client takes nothing of its answer is cut.
#[derive(Clone)]
struct Streams(Rc<Connection>);

impl<F: Future + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let stream =
            Stream { future: Box::pin(stream), connection: Rc::clone(&self.0), deadline: Deadline::new() };
        // It ends with its connection, or at its deadlines.
        drop(spawn_local(stream));
    }
}

struct Stream<F> {
    future: Pin<Box<F>>,
    connection: Rc<Connection>,
    deadline: Deadline,
}

impl<F: Future> Future for Stream<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.moved.set(None);
        if self.future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.connection.moved.take() {
            Some(Moved::Given) => self.deadline.set(self.connection.worker.config().write_timeout),
            Some(Moved::Waits) => self.deadline.clear(),
            None => {}
        }
        self.deadline.poll_expired(cx)
    }
}
