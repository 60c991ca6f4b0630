//! A bounded number of reading connections, lent to blocking threads.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
    time::timeout,
};
use tracing::Span;

use super::{connection::File, trace};
use crate::{Error, error::panic_message, telemetry};

pub(super) struct Readers {
    file: Arc<File>,
    permits: Arc<Semaphore>,
    /// The longest unused in front.
    idle: Mutex<VecDeque<Idle>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Readers {
    pub(super) fn new(file: Arc<File>) -> Self {
        let permits = Arc::new(Semaphore::new(file.config.max_connections as usize));
        Self { file, permits, idle: Mutex::default() }
    }

    pub(super) async fn run<T, F>(self: &Arc<Self>, f: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let asked = Instant::now();
        let permit = self.permit().await?;
        let (readers, span) = (Arc::clone(self), Span::current());
        let read = spawn_blocking(move || {
            let _permit = permit; // Given back last, after the connection.
            let wait = asked.elapsed();
            telemetry::waited(wait);
            span.in_scope(|| readers.lend(wait, f))
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

    fn lend<T>(
        &self,
        wait: Duration,
        f: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Error> {
        let connection = match self.idle().pop_back() {
            Some(idle) => idle.connection,
            None => self.file.open_reader()?,
        };
        // A panic unwinds from here, and closes the connection on its way.
        let result = trace::scope(self.file.config.slow_query, wait, || f(&connection));
        // A transaction left open would show its snapshot to the next caller.
        if connection.is_autocommit() {
            self.put_back(connection);
        }
        result.map_err(Error::Sqlite)
    }

    fn put_back(&self, connection: Connection) {
        let now = Instant::now();
        let mut idle = self.idle();
        idle.push_back(Idle { connection, since: now });
        let limit = self.file.config.idle_timeout;
        let expired = idle.iter().take_while(|idle| now.duration_since(idle.since) > limit).count();
        let expired: Vec<Idle> = idle.drain(..expired).collect();
        drop(idle);
        drop(expired); // Closing touches the disk: not under the lock.
    }

    pub(super) async fn close(&self) {
        // Whoever waits already gets a permit first: the semaphore is fair.
        let all = self.permits.acquire_many(self.file.config.max_connections).await;
        self.permits.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        let _ = spawn_blocking(move || drop(idle)).await;
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
