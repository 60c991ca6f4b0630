//! The body of an answer that is on its way to the cache and to those who wait for it.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::entry::Head;
use crate::proxy::body::BoxError;

/// An answer whose body grows. It has one writer; its readers may be on any core.
#[derive(Debug)]
pub(super) struct Growing {
    pub(super) head: Arc<Head>,
    state: Mutex<State>,
    grown: Arc<Notify>,
    read: Notify,
    /// Bytes of all answers that are on their way.
    on_way: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Chunks that are gone from the front, all readers having read them.
    gone: usize,
    /// Bytes in `chunks`.
    bytes: usize,
    /// Whether it turned out too long to be kept, so that only those get it who read already.
    passing: bool,
    /// Whether it is complete; none as long as it grows.
    end: Option<Result<(), Broken>>,
    /// The number of each reader's next chunk.
    readers: HashMap<u64, usize>,
    next_reader: u64,
}

/// The origin ended in the middle of its answer.
#[derive(Clone, Copy, Debug)]
struct Broken;

/// All readers have left.
pub(super) struct Abandoned;

impl Growing {
    /// An answer of which nothing is there yet but the head, and its first reader.
    pub(super) fn begin(head: Arc<Head>, on_way: &Arc<AtomicU64>) -> (Arc<Self>, Reader) {
        let growing = Arc::new(Self {
            head,
            state: Mutex::default(),
            grown: Arc::default(),
            read: Notify::new(),
            on_way: Arc::clone(on_way),
        });
        let reader = growing.add(&mut growing.state());
        (growing, reader)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a chunk and returns how many bytes are held.
    pub(super) fn push(&self, chunk: Bytes) -> usize {
        let mut state = self.state();
        self.on_way.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        state.bytes += chunk.len();
        state.chunks.push_back(chunk);
        let bytes = state.bytes;
        drop(state);
        self.grown.notify_waiters();
        bytes
    }

    /// From now on it is only passed on: waits until no more than so many bytes are held for the slowest reader.
    pub(super) async fn pass_on(&self, max_bytes: usize) -> Result<(), Abandoned> {
        loop {
            let read = self.read.notified();
            {
                let mut state = self.state();
                state.passing = true;
                let Some(slowest) = state.readers.values().min().copied() else { return Err(Abandoned) };
                while state.gone < slowest
                    && let Some(chunk) = state.chunks.pop_front()
                {
                    state.gone += 1;
                    state.bytes -= chunk.len();
                    self.on_way.fetch_sub(chunk.len() as u64, Ordering::Relaxed);
                }
                if state.bytes <= max_bytes {
                    return Ok(());
                }
            }
            read.await;
        }
    }

    /// All of it; meaningful as long as it is not just passed on.
    pub(super) fn whole(&self) -> Bytes {
        let state = self.state();
        // Copied, for a chunk may hold on to a larger buffer.
        let mut whole = BytesMut::with_capacity(state.bytes);
        state.chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
        whole.freeze()
    }

    pub(super) fn complete(&self) {
        self.end(Ok(()));
    }

    fn end(&self, end: Result<(), Broken>) {
        self.state().end.get_or_insert(end);
        self.grown.notify_waiters();
    }

    /// A reader from the beginning; none where that is gone.
    pub(super) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state();
        if state.passing {
            return None;
        }
        Some(self.add(&mut state))
    }

    fn add(self: &Arc<Self>, state: &mut State) -> Reader {
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, 0);
        Reader { growing: Arc::clone(self), id, next: 0, grown: None }
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.on_way.fetch_sub(self.state().bytes as u64, Ordering::Relaxed);
    }
}

/// Ends an answer as broken when its writer is gone before it was complete.
pub(super) struct Writer(pub(super) Arc<Growing>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.end(Err(Broken));
    }
}

/// Reads along.
pub(super) struct Reader {
    growing: Arc<Growing>,
    id: u64,
    next: usize,
    grown: Option<Pin<Box<OwnedNotified>>>,
}

impl Reader {
    fn take(&mut self) -> Option<Result<Option<Bytes>, Broken>> {
        let mut state = self.growing.state();
        let Some(chunk) = state.chunks.get(self.next - state.gone).cloned() else {
            return state.end.map(|end| end.map(|()| None));
        };
        self.next += 1;
        state.readers.insert(self.id, self.next);
        if state.passing {
            self.growing.read.notify_one();
        }
        Some(Ok(Some(chunk)))
    }
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match self.take() {
                Some(Ok(chunk)) => return Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk)))),
                Some(Err(Broken)) => {
                    return Poll::Ready(Some(Err("the service ended in the middle of its answer".into())));
                }
                None => {}
            }
            // It hears what happens from its making on, so look once more after that.
            let this = &mut *self;
            match &mut this.grown {
                None => this.grown = Some(Box::pin(Arc::clone(&this.growing.grown).notified_owned())),
                Some(grown) => {
                    ready!(grown.as_mut().poll(cx));
                    this.grown = None;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.growing.state();
        matches!(state.end, Some(Ok(()))) && self.next - state.gone == state.chunks.len()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.growing.state().readers.remove(&self.id);
        self.growing.read.notify_one();
    }
}
