//! The body of an answer, read from the connection as the client takes it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::AbortHandle;

use super::chunked::{Chunked, Piece};
use super::connection::{Answered, Connection, poll_read};
use super::head::Framing;
use super::pool::Home;
use super::upload::Upload;
use super::{Patience, SendError};
use crate::Pick;
use crate::proxy::body::BoxError;
use crate::proxy::sweep::Deadline;

/// Up to this length a chunked body that is there already is put together, so that its length can be told.
const PUT_TOGETHER: usize = 16 * 1024;

/// The body of an upstream's answer. What is not there yet is read when it is asked for; dropping the body before
/// its end closes the connection.
#[derive(Debug)]
pub(crate) enum UpstreamBody {
    /// All of it has come, and the connection is free again.
    Whole { data: Bytes, trailers: Option<Box<HeaderMap>> },
    /// The rest is still to come.
    Streamed(Box<Streamed>),
}

impl UpstreamBody {
    /// Keeps the request's place at the upstream until all of the body has come.
    pub(crate) fn hold(&mut self, pick: Pick) {
        if let Self::Streamed(body) = self {
            body.pick = Some(pick);
        }
    }

    /// Takes over the connection, or gives it back at once if the body is there.
    pub(super) fn new(
        connection: Connection,
        answered: Answered,
        home: Home,
        patience: Patience,
    ) -> Result<Self, SendError> {
        let Answered { answer, mut rest, unsent, broken } = answered;
        let whole = whole(&answer.framing, &mut rest).map_err(SendError::Ambiguous)?;
        if let Some((data, trailers)) = whole {
            if answer.keeps && rest.is_empty() && unsent.is_none() && !broken {
                home.put(connection);
            }
            return Ok(Self::Whole { data, trailers });
        }
        let Connection { read, write, deadline } = connection;
        let uploading = match unsent {
            Some(unsent) => Uploading::go_on(unsent, write, patience),
            None => Uploading::done((!broken).then_some(write)),
        };
        let place = match answer.framing {
            Framing::Length(left) => Place::Length(left),
            Framing::Chunked => Place::Chunked(Chunked::default()),
            Framing::UntilClose => Place::UntilClose,
        };
        let keeps = answer.keeps;
        Ok(Self::Streamed(Box::new(Streamed {
            read: Some((read, deadline)),
            rest,
            place,
            keeps,
            uploading,
            home,
            patience,
            waits: false,
            pick: None,
        })))
    }
}

type Whole = (Bytes, Option<Box<HeaderMap>>);

/// The body, if the bytes hold all of it; they keep what is behind.
fn whole(framing: &Framing, bytes: &mut Bytes) -> Result<Option<Whole>, &'static str> {
    match *framing {
        Framing::UntilClose => Ok(None),
        Framing::Length(length) => {
            let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len());
            Ok(length.map(|length| (bytes.split_to(length), None)))
        }
        Framing::Chunked if bytes.len() > PUT_TOGETHER || !bytes.ends_with(b"\r\n\r\n") => Ok(None),
        Framing::Chunked => {
            let (mut chunked, mut left) = (Chunked::default(), bytes.clone());
            let mut data = Bytes::new();
            loop {
                match chunked.next(&mut left)? {
                    Piece::Data(piece) if data.is_empty() => data = piece,
                    Piece::Data(piece) => data = [data, piece].concat().into(),
                    Piece::More => return Ok(None),
                    Piece::End(trailers) => {
                        *bytes = left;
                        return Ok(Some((data, trailers.map(Box::new))));
                    }
                }
            }
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Whole { data, .. } if !data.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))))
            }
            Self::Whole { trailers, .. } => {
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            Self::Streamed(body) => {
                body.poll_frame(cx).map(|frame| frame.transpose().map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole { data, trailers } => data.is_empty() && trailers.is_none(),
            Self::Streamed(body) => body.read.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { data, trailers: None } => SizeHint::with_exact(data.len() as u64),
            Self::Whole { .. } => SizeHint::default(),
            Self::Streamed(body) => match body.place {
                Place::Length(left) => SizeHint::with_exact(left),
                Place::Chunked(_) | Place::UntilClose => SizeHint::default(),
            },
        }
    }
}

#[derive(Debug)]
pub(crate) struct Streamed {
    // Until the body ends.
    read: Option<(OwnedReadHalf, Deadline)>,
    rest: Bytes,
    place: Place,
    keeps: bool,
    uploading: Uploading,
    home: Home,
    patience: Patience,
    // Whether the deadline is set.
    waits: bool,
    pick: Option<Pick>,
}

#[derive(Debug)]
enum Place {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Streamed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, &'static str>> {
        loop {
            let piece = match self.piece() {
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            };
            match piece {
                Piece::Data(data) => {
                    if matches!(self.place, Place::Length(0)) {
                        self.end();
                    }
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                Piece::End(trailers) => {
                    self.end();
                    return Poll::Ready(Ok(trailers.map(Frame::trailers)));
                }
                Piece::More => {}
            }
            match ready!(self.poll_read(cx)) {
                Ok(bytes) if bytes.is_empty() && matches!(self.place, Place::UntilClose) => self.end(),
                Ok(bytes) if bytes.is_empty() => {
                    return Poll::Ready(Err(self.fail("the answer of the upstream broke off")));
                }
                Ok(bytes) => self.rest = bytes,
                Err(error) => return Poll::Ready(Err(self.fail(error))),
            }
        }
    }

    /// What the bytes that are there hold.
    fn piece(&mut self) -> Result<Piece, &'static str> {
        if self.read.is_none() {
            return Ok(Piece::End(None));
        }
        Ok(match &mut self.place {
            Place::Chunked(chunked) => return chunked.next(&mut self.rest),
            _ if self.rest.is_empty() => Piece::More,
            Place::UntilClose => Piece::Data(std::mem::take(&mut self.rest)),
            Place::Length(left) => {
                let taken = usize::try_from(*left).map_or(self.rest.len(), |left| left.min(self.rest.len()));
                *left -= taken as u64;
                Piece::Data(self.rest.split_to(taken))
            }
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, &'static str>> {
        let Some((read, deadline)) = &mut self.read else { return Poll::Ready(Ok(Bytes::new())) };
        if let Poll::Ready(read) = poll_read(read, cx) {
            if std::mem::take(&mut self.waits) {
                deadline.clear();
            }
            return Poll::Ready(read.map_err(|_| "the answer of the upstream broke off"));
        }
        // A client that does not take what is there is not the upstream's fault: only this wait counts.
        if !std::mem::replace(&mut self.waits, true) {
            deadline.set(self.patience.at_most(self.patience.silence));
        }
        deadline.poll_expired(cx).map(|()| Err("the upstream fell silent in the middle of its answer"))
    }

    /// The connection is given back if nothing on it is in doubt.
    fn end(&mut self) {
        self.pick = None;
        if let Some((read, deadline)) = self.read.take()
            && self.keeps
            && self.rest.is_empty()
            && let Some(write) = self.uploading.finished()
        {
            self.home.put(Connection { read, write, deadline });
        }
    }

    fn fail(&mut self, error: &'static str) -> &'static str {
        self.read = None;
        self.pick = None;
        error
    }
}

/// The sending of a request whose answer has begun. It must go on beside the answer, since upstreams may answer
/// while they read, and it ends with it.
#[derive(Debug)]
struct Uploading {
    // The half of the connection comes back when all is sent.
    sent: Rc<RefCell<Option<OwnedWriteHalf>>>,
    task: Option<AbortHandle>,
}

impl Uploading {
    fn done(write: Option<OwnedWriteHalf>) -> Self {
        Self { sent: Rc::new(RefCell::new(write)), task: None }
    }

    fn go_on(mut upload: Upload, mut write: OwnedWriteHalf, patience: Patience) -> Self {
        let sent = Rc::new(RefCell::new(None));
        let done = Rc::clone(&sent);
        let task = tokio::task::spawn_local(async move {
            let deadline = Deadline::new();
            let mut starved = !upload.starved;
            let sending = std::future::poll_fn(|cx| {
                if let Poll::Ready(sent) = upload.poll(&mut write, cx) {
                    return Poll::Ready(sent.is_ok());
                }
                if std::mem::take(&mut upload.moved) || starved != upload.starved {
                    starved = upload.starved;
                    deadline.set(if starved { patience.client } else { patience.silence });
                }
                deadline.poll_expired(cx).map(|()| false)
            });
            if sending.await {
                *done.borrow_mut() = Some(write);
            }
        });
        Self { sent, task: Some(task.abort_handle()) }
    }

    fn finished(&self) -> Option<OwnedWriteHalf> {
        self.sent.borrow_mut().take()
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
