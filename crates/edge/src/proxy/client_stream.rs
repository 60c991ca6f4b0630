//! A client's socket: its requests are followed as they are read, and it is cut when it is too slow.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::context::Connection;
use super::framing::Framing;
use super::sweep::Deadline;

pub(super) struct ClientStream {
    stream: TcpStream,
    framing: Framing,
    connection: Rc<Connection>,
    deadline: Deadline,
    waits: Wait,
}

/// What the deadline is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Nothing of the client: an answer is being made, or the body's own deadline holds.
    Nothing,
    /// The rest of a head, or the first.
    Head,
    /// The first byte of the next request.
    Request,
    /// That the client takes what was written.
    Reader,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, connection: Rc<Connection>) -> Self {
        let framing = Framing::new();
        Self { stream, framing, connection, deadline: Deadline::new(), waits: Wait::Nothing }
    }

    /// The socket alone: what comes on it now are no requests.
    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn awaited(&self) -> Wait {
        if self.connection.open.get() > 0 {
            Wait::Nothing
        } else if self.framing.at_rest() && self.connection.taken.get() > 0 {
            Wait::Request
        } else {
            Wait::Head
        }
    }

    fn patience(&self, wait: Wait) -> Option<Duration> {
        let worker = &self.connection.worker;
        let config = worker.config();
        match wait {
            Wait::Nothing => None,
            Wait::Reader => Some(config.write_timeout),
            Wait::Head if self.framing.at_rest() => Some(worker.idle_patience(config.header_timeout)),
            Wait::Head => Some(config.header_timeout),
            Wait::Request => Some(worker.idle_patience(config.idle_timeout)),
        }
    }

    /// The client has to move: it has time until the deadline.
    fn poll_patience(&mut self, wait: Wait, cx: &mut Context<'_>) -> Poll<io::Error> {
        // A drain shortens what is waited for already.
        if wait != self.waits || self.connection.worker.is_draining() {
            let changed = wait != self.waits;
            self.waits = wait;
            match self.patience(wait) {
                Some(patience) if changed => self.deadline.set(patience),
                Some(patience) => self.deadline.shorten(patience),
                None => self.deadline.clear(),
            }
        }
        self.deadline.poll_expired(cx).map(|()| io::ErrorKind::TimedOut.into())
    }

    fn poll_written<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        match written {
            Poll::Pending => self.poll_patience(Wait::Reader, cx).map(Err),
            ready => {
                if self.waits == Wait::Reader {
                    self.waits = Wait::Nothing;
                    self.deadline.clear();
                }
                ready
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending if self.waits == Wait::Reader => Poll::Pending,
            Poll::Pending => {
                let wait = self.awaited();
                self.poll_patience(wait, cx).map(Err)
            }
            ready => {
                let this = &mut *self;
                this.framing.feed(&buf.filled()[before..], &this.connection.sound);
                ready
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.poll_written(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.poll_written(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
