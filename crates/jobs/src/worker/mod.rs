//! A worker is three loops around a set of running attempts: fetching, settling what has ended, keeping the leases.

mod attempt;
mod fetch;
mod handlers;
mod leases;
mod settle;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backends::Backend;
use crate::deadline::in_time;
use crate::error::chain;
use crate::{BoxError, Error, Job, JobContext, Queue, WorkerConfig};
use fetch::Fetcher;
use handlers::Handlers;
use leases::Leases;

/// How long a stopping worker may need, after its grace, to record what has ended.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the jobs of a queue.
///
/// ```no_run
/// # use greenwave_jobs::{Job, Queue, Worker, WorkerConfig, BoxError, JobContext};
/// # use tokio_util::sync::CancellationToken;
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct SendWelcomeEmail { user_id: u64 }
/// # impl Job for SendWelcomeEmail { const NAME: &'static str = "send-welcome-email"; }
/// # async fn f(cancel: CancellationToken) -> Result<(), Box<dyn std::error::Error>> {
/// let queue = Queue::sqlite("jobs.db")?;
/// queue.migrate().await?;
/// Worker::new(queue, WorkerConfig::default())
///     .handle(|job: SendWelcomeEmail, ctx: JobContext| async move {
///         println!("attempt {}: mail to user {}", ctx.attempt, job.user_id);
///         Ok::<(), BoxError>(())
///     })
///     .run(cancel)
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a worker does nothing until it is run"]
pub struct Worker<B> {
    queue: Queue<B>,
    config: WorkerConfig,
    handlers: Handlers,
}

impl<B> fmt::Debug for Worker<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("config", &self.config).field("handlers", &self.handlers).finish()
    }
}

impl<B: Backend> Worker<B> {
    /// A worker without handlers.
    pub fn new(queue: Queue<B>, config: WorkerConfig) -> Self {
        Worker { queue, config, handlers: Handlers::default() }
    }

    /// Adds the handler of a job type, and the type's queue to those that the worker serves.
    ///
    /// The handler may run more than once for one job: after a crash, after a lost lease. Make its effects depend on
    /// [`JobContext::id`] where that matters. An error, a panic or a timeout is a failed attempt. The handler is
    /// dropped at an `await` when its time is over; hand blocking work to `spawn_blocking`, for a blocked runtime
    /// extends no leases.
    ///
    /// A worker takes every job of its queues: one that it has no handler for goes to the dead jobs. So give workers
    /// with different handlers different queues, and deploy a new handler before what pushes its jobs.
    pub fn handle<J, F, Fut, E>(mut self, handler: F) -> Self
    where
        J: Job,
        F: Fn(J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.handlers.add(handler);
        self
    }

    /// Works until the token fires, then stops: fetches no more, lets running handlers end within
    /// [`WorkerConfig::grace`], records the results, returns what did not end to the queue.
    ///
    /// While the database is away it logs, waits and tries again. An error means that it cannot start: the tables are
    /// missing, or configuration or handlers make no sense.
    ///
    /// # Cancel safety
    /// Dropping the future is like killing the worker: handlers are dropped where they are, and their jobs start again
    /// elsewhere when their leases end.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        self.config.check()?;
        self.handlers.check()?;
        if let Some(what) = self.handlers.kinds().iter().find_map(|kind| self.queue.store.unsupported(kind)) {
            return Err(Error::Unsupported(what));
        }
        // A database that is away now may come; tables that are missing will not.
        let migrated = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            migrated = in_time(self.queue.store.is_migrated()) => migrated,
        };
        match migrated {
            Ok(true) => {}
            Ok(false) => return Err(Error::NotMigrated),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "the queue's database is away; the worker waits for it"
                );
            }
        }

        let Worker { queue, config, handlers } = self;
        let (settle, settlements) = mpsc::channel(config.concurrency);
        let leases = Arc::new(Leases::default());
        let settling = settle::settle(queue.store.clone(), settlements, config.max_batch);
        let keeping = leases::keep(queue.store.clone(), Arc::clone(&leases), config.lease);
        let listening = queue.store.listen(Arc::clone(&queue.wakeups));
        let too_late = {
            let (cancel, patience) = (cancel.clone(), config.grace.saturating_add(FLUSH_DEADLINE));
            async move {
                cancel.cancelled().await;
                sleep(patience).await;
            }
        };
        let fetching = Fetcher::new(&queue, config, handlers, leases, settle, &cancel).run();

        tokio::select! {
            // Settling ends when fetching and all attempts have dropped their senders.
            ((), ()) = async { tokio::join!(fetching, settling) } => {}
            () = keeping => {}
            () = listening => {}
            () = too_late => tracing::warn!(
                "the worker stopped before all results were recorded; their jobs run again when the leases end"
            ),
        }
        Ok(())
    }
}
