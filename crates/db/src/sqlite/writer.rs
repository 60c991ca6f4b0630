//! The one thread that writes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::Span;

use super::{connection::File, trace};
use crate::{Error, error::panic_message, telemetry};

/// Writers that may wait; more wait for a place, within the same timeout.
const QUEUE: usize = 1024;

type Job = Box<dyn FnOnce(&Connection, &File) + Send>;

enum Message {
    Run(Job),
    Close(oneshot::Sender<()>),
}

/// The thread's mailbox. The thread ends when its pool is closed, or the last clone of it dropped.
pub(super) struct Writer {
    file: Arc<File>,
    jobs: mpsc::Sender<Message>,
}

impl Writer {
    pub(super) fn start(file: Arc<File>) -> Result<Self, Error> {
        let connection = file.open_writer()?;
        let (jobs, mailbox) = mpsc::channel(QUEUE);
        let thread_file = Arc::clone(&file);
        thread::Builder::new()
            .name("greenwave-sqlite".into())
            .spawn(move || serve(connection, &thread_file, mailbox))
            .map_err(Error::Thread)?;
        Ok(Self { file, jobs })
    }

    pub(super) async fn run<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let asked = Instant::now();
        let turn = Turn::default();
        let _give_up = GiveUp(&turn);
        let (answer, mut result) = oneshot::channel();
        let (claim, span) = (turn.clone(), Span::current());
        let job: Job = Box::new(move |connection, file| {
            if claim.take() {
                let _ = answer.send(span.in_scope(|| write(connection, file, asked, f)));
            }
        });
        let queued = async {
            self.jobs.send(Message::Run(job)).await.map_err(|_| Error::Closed)?;
            (&mut result).await.map_err(|_| Error::Closed)
        };
        let outcome = match timeout(self.file.config.connection_timeout, queued).await {
            Ok(outcome) => outcome,
            // Still waiting, and now it never runs.
            Err(_) if turn.take() => {
                telemetry::timed_out();
                Err(Error::WriterBusy { waited: self.file.config.connection_timeout })
            }
            // It has begun, and may yet commit: only its own answer tells.
            Err(_) => result.await.map_err(|_| Error::Closed),
        };
        outcome.and_then(|done| done).map_err(E::from)?
    }

    pub(super) async fn close(&self) {
        let (closed, wait) = oneshot::channel();
        if self.jobs.send(Message::Close(closed)).await.is_ok() {
            let _ = wait.await;
        }
    }
}

/// Who takes it decides: the thread, that the job runs; the caller, that it never does.
#[derive(Clone, Default)]
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A caller that is dropped while it waits gives its turn up.
struct GiveUp<'a>(&'a Turn);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

fn serve(connection: Connection, file: &File, mut mailbox: mpsc::Receiver<Message>) {
    let mut closed = None;
    while let Some(message) = mailbox.blocking_recv() {
        match message {
            Message::Run(job) => job(&connection, file),
            Message::Close(sender) => {
                mailbox.close();
                closed = Some(sender);
            }
        }
    }
    drop(connection);
    drop(closed);
}

/// One transaction from `BEGIN` to `COMMIT`. The outer error is ours, the inner one the closure's.
fn write<T, E>(
    connection: &Connection,
    file: &File,
    asked: Instant,
    f: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<Result<T, E>, Error> {
    let slow = file.config.slow_query;
    let transaction =
        file.wait_for_lock(|| Transaction::new_unchecked(connection, TransactionBehavior::Immediate))?;
    let wait = asked.elapsed();
    telemetry::waited(wait);
    let outcome = trace::scope(slow, wait, || catch_unwind(AssertUnwindSafe(|| f(&transaction))));
    match outcome {
        Ok(Ok(value)) => {
            trace::scope(slow, wait, || transaction.commit())?;
            Ok(Ok(value))
        }
        Ok(Err(error)) => rollback(transaction).map(|()| Err(error)),
        Err(panic) => {
            rollback(transaction)?;
            Err(Error::Panicked { message: panic_message(&*panic) })
        }
    }
}

/// A full disk, or a trigger's `RAISE(ROLLBACK)`, has ended the transaction already: there is nothing left to do then,
/// and what the closure says of it is the error to report.
fn rollback(transaction: Transaction<'_>) -> Result<(), Error> {
    if transaction.is_autocommit() { Ok(()) } else { transaction.rollback().map_err(Error::Sqlite) }
}
