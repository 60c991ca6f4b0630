//! Two connections that speak another protocol now, joined.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{Connection, poll_read};
use crate::Pick;

/// An upstream's connection after it has switched protocols, with what it has said in the new one already.
///
/// It holds memory only for what one side has sent and the other has not taken: then nothing more is read.
pub(crate) struct Tunnel {
    connection: Connection,
    said: Bytes,
    silence: Duration,
    pick: Option<Pick>,
}

impl Tunnel {
    pub(super) fn new(connection: Connection, said: Bytes, silence: Duration) -> Self {
        Self { connection, said, silence, pick: None }
    }

    /// Keeps the request's place at the upstream for as long as the tunnel is there.
    pub(crate) fn hold(&mut self, pick: Pick) {
        self.pick = Some(pick);
    }

    /// Passes on what each side says until both have ended, one fails, or neither has said anything for too long.
    /// `early` is what the client has said already.
    pub(crate) async fn join(self, mut client: impl AsyncRead + AsyncWrite + Unpin, early: Bytes) {
        let Self { connection, said, silence, pick: _pick } = self;
        let Connection { mut read, mut write, deadline } = connection;
        let (mut up, mut down) = (Way::new(early), Way::new(said));
        deadline.set(silence);
        poll_fn(|cx| {
            let upwards = up.poll(&mut client, &mut write, cx);
            let downwards = down.poll(&mut read, &mut client, cx);
            match (upwards, downwards) {
                (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(()),
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(()),
                _ => {}
            }
            if std::mem::take(&mut up.moved) | std::mem::take(&mut down.moved) {
                deadline.set(silence);
            }
            deadline.poll_expired(cx)
        })
        .await;
    }
}

/// One direction.
struct Way {
    waiting: Bytes,
    state: State,
    moved: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Unflushed,
    // The source has ended, and this is to be told.
    Ended,
    Told,
}

impl Way {
    fn new(waiting: Bytes) -> Self {
        Self { waiting, state: State::Unflushed, moved: false }
    }

    fn poll<R, W>(&mut self, from: &mut R, to: &mut W, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if !self.waiting.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.waiting))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.waiting.advance(written);
                self.moved = true;
                continue;
            }
            match self.state {
                State::Unflushed => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.state = State::Open;
                }
                State::Open => {
                    self.waiting = ready!(poll_read(from, cx))?;
                    self.state = if self.waiting.is_empty() { State::Ended } else { State::Unflushed };
                }
                State::Ended => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Told;
                }
                State::Told => return Poll::Ready(Ok(())),
            }
        }
    }
}
