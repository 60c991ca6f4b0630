//! The one thread that writes, and the queue before it.

use std::{sync::Arc, thread};

use rusqlite::{Connection, Transaction};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    call::{Call, GiveUp, Job, Turn},
    connection::File,
    group::Committer,
    trace::Caller,
};
use crate::{Error, telemetry};

/// Writers that may wait; more wait for a place, within the same timeout.
const QUEUE: usize = 1024;

pub(super) enum Message {
    Run(Box<dyn Job>),
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

    /// Runs `f` in a transaction that it may share; `alone`, in one of its own, and once at most.
    pub(super) async fn run<T, E, F>(&self, alone: bool, caller: Caller, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: FnMut(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let turn = Turn::default();
        let _give_up = GiveUp(&turn);
        let (call, mut result) = Call::new(f, alone, turn.clone(), caller);
        let message = Message::Run(Box::new(call));
        let queued = async {
            self.jobs.send(message).await.map_err(|_| Error::Closed)?;
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

fn serve(connection: Connection, file: &File, mut mailbox: mpsc::Receiver<Message>) {
    let mut closed = None;
    let mut committer = Committer::new(&connection, file);
    let mut next = None;
    while let Some(message) = next.take().or_else(|| mailbox.blocking_recv()) {
        match message {
            Message::Run(job) => {
                next = committer.run(job, &mut mailbox);
                committer.pause(&mailbox);
            }
            Message::Close(sender) => {
                mailbox.close();
                closed = Some(sender);
            }
        }
    }
    drop(connection);
    drop(closed);
}
