//! A caller of the writer, whatever the types of its closure.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rusqlite::Transaction;
use tokio::sync::oneshot;
use tracing::Span;

use super::{
    connection::File,
    trace::{self, Caller},
};
use crate::{Error, error::panic_message, telemetry};

/// What the writer's thread knows of a caller.
pub(super) trait Job: Send {
    /// Whether the caller still waits; from then on it waits for the answer.
    fn begin(&self) -> bool;
    /// Whether it must not share a transaction, since it can run only once.
    fn is_alone(&self) -> bool;
    /// Runs the closure and keeps what it returns. What an earlier run returned is forgotten.
    fn run(&mut self, transaction: &Transaction<'_>, file: &File);
    /// Whether what it did must be undone.
    fn failed(&self) -> bool;
    /// Its span, how long it had waited when it first ran, and who it is.
    fn context(&self) -> (&Span, Duration, &Caller);
    /// Ends the call: with what the closure returned, or with why that does not hold.
    fn answer(self: Box<Self>, end: Result<(), Error>);
    /// Ends the call of a closure that broke the transaction: with its own error, if it has one.
    fn answer_broken(self: Box<Self>);
}

/// The outer error is ours, the inner one the closure's.
pub(super) type Outcome<T, E> = Result<Result<T, E>, Error>;

pub(super) struct Call<T, E, F> {
    f: F,
    alone: bool,
    asked: Instant,
    wait: Option<Duration>,
    span: Span,
    caller: Caller,
    turn: Turn,
    outcome: Outcome<T, E>,
    answer: oneshot::Sender<Outcome<T, E>>,
}

impl<T, E, F> Call<T, E, F> {
    pub(super) fn new(
        f: F,
        alone: bool,
        turn: Turn,
        caller: Caller,
    ) -> (Self, oneshot::Receiver<Outcome<T, E>>) {
        let (answer, receiver) = oneshot::channel();
        let (asked, span) = (Instant::now(), Span::current());
        let (wait, outcome) = (None, Err(Error::Closed));
        (Self { f, alone, asked, wait, span, caller, turn, outcome, answer }, receiver)
    }
}

impl<T, E, F> Job for Call<T, E, F>
where
    T: Send,
    E: Send + 'static,
    F: FnMut(&Transaction<'_>) -> Result<T, E> + Send,
{
    fn begin(&self) -> bool {
        self.turn.take()
    }

    fn is_alone(&self) -> bool {
        self.alone
    }

    fn run(&mut self, transaction: &Transaction<'_>, file: &File) {
        let Self { f, asked, span, caller, .. } = self;
        let wait = *self.wait.get_or_insert_with(|| {
            let wait = asked.elapsed();
            telemetry::waited(wait);
            wait
        });
        let run = || f(transaction).inspect_err(note_failure);
        let run = AssertUnwindSafe(|| trace::scope(file, wait, caller.clone(), run));
        self.outcome = match span.in_scope(|| catch_unwind(run)) {
            Ok(result) => Ok(result),
            Err(panic) => Err(Error::Panicked { message: panic_message(&*panic) }),
        };
    }

    fn failed(&self) -> bool {
        !matches!(self.outcome, Ok(Ok(_)))
    }

    fn context(&self) -> (&Span, Duration, &Caller) {
        (&self.span, self.wait.unwrap_or_default(), &self.caller)
    }

    fn answer(self: Box<Self>, end: Result<(), Error>) {
        let outcome = match (self.outcome, end) {
            (outcome @ Err(Error::Panicked { .. }), _) | (outcome, Ok(())) => outcome,
            // Also of an error of its own: what that was drawn from may have been undone.
            (_, Err(cause)) => Err(cause),
        };
        let _ = self.answer.send(outcome); // Nobody waits any more.
    }

    fn answer_broken(self: Box<Self>) {
        let end = if self.failed() { Ok(()) } else { Err(Error::Sqlite(rolled_back())) };
        self.answer(end);
    }
}

/// Of a caller's own type of error nothing is known.
fn note_failure<E: 'static>(error: &E) {
    let error: &dyn Any = error;
    let ours = error.downcast_ref::<Error>().and_then(|error| match error {
        Error::Sqlite(error) | Error::Interrupted(error) => Some(error),
        _ => None,
    });
    if let Some(error) = ours.or_else(|| error.downcast_ref::<rusqlite::Error>()) {
        trace::failed(error);
    }
}

fn rolled_back() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
    let text = "the closure returned Ok although its transaction had been rolled back";
    rusqlite::Error::SqliteFailure(code, Some(text.into()))
}

/// Who takes it decides: the thread, that the job runs; the caller, that it never does.
#[derive(Clone, Default)]
pub(super) struct Turn(Arc<AtomicBool>);

impl Turn {
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A caller that is dropped while it waits gives its turn up.
pub(super) struct GiveUp<'a>(pub(super) &'a Turn);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}
