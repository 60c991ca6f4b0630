//! Bodies on their way: requests that may have to be sent again, answers whose end is recorded.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::context::{Connection, Moved, RequestContext};
use super::headers;
use super::sweep::Deadline;
use super::upstream::{Switched, UpstreamBody};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer on its way through the stack. It stays on its thread.
pub(crate) enum Body {
    /// All of it is there.
    Full(Full<Bytes>),
    /// It comes from an upstream as it is.
    Upstream(UpstreamBody),
    /// It is made on the way: stored, compressed, read along with others.
    Dyn(LocalBody),
    /// There is none: with a 101, the connection goes on in another protocol.
    Switched(Box<Switched>),
}

/// Any other body, in a box.
pub(crate) type LocalBody = Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError>>>;

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Full(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Dyn(body) => body.as_mut().poll_frame(cx),
            Self::Switched(..) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Dyn(body) => body.is_end_stream(),
            Self::Switched(..) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Upstream(body) => body.size_hint(),
            Self::Dyn(body) => body.size_hint(),
            Self::Switched(..) => SizeHint::with_exact(0),
        }
    }
}

/// A request's body, lent to each attempt to send it. As long as no attempt has got anything of it, it can be lent once
/// more.
#[derive(Clone, Debug)]
pub(crate) enum RequestBody {
    Empty,
    Lent(Rc<RefCell<Lent>>),
}

#[derive(Debug)]
pub(crate) struct Lent {
    body: Incoming,
    touched: bool,
}

impl RequestBody {
    pub(crate) fn new(body: Incoming) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Lent(Rc::new(RefCell::new(Lent { body, touched: false })))
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    /// Whether nothing of it was consumed.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Lent(lent) => !lent.borrow().touched,
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self::Lent(lent) = &*self else { return Poll::Ready(None) };
        let mut lent = lent.borrow_mut();
        let mut frame = ready!(Pin::new(&mut lent.body).poll_frame(cx));
        lent.touched = true;
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
            headers::clean_trailers(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Lent(lent) => lent.borrow().body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Lent(lent) => lent.borrow().body.size_hint(),
        }
    }
}

/// A request between its head and the end of its answer. Dropping it records how long that was.
pub(crate) struct InFlight {
    context: Rc<RequestContext>,
    status: Option<StatusCode>,
}

impl InFlight {
    pub(crate) fn begin(context: Rc<RequestContext>) -> Self {
        let connection = &context.connection;
        connection.open.set(connection.open.get() + 1);
        connection.worker.metrics().begin();
        Self { context, status: None }
    }

    pub(crate) fn answered(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    pub(super) fn connection(&self) -> &Rc<Connection> {
        &self.context.connection
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let connection = &self.context.connection;
        connection.open.set(connection.open.get() - 1);
        connection.worker.metrics().end(self.status, self.context.started.elapsed());
    }
}

/// The body of an answer on its way to the client.
pub(crate) struct AnswerBody {
    body: Body,
    // For the whole request, where there is one.
    deadline: Option<Deadline>,
    in_flight: Option<InFlight>,
}

impl AnswerBody {
    pub(crate) fn new(body: Body, in_flight: InFlight) -> Self {
        Self { body, deadline: None, in_flight: Some(in_flight) }
    }

    /// Nothing, for a request that goes on without this body.
    pub(super) fn empty() -> Self {
        Self { body: Body::Full(Full::default()), deadline: None, in_flight: None }
    }

    pub(super) fn until(mut self, deadline: Option<Deadline>) -> Self {
        self.deadline = deadline;
        self
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        let moved = if frame.is_ready() { Moved::Given } else { Moved::Waits };
        if let Some(in_flight) = &this.in_flight {
            in_flight.connection().moved.set(Some(moved));
        }
        if frame.is_pending()
            && this.deadline.as_ref().is_some_and(|deadline| deadline.poll_expired(cx).is_ready())
        {
            return Poll::Ready(Some(Err("the request took longer than is allowed".into())));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
