//! One transaction for many callers: a savepoint each, one `COMMIT` for all, which is what costs.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::{CachedStatement, Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::mpsc;

use super::{call::Job, connection::File, trace, writer::Message};
use crate::Error;

/// The most callers in one transaction.
const MAX_CALLERS: usize = 1024;
/// A transaction that has lasted for this long takes no further caller.
const MAX_TIME: Duration = Duration::from_millis(5);

/// After a transaction of many, the longest that the next waits for half as many. Callers that are answered together
/// often come back together, and whoever comes first would otherwise commit alone.
const MAX_PAUSE: Duration = Duration::from_micros(200);

const SAVEPOINT: &str = "SAVEPOINT greenwave_caller";
const UNDO: &str = "ROLLBACK TO greenwave_caller";
const RELEASE: &str = "RELEASE greenwave_caller";

type Jobs = VecDeque<Box<dyn Job>>;

/// Commits callers' work, on the writer's thread.
pub(super) struct Committer<'a> {
    connection: &'a Connection,
    file: &'a File,
    watch: Arc<Watch>,
    /// How many the last transaction held.
    callers: usize,
}

/// Callers whose work was undone through no fault of theirs, and how to run them again.
enum Undone {
    Nobody,
    /// One broke the transaction and was answered.
    ByOne(Jobs),
    /// One of them makes `COMMIT` fail.
    BySomeone(Jobs),
}

impl<'a> Committer<'a> {
    pub(super) fn new(connection: &'a Connection, file: &'a File) -> Self {
        Self { connection, file, watch: Watch::over(connection), callers: 0 }
    }

    /// Lets those come back who were answered together. Where the last writer was alone, so is the next: it never
    /// waits for company.
    pub(super) fn pause(&self, mailbox: &mpsc::Receiver<Message>) {
        if self.callers < 2 {
            return;
        }
        let start = Instant::now();
        while mailbox.len() < self.callers / 2 && start.elapsed() < MAX_PAUSE {
            thread::yield_now();
        }
    }

    /// Runs `first`, with those who wait behind it. Returns a message that is not for this transaction.
    pub(super) fn run(
        &mut self,
        first: Box<dyn Job>,
        mailbox: &mut mpsc::Receiver<Message>,
    ) -> Option<Message> {
        if !first.begin() {
            return None;
        }
        self.callers = 1;
        if first.is_alone() || mailbox.is_empty() {
            self.singly(first);
            return None;
        }
        let mut other = None;
        let mut more = || {
            while other.is_none() {
                match mailbox.try_recv().ok()? {
                    Message::Run(job) if !job.is_alone() => {
                        if job.begin() {
                            return Some(job);
                        }
                    }
                    message => other = Some(message),
                }
            }
            None
        };
        let mut callers = 1;
        let counted = || more().inspect(|_| callers += 1);
        let mut undone = self.together(VecDeque::from([first]), counted);
        self.callers = callers;
        if let Undone::ByOne(jobs) = undone {
            undone = self.together(jobs, || None);
        }
        // Whoever breaks things now had company: one by one, everybody answers only for itself.
        if let Undone::ByOne(jobs) | Undone::BySomeone(jobs) = undone {
            jobs.into_iter().for_each(|job| self.singly(job));
        }
        other
    }

    /// A transaction for `waiting`, and for those whom `more` gives.
    fn together(&self, mut waiting: Jobs, mut more: impl FnMut() -> Option<Box<dyn Job>>) -> Undone {
        let transaction = match self.begin() {
            Ok(transaction) => transaction,
            Err(error) => return refuse(waiting, &error),
        };
        let mut savepoint = match Savepoint::prepare(self.connection) {
            Ok(savepoint) => savepoint,
            Err(error) => return refuse(waiting, &Error::Sqlite(error)),
        };
        let start = Instant::now();
        let mut ran = Jobs::new();
        loop {
            let has_place = || ran.len() < MAX_CALLERS && start.elapsed() < MAX_TIME;
            let next = waiting.pop_front().or_else(|| if has_place() { more() } else { None });
            let Some(mut job) = next else { break };
            match self.within(&mut savepoint, &transaction, &mut *job) {
                Ok(Held::Yes) => ran.push_back(job),
                Ok(Held::No) => {
                    drop(transaction);
                    quietly(|| job.answer_broken());
                    ran.append(&mut waiting);
                    return Undone::ByOne(ran);
                }
                Err(error) => {
                    drop(transaction);
                    ran.push_back(job);
                    ran.append(&mut waiting);
                    return refuse(ran, &Error::Sqlite(error));
                }
            }
        }
        // Nobody is left when the only one broke an earlier transaction.
        let Some(first) = ran.front() else { return Undone::Nobody };
        match self.commit(transaction, &**first) {
            Ok(()) => {
                ran.into_iter().for_each(|job| quietly(|| job.answer(Ok(()))));
                Undone::Nobody
            }
            // A deferred constraint: one of them violates it.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Undone::BySomeone(ran)
            }
            Err(error) => refuse(ran, &Error::Sqlite(error)),
        }
    }

    /// A transaction of its own for one caller, whom nothing of others' can then undo.
    fn singly(&self, mut job: Box<dyn Job>) {
        let transaction = match self.begin() {
            Ok(transaction) => transaction,
            Err(error) => return quietly(|| job.answer(Err(error))),
        };
        match self.watched(&transaction, &mut *job) {
            Held::No => {
                drop(transaction);
                quietly(|| job.answer_broken());
            }
            Held::Yes if job.failed() => {
                drop(transaction);
                quietly(|| job.answer(Ok(())));
            }
            Held::Yes => {
                let end = self.commit(transaction, &*job).map_err(Error::Sqlite);
                quietly(|| job.answer(end));
            }
        }
    }

    fn begin(&self) -> Result<Transaction<'a>, Error> {
        if !self.connection.is_autocommit() {
            // An earlier rollback failed: while it does, its error is the answer.
            self.connection.execute_batch("ROLLBACK")?;
        }
        self.file
            .wait_for_lock(|| Transaction::new_unchecked(self.connection, TransactionBehavior::Immediate))
    }

    /// When it fails, the transaction is rolled back.
    fn commit(&self, transaction: Transaction<'_>, first: &dyn Job) -> rusqlite::Result<()> {
        let (span, wait, caller) = first.context();
        span.in_scope(|| trace::scope(self.file, wait, caller.clone(), || transaction.commit()))
    }

    fn within(
        &self,
        savepoint: &mut Savepoint<'_>,
        transaction: &Transaction<'_>,
        job: &mut dyn Job,
    ) -> rusqlite::Result<Held> {
        savepoint.set.execute(())?;
        let held = self.watched(transaction, job);
        if let Held::Yes = held {
            if job.failed() {
                savepoint.undo.execute(())?;
            }
            savepoint.release.execute(())?;
        }
        Ok(held)
    }

    fn watched(&self, transaction: &Transaction<'_>, job: &mut dyn Job) -> Held {
        self.watch.rolled_back.store(false, Relaxed);
        self.watch.in_closure.store(true, Relaxed);
        job.run(transaction, self.file);
        self.watch.in_closure.store(false, Relaxed);
        let lost = self.connection.is_autocommit() || self.watch.rolled_back.load(Relaxed);
        if lost { Held::No } else { Held::Yes }
    }
}

/// Its statements, looked up once for all callers.
struct Savepoint<'a> {
    set: CachedStatement<'a>,
    undo: CachedStatement<'a>,
    release: CachedStatement<'a>,
}

impl<'a> Savepoint<'a> {
    fn prepare(connection: &'a Connection) -> rusqlite::Result<Self> {
        let prepare = |sql| connection.prepare_cached(sql);
        Ok(Self { set: prepare(SAVEPOINT)?, undo: prepare(UNDO)?, release: prepare(RELEASE)? })
    }
}

/// Whether the transaction outlived a closure. A full disk, an interrupted statement, `RAISE(ROLLBACK)` and
/// `INSERT OR ROLLBACK` make SQLite roll back all of it.
enum Held {
    Yes,
    No,
}

/// Sees transactions end inside closures, where none may.
#[derive(Default)]
struct Watch {
    in_closure: AtomicBool,
    rolled_back: AtomicBool,
}

impl Watch {
    fn over(connection: &Connection) -> Arc<Self> {
        let watch = Arc::new(Self::default());
        let (on_commit, on_rollback) = (Arc::clone(&watch), Arc::clone(&watch));
        // A closure that commits would commit for all; `true` makes it a rollback, which is noticed.
        let commit = connection.commit_hook(Some(move || on_commit.in_closure.load(Relaxed)));
        // Autocommit alone would not show that a closure rolled back and began anew.
        let rollback = connection.rollback_hook(Some(move || on_rollback.rolled_back.store(true, Relaxed)));
        debug_assert!(commit.and(rollback).is_ok(), "a connection that we own takes hooks");
        watch
    }
}

fn refuse(jobs: Jobs, error: &Error) -> Undone {
    for job in jobs {
        quietly(|| job.answer(Err(copy(error))));
    }
    Undone::Nobody
}

/// A caller's own values are dropped here too, and may panic: that is not the thread's end.
fn quietly(f: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(f));
}

/// The same error for each of a group: neither rusqlite's nor ours can be cloned.
fn copy(error: &Error) -> Error {
    match error {
        Error::Locked { waited, source } => Error::Locked { waited: *waited, source: copy_sqlite(source) },
        Error::Sqlite(source) => Error::Sqlite(copy_sqlite(source)),
        _ => Error::Closed,
    }
}

fn copy_sqlite(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(code, text) => rusqlite::Error::SqliteFailure(*code, text.clone()),
        other => {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR);
            rusqlite::Error::SqliteFailure(code, Some(other.to_string()))
        }
    }
}
