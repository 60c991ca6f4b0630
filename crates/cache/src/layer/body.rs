//! Reading a body as a whole, without spoiling it when it turns out to be too long for that.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

/// What became of an attempt to read a body as a whole.
pub(super) enum Read<B: Body> {
    Whole(Bytes),
    TooLong(Resumed<B>),
    Trailers(Resumed<B>),
    Failed(Resumed<B>),
}

/// A body that was read a little way, from its start.
pub(super) struct Resumed<B: Body> {
    read: VecDeque<Result<Frame<Bytes>, B::Error>>,
    rest: Pin<Box<B>>,
}

pub(super) async fn read<B: Body<Data = Bytes>>(body: B, max_bytes: usize) -> Read<B> {
    let too_long = |bytes: u64| usize::try_from(bytes).map_or(true, |bytes| bytes > max_bytes);
    let mut body = Resumed { read: VecDeque::new(), rest: Box::pin(body) };
    if too_long(body.rest.size_hint().lower()) {
        return Read::TooLong(body);
    }
    let mut bytes = 0;
    while let Some(frame) = body.rest.frame().await {
        let (failed, data) = (frame.is_err(), frame.as_ref().ok().and_then(Frame::data_ref).map(Bytes::len));
        body.read.push_back(frame);
        match data {
            Some(len) => bytes += len as u64,
            None if failed => return Read::Failed(body),
            None => return Read::Trailers(body),
        }
        if too_long(bytes) {
            return Read::TooLong(body);
        }
    }
    let length = bytes as usize;
    let mut chunks = body.read.into_iter().filter_map(|frame| frame.ok()?.into_data().ok());
    let first = chunks.next().unwrap_or_default();
    let Some(second) = chunks.next() else { return Read::Whole(first) };
    let mut whole = BytesMut::with_capacity(length);
    [first, second].into_iter().chain(chunks).for_each(|chunk| whole.extend_from_slice(&chunk));
    Read::Whole(whole.freeze())
}

// What was read is not pinned: it is moved out as it is.
impl<B: Body> Unpin for Resumed<B> {}

impl<B: Body<Data = Bytes>> Body for Resumed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.rest.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.read.is_empty() {
            true => self.rest.size_hint(),
            false => SizeHint::new(),
        }
    }
}
