//! A worker is three loops around its places: exchanging what has ended for what runs next, settling what failed,
//! keeping the leases.

mod attempt;
mod context;
mod exchange;
mod floor;
mod handlers;
mod leases;
mod pace;
mod settle;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backends::Backend;
use crate::deadline::in_time;
use crate::error::chain;
use crate::{BoxError, Error, Job, Queue, WorkerConfig, objectives};
use attempt::Shared;
pub use context::JobContext;
use exchange::Exchanger;
use floor::Floor;
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
    /// [`JobContext::id`] where that matters. An error, a panic or a timeout is a failed attempt; the errors
    /// [`Snooze`](crate::Snooze), [`RetryIn`](crate::RetryIn) and [`Discard`](crate::Discard), also as the cause of
    /// another, say otherwise. What it returns is kept with the job if [`Job::KEEP`] is above zero, unless it is `()`
    /// or `None`.
    ///
    /// The handler is dropped at an `await` when its time is over, when the job is cancelled, and when its lease is
    /// lost; hand blocking work to `spawn_blocking`, for a blocked runtime extends no leases.
    ///
    /// A worker takes every job of its queues: one that it has no handler for goes to the dead jobs. So give workers
    /// with different handlers different queues, and deploy a new handler before what pushes its jobs. A job whose
    /// [version](Job::VERSION) is newer than the handler's goes back to its queue for some seconds, and an older one
    /// through [`Job::upcast`], so that a new version of a type needs no order of deployment.
    pub fn handle<J, F, Fut, R, E>(mut self, handler: F) -> Self
    where
        J: Job,
        F: Fn(J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize + 'static,
        E: Into<BoxError>,
    {
        self.handlers.add(handler);
        self
    }

    /// As [`handle`](Self::handle), with what the handler shares with the rest of the program: each attempt gets a
    /// clone of it. So a handler can be a plain function.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use greenwave_jobs::{BoxError, JobContext, Queue, Worker, WorkerConfig};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct SendMail { to: String }
    /// # impl greenwave_jobs::Job for SendMail { const NAME: &'static str = "send-mail"; }
    /// # struct Mailer;
    /// # impl Mailer { async fn send(&self, to: &str) -> Result<(), BoxError> { Ok(()) } }
    ///
    /// async fn send_mail(mailer: Arc<Mailer>, job: SendMail, _: JobContext) -> Result<(), BoxError> {
    ///     mailer.send(&job.to).await
    /// }
    ///
    /// # fn f() -> Result<(), greenwave_jobs::Error> {
    /// let worker = Worker::new(Queue::sqlite("jobs.db")?, WorkerConfig::default())
    ///     .handle_with(Arc::new(Mailer), send_mail);
    /// # Ok(())
    /// # }
    /// ```
    pub fn handle_with<S, J, F, Fut, R, E>(self, state: S, handler: F) -> Self
    where
        S: Clone + Send + Sync + 'static,
        J: Job,
        F: Fn(S, J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize + 'static,
        E: Into<BoxError>,
    {
        self.handle(move |job: J, context| handler(state.clone(), job, context))
    }

    /// Lets at most so many jobs of a type run at once in this worker; the others of its queue go on beside them.
    ///
    /// What it fetches beyond that waits here for up to a second, then goes back to its queue. A type that fills its
    /// queue is better off with a queue of its own, and a bound for all workers together is a limit on the queue.
    pub fn at_most<J: Job>(mut self, jobs: usize) -> Self {
        self.handlers.bound(J::NAME, jobs);
        self
    }

    /// The same worker, but one that looks for jobs without pause; and its queues.
    #[cfg(feature = "testing")]
    pub(crate) fn again(&self) -> (Self, Vec<&'static str>) {
        let config = WorkerConfig { poll_interval: Duration::from_millis(1), ..self.config.clone() };
        let worker = Worker { queue: self.queue.clone(), config, handlers: self.handlers.clone() };
        (worker, self.handlers.queues())
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
        let Worker { queue, config, handlers } = self;
        let handlers = handlers.ready()?;
        let queues = handlers.queues();
        config.check(&queues)?;
        if let Some(what) = handlers.iter().find_map(|handler| queue.store.unsupported(&handler.kind)) {
            return Err(Error::Unsupported(what));
        }
        if !B::OBSERVES && !config.objectives.is_empty() {
            return Err(Error::Unsupported(
                "objectives; let the server's monitoring watch its consumers, or use PostgreSQL or SQLite",
            ));
        }
        // A database that is away now may come; tables that are missing will not.
        let migrated = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            migrated = in_time(queue.store.is_migrated()) => migrated,
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

        let (settle, settlements) = mpsc::unbounded_channel();
        let stopping = cancel.child_token();
        let leases = Leases::new(stopping.clone(), B::REPORTS);
        let settling = settle::settle(queue.store.clone(), settlements, config.max_batch);
        let keeping = leases::keep(queue.store.clone(), Arc::clone(&leases), config.lease);
        let observing = objectives::watch(queue.store.clone(), handlers.queues(), config.objectives.clone());
        let listening = queue.store.listen(Arc::clone(&queue.wakeups));
        let too_late = {
            let (cancel, patience) = (cancel.clone(), config.grace.saturating_add(FLUSH_DEADLINE));
            async move {
                cancel.cancelled().await;
                sleep(patience).await;
            }
        };
        let floor = Floor::new(&config, &handlers, &queues);
        let shared = Arc::new(Shared { config, handlers, queues, floor, settle, stopping });
        let exchanging = Exchanger::new(&queue, shared, leases).run(cancel);

        tokio::select! {
            // Settling ends when exchanging and all attempts have dropped their senders.
            ((), ()) = async { tokio::join!(exchanging, settling) } => {}
            () = keeping => {}
            () = listening => {}
            () = observing => {}
            () = too_late => tracing::warn!(
                "the worker stopped before all results were recorded; their jobs run again when the leases end"
            ),
        }
        Ok(())
    }
}
