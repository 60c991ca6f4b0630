//! Loads by key, many callers' in one call: the cure for N+1.

mod queue;
mod run;

use std::{collections::HashMap, fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;

use crate::BatchConfig;
use queue::Queue;
use run::Slot;

/// What a caller gets for its key.
type Answer<V, E> = Result<Option<V>, BatchError<E>>;

type LoadFn<K, V, E> = dyn Fn(Vec<K>) -> BoxFuture<'static, Result<HashMap<K, V>, E>> + Send + Sync;

/// Turns concurrent loads by key into few calls that load many keys.
///
/// A handler that asks for one row per item of a list makes N+1 statements, and a hundred handlers that ask for
/// one row each make a hundred. Both get slower with load just when they should not. Ask a loader instead: what is
/// asked for while earlier batches run goes together in the next one.
///
/// There is no timer to tune. A key asked of an idle loader goes at once and alone; while
/// [`max_in_flight`](BatchConfig::max_in_flight) batches run, further keys queue, and go as soon as one ends. So
/// batches grow with the load, and nobody waits when there is none.
///
/// A key that several callers ask for is loaded once. That holds only until its batch begins: a caller who has
/// just written a row never gets an answer that was read before.
///
/// When a batch fails, its halves are tried again, then theirs, so that a key that cannot be loaded fails alone; up to
/// four such keys are found among any number. That search ends when it has failed too often, or when the calls that
/// failed have taken an eighth of [`load_timeout`](BatchConfig::load_timeout): the fault is in no key then, and those
/// that have no answer yet fail with what their last call returned.
///
/// The load function runs in a task of its own, in the tracing span of the first caller of its batch. It must not
/// use a caller's transaction, and everything that decides the answer (a tenant, a role) belongs in the key.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use greenwave_db::{BatchConfig, BatchLoader};
/// use std::{collections::HashMap, io};
///
/// let names = BatchLoader::new("names", BatchConfig::default(), |ids: Vec<u64>| async move {
///     // Here: SELECT id, name FROM customers WHERE id = ANY($1)
///     let rows = ids.into_iter().filter(|id| *id != 0).map(|id| (id, format!("Customer {id}")));
///     Ok::<HashMap<u64, String>, io::Error>(rows.collect())
/// });
///
/// assert_eq!(names.load(7).await.unwrap().as_deref(), Some("Customer 7"));
/// assert_eq!(names.load(0).await.unwrap(), None);
/// # }
/// ```
pub struct BatchLoader<K, V, E> {
    shared: Arc<Shared<K, V, E>>,
}

struct Shared<K, V, E> {
    name: &'static str,
    config: BatchConfig,
    load: Box<LoadFn<K, V, E>>,
    queue: Queue<K, V, E>,
}

impl<K, V, E> BatchLoader<K, V, E>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + 'static,
    E: Send + Sync + 'static,
{
    /// A loader named `name` in metrics and errors, over a function that loads all the keys it is given.
    ///
    /// The function returns what it found; a key it leaves out is absent, which is no error.
    pub fn new<F, Fut>(name: &'static str, config: BatchConfig, load: F) -> Self
    where
        F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<HashMap<K, V>, E>> + Send + 'static,
    {
        let queue = Queue::new(&config);
        let load = Box::new(move |keys| load(keys).boxed());
        Self { shared: Arc::new(Shared { name, config, load, queue }) }
    }

    /// Loads the value of `key`, together with whatever else is asked for; `None` if there is none.
    ///
    /// # Errors
    /// What the load function returned for this key, or why it could not run: see [`BatchError`].
    ///
    /// # Cancel safety
    /// Safe: other callers of the key, and of its batch, get their answers; a key that nobody waits for any more
    /// when its batch begins isn't loaded.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn load(&self, key: K) -> Answer<V, E> {
        let answer = self.ask(key)?;
        answer.await.unwrap_or(Err(BatchError::Cancelled { loader: self.shared.name }))
    }

    fn ask(&self, key: K) -> Result<oneshot::Receiver<Answer<V, E>>, BatchError<E>> {
        let (sender, answer) = oneshot::channel();
        let shared = &self.shared;
        match shared.queue.push(key, sender) {
            Ok(None) => {}
            Ok(Some(batch)) => drop(tokio::spawn(Slot::new(Arc::clone(shared)).run(batch))),
            Err(queue::Full) => {
                return Err(BatchError::QueueFull { loader: shared.name, limit: shared.config.max_queued });
            }
        }
        Ok(answer)
    }
}

impl<K, V, E> Clone for BatchLoader<K, V, E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K, V, E> fmt::Debug for BatchLoader<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        f.debug_struct("BatchLoader").field("name", &shared.name).field("config", &shared.config).finish()
    }
}

/// Why a [`BatchLoader`] has no answer for a key.
///
/// Callers of one failed key share its error, hence the `Arc`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError<E> {
    /// The load function returned an error.
    #[error("batch loader `{loader}` could not load")]
    Load {
        /// The loader's name.
        loader: &'static str,
        /// What it returned.
        source: Arc<E>,
    },

    /// The load function panicked.
    #[error("batch loader `{loader}` panicked: {message}")]
    Panicked {
        /// The loader's name.
        loader: &'static str,
        /// The panic's message.
        message: Arc<str>,
    },

    /// The batch took too long.
    #[error("batch loader `{loader}` did not finish within {timeout:?}")]
    TimedOut {
        /// The loader's name.
        loader: &'static str,
        /// [`BatchConfig::load_timeout`].
        timeout: Duration,
    },

    /// Too many callers wait already.
    #[error(
        "batch loader `{loader}` has {limit} callers waiting: its load function is too slow for this load, \
         make it faster or raise `max_batch` or `max_queued`"
    )]
    QueueFull {
        /// The loader's name.
        loader: &'static str,
        /// [`BatchConfig::max_queued`].
        limit: usize,
    },

    /// The runtime that ran the batch shut down.
    #[error("batch loader `{loader}` was stopped before it could answer")]
    Cancelled {
        /// The loader's name.
        loader: &'static str,
    },
}

// By hand: the derived one would ask for `E: Clone`.
impl<E> Clone for BatchError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Load { loader, source } => Self::Load { loader, source: Arc::clone(source) },
            Self::Panicked { loader, message } => Self::Panicked { loader, message: Arc::clone(message) },
            Self::TimedOut { loader, timeout } => Self::TimedOut { loader, timeout: *timeout },
            Self::QueueFull { loader, limit } => Self::QueueFull { loader, limit: *limit },
            Self::Cancelled { loader } => Self::Cancelled { loader },
        }
    }
}
