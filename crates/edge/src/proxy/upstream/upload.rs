//! A request on its way to an upstream: head and body, in as few writes as they fit.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame};
use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;

use super::head::{Sized, write_field};
use crate::proxy::body::RequestBody;

/// Data up to this length is copied behind what stands before it rather than written beside it.
const COPIED: usize = 4 * 1024;
/// So much is collected before it is written, where the client has sent it already.
const COLLECTED: usize = 16 * 1024;

/// Why a request could not be sent whole.
#[derive(Debug)]
pub(super) enum UploadError {
    /// The upstream takes no more. It may have answered nevertheless.
    Write,
    /// The client's body broke off, or is not as long as it said.
    Client,
}

/// What of a request has not been sent yet.
#[derive(Debug)]
pub(super) struct Upload {
    // First `framed` from `at` on, then `data`, then `tail`.
    framed: Vec<u8>,
    at: usize,
    data: Bytes,
    tail: &'static [u8],
    body: RequestBody,
    sized: Sized,
    /// Whether it is the client who has to move next.
    pub(super) starved: bool,
    /// Whether something moved since this was last reset.
    pub(super) moved: bool,
}

impl Upload {
    /// `head` is the written head.
    pub(super) fn new(head: Vec<u8>, body: RequestBody, sized: Sized) -> Self {
        Self { framed: head, at: 0, data: Bytes::new(), tail: b"", body, sized, starved: false, moved: false }
    }

    /// The memory of its buffer, once it is not needed any more.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.framed
    }

    /// Sends on until all is sent.
    pub(super) fn poll(
        &mut self,
        write: &mut OwnedWriteHalf,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
        loop {
            let waits = self.collect(cx)?;
            if self.is_flushed() {
                return if waits { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            self.starved = false;
            ready!(self.poll_write(write, cx)).map_err(|_| UploadError::Write)?;
        }
    }

    /// Takes from the body what is there and fits; says whether the body goes on but has nothing at the moment.
    fn collect(&mut self, cx: &mut Context<'_>) -> Result<bool, UploadError> {
        while self.sized != Sized::Empty && self.data.is_empty() && self.framed.len() - self.at < COLLECTED {
            self.starved = true;
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Ok(true) };
            self.starved = false;
            self.moved = true;
            match frame.map(|frame| frame.map_err(|_| UploadError::Client)).transpose()? {
                Some(frame) => self.take(frame)?,
                None => self.end(None)?,
            }
        }
        Ok(false)
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), UploadError> {
        let data = match frame.into_data() {
            Ok(data) if data.is_empty() => return Ok(()),
            Ok(data) => data,
            Err(frame) => return self.end(frame.into_trailers().ok()),
        };
        match &mut self.sized {
            Sized::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(UploadError::Client)?;
                self.put(data, b"");
                if self.sized == Sized::Length(0) {
                    self.sized = Sized::Empty;
                }
            }
            Sized::Chunked => {
                // Writing to a vector cannot fail.
                let _ = write!(self.framed, "{:x}\r\n", data.len());
                self.put(data, b"\r\n");
                if self.body.is_end_stream() {
                    self.end(None)?;
                }
            }
            Sized::Empty => return Err(UploadError::Client),
        }
        Ok(())
    }

    fn put(&mut self, data: Bytes, tail: &'static [u8]) {
        if data.len() <= COPIED {
            self.framed.extend_from_slice(&data);
            self.framed.extend_from_slice(tail);
        } else {
            self.data = data;
            self.tail = tail;
        }
    }

    fn end(&mut self, trailers: Option<http::HeaderMap>) -> Result<(), UploadError> {
        if !matches!(self.sized, Sized::Chunked | Sized::Length(0)) {
            return Err(UploadError::Client);
        }
        if self.sized == Sized::Chunked && self.data.is_empty() {
            self.framed.extend_from_slice(b"0\r\n");
            let trailers = trailers.iter().flatten();
            trailers.for_each(|(name, value)| write_field(&mut self.framed, name, value));
            self.framed.extend_from_slice(b"\r\n");
        } else if self.sized == Sized::Chunked {
            self.tail = b"\r\n0\r\n\r\n";
        }
        self.sized = Sized::Empty;
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        self.at == self.framed.len() && self.data.is_empty() && self.tail.is_empty()
    }

    fn poll_write(&mut self, write: &mut OwnedWriteHalf, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut write = Pin::new(write);
        let framed = &self.framed[self.at..];
        let written = if self.data.is_empty() && self.tail.is_empty() {
            ready!(write.as_mut().poll_write(cx, framed))?
        } else {
            let slices = [IoSlice::new(framed), IoSlice::new(&self.data), IoSlice::new(self.tail)];
            ready!(write.as_mut().poll_write_vectored(cx, &slices))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.moved = true;
        self.advance(written);
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, written: usize) {
        let of_framed = written.min(self.framed.len() - self.at);
        self.at += of_framed;
        if self.at == self.framed.len() {
            self.framed.clear();
            self.at = 0;
        }
        let of_data = (written - of_framed).min(self.data.len());
        self.data.advance(of_data);
        self.tail = &self.tail[written - of_framed - of_data..];
    }
}
