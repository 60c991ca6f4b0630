//! Loads by key, many callers' in one call: the cure for N+1.

mod lists;
mod queue;
mod run;

use std::{collections::HashMap, fmt, future::Future, hash::Hash, iter, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{runtime::Handle, sync::oneshot};

use crate::BatchConfig;
pub use lists::ListLoader;
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
/// For many rows a key, as a customer's newest orders, there is [`ListLoader`].
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
///
/// # Keys of several columns
///
/// A key may be any tuple or struct that is `Hash + Eq + Clone`. On PostgreSQL each column is an array of its own,
/// and `unnest` makes rows of them again, each of which the primary key's index answers:
///
#[cfg_attr(feature = "postgres", doc = "```no_run")]
#[cfg_attr(not(feature = "postgres"), doc = "```ignore")]
/// # async fn example(pool: greenwave_db::postgres::Pool) -> Result<(), Box<dyn std::error::Error>> {
/// use greenwave_db::{BatchConfig, BatchLoader};
///
/// let prices = BatchLoader::new("prices", BatchConfig::default(), move |keys: Vec<(i64, String)>| {
///     let pool = pool.clone();
///     async move {
///         let (products, currencies): (Vec<i64>, Vec<String>) = keys.into_iter().unzip();
///         let statement = "SELECT product_id, currency, cents FROM prices
///                          JOIN unnest($1::bigint[], $2::text[]) AS asked (product_id, currency)
///                          USING (product_id, currency)";
///         let rows: Vec<(i64, String, i64)> =
///             sqlx::query_as(statement).bind(products).bind(currencies).fetch_all(&pool).await?;
///         let prices = rows.into_iter().map(|(product, currency, cents)| ((product, currency), cents));
///         Ok::<_, sqlx::Error>(prices.collect())
///     }
/// });
/// let cents: Option<i64> = prices.load((7, "EUR".into())).await?;
/// # Ok(()) }
/// ```
///
/// # Other sources
///
/// The loader knows nothing of databases. Whatever answers for many keys in one call will do, as a service over HTTP
/// whose `GET /customers?ids=1,2,3` does.
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
        let (sender, answer) = oneshot::channel();
        self.ask(iter::once((key, sender)))?;
        self.answer(answer).await
    }

    /// Loads the values of all these keys, in their order; on an idle loader, in one call.
    ///
    /// [`load`](Self::load) is for code that knows one key, however many run beside it. Where one caller has the keys
    /// at hand, this saves the calls that its first keys would make alone. A key may stand there twice, and each counts
    /// as a caller.
    ///
    /// # Errors
    /// That of the first key that has one: see [`BatchError`].
    ///
    /// # Cancel safety
    /// Safe, as [`load`](Self::load) is.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn load_many(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<V>>, BatchError<E>> {
        let callers = keys.into_iter().map(|key| {
            let (sender, answer) = oneshot::channel();
            ((key, sender), answer)
        });
        let (callers, answers): (Vec<_>, Vec<_>) = callers.unzip();
        self.ask(callers.into_iter())?;
        let mut values = Vec::with_capacity(answers.len());
        for answer in answers {
            values.push(self.answer(answer).await?);
        }
        Ok(values)
    }

    fn ask(
        &self,
        callers: impl ExactSizeIterator<Item = (K, oneshot::Sender<Answer<V, E>>)>,
    ) -> Result<(), BatchError<E>> {
        let shared = &self.shared;
        // Outside a runtime this panics: before slots are taken, for nobody would give them back.
        let runtime = Handle::current();
        let full =
            |queue::Full| BatchError::QueueFull { loader: shared.name, limit: shared.config.max_queued };
        for batch in shared.queue.push(callers).map_err(full)? {
            runtime.spawn(Slot::new(Arc::clone(shared)).run(batch));
        }
        Ok(())
    }

    async fn answer(&self, answer: oneshot::Receiver<Answer<V, E>>) -> Answer<V, E> {
        answer.await.unwrap_or(Err(BatchError::Cancelled { loader: self.shared.name }))
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
        "batch loader `{loader}` lets {limit} callers wait and has no room for more: its load function is too slow for \
         this load, make it faster or raise `max_batch` or `max_queued`"
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
