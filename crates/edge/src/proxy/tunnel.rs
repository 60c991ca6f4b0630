//! A connection after its protocol was switched: bytes both ways, which nobody here understands.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

use super::client_stream::ClientStream;
use super::sweep::Deadline;

// A message of a WebSocket is seldom larger, and a tunnel keeps two of them.
const BUFFER: usize = 4096;

/// Passes bytes both ways until both sides have ended, or nothing has moved for that long. What was read of either side
/// already goes first.
pub(super) async fn pass(
    client: ClientStream,
    client_read: Bytes,
    upstream: TcpStream,
    upstream_read: Bytes,
    silence: Duration,
) -> io::Result<()> {
    let deadline = Deadline::new();
    deadline.set(silence);
    let mut client = Side { stream: client, read: client_read, deadline: &deadline, silence };
    let mut upstream = Side { stream: upstream, read: upstream_read, deadline: &deadline, silence };
    let mut copied = pin!(copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER));
    poll_fn(|cx| match copied.as_mut().poll(cx) {
        Poll::Ready(copied) => Poll::Ready(copied.map(drop)),
        Poll::Pending => deadline.poll_expired(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
    })
    .await
}

/// One side, whose bytes put off the end.
struct Side<'d, S> {
    stream: S,
    read: Bytes,
    deadline: &'d Deadline,
    silence: Duration,
}

impl<S: AsyncRead + Unpin> AsyncRead for Side<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.has_remaining() {
            let count = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read.split_to(count));
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.deadline.set(self.silence);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Side<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
