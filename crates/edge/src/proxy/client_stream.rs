//! A client's socket: its requests are followed as they are read, and it is cut when it is too slow.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::context::Connection;
use super::framing::Framing;
use super::sweep::Deadline;

pub(super) struct ClientStream {
    transport: Transport,
    // Not in HTTP/2, nor after a switch of protocols.
    framing: Option<Framing>,
    connection: Rc<Connection>,
    deadline: Deadline,
    waits: Option<Wait>,
}

pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What the deadline is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Nothing of the client: an answer is being made, or the body's own deadline holds.
    Nothing,
    /// The rest of a head; before the first, all of it.
    Head,
    /// The next request, after so many.
    Request(u64),
    /// That the client takes what was written.
    Reader,
}

impl ClientStream {
    pub(super) fn new(transport: Transport, connection: Rc<Connection>) -> Self {
        let framing = (!connection.http2).then(Framing::new);
        Self { transport, framing, connection, deadline: Deadline::new(), waits: None }
    }

    /// What comes from now on is no HTTP.
    pub(super) fn stop_following(&mut self) {
        self.framing = None;
    }

    fn awaited(&self) -> Wait {
        let taken = self.connection.taken.get();
        if self.connection.open.get() > 0 {
            Wait::Nothing
        } else if taken > 0 && self.framing.as_ref().is_none_or(Framing::at_rest) {
            Wait::Request(taken)
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
            Wait::Head if self.framing.as_ref().is_none_or(Framing::at_rest) => {
                Some(worker.idle_patience(config.header_timeout))
            }
            Wait::Head => Some(config.header_timeout),
            Wait::Request(_) => Some(worker.idle_patience(config.idle_timeout)),
        }
    }

    /// The client has to move: it has time until the deadline.
    fn poll_patience(&mut self, wait: Wait, cx: &mut Context<'_>) -> Poll<io::Error> {
        let changed = self.waits != Some(wait);
        // A drain shortens what is waited for already.
        if changed || self.connection.worker.is_draining() {
            self.waits = Some(wait);
            match self.patience(wait) {
                Some(patience) if changed => self.deadline.set(patience),
                Some(patience) => self.deadline.shorten(patience),
                None => self.deadline.clear(),
            }
        }
        self.deadline.poll_expired(cx).map(|()| io::ErrorKind::TimedOut.into())
    }

    fn poll_written<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_pending() {
            return self.poll_patience(Wait::Reader, cx).map(Err);
        }
        // With the last bytes of an answer the wait for the next request begins: hyper need not ask for that, as it knows
        // that the socket is empty.
        self.waits = self.waits.filter(|waits| *waits != Wait::Reader);
        let wait = self.awaited();
        // One that has passed already is seen at the next look.
        let _ = self.poll_patience(wait, cx);
        written
    }

    /// Follows what was read. Only what nobody has taken up yet can still be refused with an answer.
    fn follow(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.framing.as_mut().and_then(|framing| framing.feed(bytes)) {
            Some(request) if request < self.connection.taken.get() => Err(io::ErrorKind::InvalidData.into()),
            Some(request) => {
                self.connection.sound.set(request);
                Ok(())
            }
            None => Ok(()),
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
        let read = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match read {
            // While the client does not even read, nothing else is expected of it.
            Poll::Pending if self.waits == Some(Wait::Reader) => Poll::Pending,
            Poll::Pending => {
                let wait = self.awaited();
                self.poll_patience(wait, cx).map(Err)
            }
            Poll::Ready(read) => {
                read?;
                Poll::Ready(self.follow(&buf.filled()[before..]))
            }
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.poll_written(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            // Nothing of it waits in this process.
            Transport::Plain(_) => Poll::Ready(Ok(())),
            Transport::Tls(stream) => {
                let flushed = Pin::new(stream).poll_flush(cx);
                self.poll_written(flushed, cx)
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        };
        self.poll_written(shut, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        };
        self.poll_written(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
