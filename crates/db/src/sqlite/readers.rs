//! A bounded number of reading connections, lent to the calling thread or to blocking ones.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    task::{coop, spawn_blocking, yield_now},
    time::timeout,
};
use tracing::Span;

use super::{
    connection::File,
    trace::{self, Caller},
};
use crate::{Error, error::panic_message, telemetry};

/// A read on the calling thread that took longer lets the thread's other tasks run before it answers.
const LONG: Duration = Duration::from_millis(1);

pub(super) struct Readers {
    file: Arc<File>,
    permits: Arc<Semaphore>,
    /// The longest unused in front. Boxed, for they are large and go from hand to hand.
    idle: Mutex<VecDeque<Box<Reader>>>,
}

struct Reader {
    connection: Connection,
    last_used: Instant,
}

impl Readers {
    pub(super) fn new(file: Arc<File>) -> Self {
        let permits = Arc::new(Semaphore::new(file.config.max_connections as usize));
        Self { file, permits, idle: Mutex::default() }
    }

    /// Runs `f` on this thread if a connection is open and free, else on a blocking one.
    pub(super) async fn run<T, F>(self: &Arc<Self>, caller: Caller, f: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        // A read that never waits would let no other task of its thread run.
        coop::consume_budget().await;
        let asked = Instant::now();
        // Nearly every read goes this way, so it only borrows its permit.
        let free = self.permits.try_acquire().ok().and_then(|permit| Some((self.open_one()?, permit)));
        let (result, end) = match free {
            Some((reader, _permit)) => self.lend_here(reader, Duration::ZERO, caller, f),
            None => {
                let permit = self.permit().await?;
                let Some(reader) = self.open_one() else {
                    return self.run_blocking(asked, permit, caller, f).await;
                };
                let lent = self.lend_here(reader, asked.elapsed(), caller, f);
                drop(permit);
                lent
            }
        };
        if end.duration_since(asked) >= LONG {
            yield_now().await;
        }
        result
    }

    /// Returns also when it ended.
    fn lend_here<T>(
        &self,
        reader: Box<Reader>,
        wait: Duration,
        caller: Caller,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> (Result<T, Error>, Instant) {
        telemetry::waited(wait);
        catch_unwind(AssertUnwindSafe(|| self.lend(reader, wait, caller, f))).unwrap_or_else(|panic| {
            (Err(Error::Panicked { message: panic_message(&*panic) }), Instant::now())
        })
    }

    /// Runs `f` on a blocking thread.
    pub(super) async fn run_on_thread<T, F>(self: &Arc<Self>, caller: Caller, f: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let asked = Instant::now();
        let permit = self.permit().await?;
        self.run_blocking(asked, permit, caller, f).await
    }

    async fn run_blocking<T, F>(
        self: &Arc<Self>,
        asked: Instant,
        permit: OwnedSemaphorePermit,
        caller: Caller,
        f: F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (readers, span) = (Arc::clone(self), Span::current());
        let read = spawn_blocking(move || {
            let _permit = permit; // Given back last, after the connection.
            span.in_scope(|| {
                let reader = match readers.open_one() {
                    Some(reader) => reader,
                    None => Box::new(Reader {
                        connection: readers.file.open_reader()?,
                        last_used: Instant::now(),
                    }),
                };
                let wait = asked.elapsed();
                telemetry::waited(wait);
                readers.lend(reader, wait, caller, f).0
            })
        });
        match read.await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => Err(Error::Panicked { message: panic_message(&*panic) }),
                Err(_shutdown) => Err(Error::Closed),
            },
        }
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Error> {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(Error::Closed),
            Err(TryAcquireError::NoPermits) => {}
        }
        let config = &self.file.config;
        match timeout(config.connection_timeout, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(permit) => permit.map_err(|_closed| Error::Closed),
            Err(_) => {
                telemetry::timed_out();
                Err(Error::Exhausted {
                    waited: config.connection_timeout,
                    in_use: config.max_connections.saturating_sub(self.permits.available_permits() as u32),
                    max_connections: config.max_connections,
                    waiting: 0,
                    longest_held: Vec::new(),
                })
            }
        }
    }

    /// An idle connection, the last used first.
    fn open_one(&self) -> Option<Box<Reader>> {
        self.idle().pop_back()
    }

    /// Returns also when `f` ended.
    fn lend<T>(
        &self,
        reader: Box<Reader>,
        wait: Duration,
        caller: Caller,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> (Result<T, Error>, Instant) {
        let db = &reader.connection;
        // A panic unwinds from here, and closes the connection on its way.
        let result = trace::scope(&self.file, wait, caller, || f(db).inspect_err(trace::failed));
        let end = Instant::now();
        // A transaction left open would show its snapshot to the next caller.
        if db.is_autocommit() {
            self.put_back(reader, end);
        }
        (result.map_err(Error::from), end)
    }

    fn put_back(&self, mut reader: Box<Reader>, now: Instant) {
        reader.last_used = now;
        let limit = self.file.config.idle_timeout;
        let is_old = |reader: &Reader| now.duration_since(reader.last_used) > limit;
        let mut idle = self.idle();
        idle.push_back(reader);
        if !idle.front().is_some_and(|reader| is_old(reader)) {
            return;
        }
        let old = idle.iter().take_while(|reader| is_old(reader)).count();
        let old: Vec<_> = idle.drain(..old).collect();
        drop(idle);
        drop(old); // Closing touches the disk: not under the lock.
    }

    pub(super) async fn close(&self) {
        // Whoever waits already gets a permit first: the semaphore is fair.
        let all = self.permits.acquire_many(self.file.config.max_connections).await;
        self.permits.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        let _ = spawn_blocking(move || drop(idle)).await;
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Box<Reader>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
