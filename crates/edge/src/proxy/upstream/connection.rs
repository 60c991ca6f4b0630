//! One connection to an upstream, and one request on it up to the head of its answer.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request;
use hyper::body::Body;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::head::{self, Answer, Asked, MAX_HEAD, Parsed, Sized};
use super::upload::{Upload, UploadError};
use super::{Patience, SendError};
use crate::local::is_local;
use crate::proxy::body::RequestBody;
use crate::proxy::sweep::{self, Deadline};

/// What is read at once at most.
const READ: usize = 64 * 1024;
/// Answers before the answer, such as `103 Early Hints`.
const MAX_INTERIM: u32 = 16;

thread_local! {
    // Everything is read into this and copied out in its length: a connection that waits holds no memory for it.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into_boxed_slice());
    // The buffer of the last head that was written.
    static WRITE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connection to an upstream. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) read: OwnedReadHalf,
    pub(super) write: OwnedWriteHalf,
    pub(super) deadline: Deadline,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr, within: Duration) -> Result<Self, SendError> {
        let failed = |error: io::Error| {
            if is_local(&error) { SendError::Local(error) } else { SendError::Unreachable(error) }
        };
        let connected = sweep::within(within, pin!(TcpStream::connect(address))).await;
        let stream = connected.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        // A port nobody listens on may be the very one that the system gives this end.
        if stream.local_addr().map_err(failed)? == address {
            return Err(SendError::Unreachable(io::ErrorKind::ConnectionRefused.into()));
        }
        stream.set_nodelay(true).map_err(failed)?;
        let (read, write) = stream.into_split();
        Ok(Self { read, write, deadline: Deadline::new() })
    }

    /// Whether an idle connection is still open and has said nothing. Asks the system only where something came.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.read.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Reads what is there; nothing at the end of the stream.
pub(super) fn poll_read(
    read: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    READ_BUFFER.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        Pin::new(read).poll_read(cx, &mut buffer).map_ok(|()| Bytes::copy_from_slice(buffer.filled()))
    })
}

/// An answer's head, and what came with it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) rest: Bytes,
    /// What of the request has not been sent yet.
    pub(super) unsent: Option<Upload>,
    /// Whether the request could not be sent.
    pub(super) broken: bool,
}

/// A request that is being sent, and whose answer has not begun.
pub(super) struct Exchange<'a> {
    connection: &'a mut Connection,
    reused: bool,
    asked: Asked,
    patience: Patience,
    upload: Option<Upload>,
    starved: bool,
    broken: bool,
    interim: u32,
    // What has come of a head that is not whole.
    partial: Vec<u8>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        connection: &'a mut Connection,
        reused: bool,
        address: SocketAddr,
        head: &request::Parts,
        body: &RequestBody,
        patience: Patience,
    ) -> Self {
        let sized = if body.is_empty() {
            Sized::Empty
        } else {
            let declared = head.headers.get(http::header::CONTENT_LENGTH).and_then(head::length);
            declared.or(body.size_hint().exact()).map_or(Sized::Chunked, Sized::Length)
        };
        let mut out = WRITE_BUFFER.take();
        out.clear();
        let asked = Asked::by(head, sized);
        head::write(&mut out, head, sized, address);
        let sized = if sized == Sized::Length(0) { Sized::Empty } else { sized };
        Self {
            connection,
            reused,
            asked,
            patience,
            upload: Some(Upload::new(out, body.clone(), sized)),
            starved: false,
            broken: false,
            interim: 0,
            partial: Vec::new(),
        }
    }

    /// Sends, and waits for the head of the answer, which may come before all is sent.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answered, SendError>> {
        self.send(cx)?;
        while let Poll::Ready(read) = poll_read(&mut self.connection.read, cx) {
            let bytes = match read {
                Ok(bytes) if !bytes.is_empty() => bytes,
                ended => {
                    let reused = self.reused && self.partial.is_empty() && self.interim == 0;
                    return Poll::Ready(Err(SendError::Died { reused, cause: ended.err() }));
                }
            };
            if let Some((answer, rest)) = self.take(bytes).map_err(SendError::Ambiguous)? {
                self.connection.deadline.clear();
                let unsent = self.upload.take();
                return Poll::Ready(Ok(Answered { answer, rest, unsent, broken: self.broken }));
            }
        }
        self.connection
            .deadline
            .poll_expired(cx)
            .map(|()| Err(if self.starved { SendError::ClientSilent } else { SendError::Silent }))
    }

    fn send(&mut self, cx: &mut Context<'_>) -> Result<(), SendError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let sent = upload.poll(&mut self.connection.write, cx);
        let moved = std::mem::take(&mut upload.moved) || sent.is_ready() || upload.starved != self.starved;
        self.starved = upload.starved && sent.is_pending();
        match sent {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                WRITE_BUFFER.set(self.upload.take().map(Upload::into_buffer).unwrap_or_default());
            }
            // An upstream that has heard enough may have said why.
            Poll::Ready(Err(UploadError::Write)) => {
                self.upload = None;
                self.broken = true;
            }
            Poll::Ready(Err(UploadError::Client)) => return Err(SendError::BrokenBody),
        }
        if moved {
            let limit = if self.starved { self.patience.client } else { self.patience.answer };
            self.connection.deadline.set(self.patience.at_most(limit));
        }
        Ok(())
    }

    /// The answer, when its head is whole.
    fn take(&mut self, mut bytes: Bytes) -> Result<Option<(Answer, Bytes)>, &'static str> {
        if !self.partial.is_empty() {
            // The head is parsed again only where it may have become whole.
            let seen = self.partial.len().saturating_sub(3);
            self.partial.extend_from_slice(&bytes);
            let tail = &self.partial[seen..];
            let whole =
                tail.windows(2).any(|end| end == b"\n\n") || tail.windows(3).any(|end| end == b"\n\r\n");
            if !whole && self.partial.len() < MAX_HEAD {
                return Ok(None);
            }
            bytes = Bytes::from(std::mem::take(&mut self.partial));
        }
        loop {
            match head::parse(&bytes, self.asked)? {
                Parsed::Final(end, answer) => return Ok(Some((answer, bytes.slice(end..)))),
                Parsed::Interim(end) => {
                    self.interim += 1;
                    if self.interim > MAX_INTERIM {
                        return Err("the answer never comes");
                    }
                    bytes = bytes.slice(end..);
                }
                Parsed::Partial => {
                    self.partial.extend_from_slice(&bytes);
                    return Ok(None);
                }
            }
        }
    }
}
