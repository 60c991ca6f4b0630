//! A load that is under way: what those share who wait for it.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::SetOnce,
    time::{Instant, sleep_until, timeout},
};
use tracing::{Span, span::Id};

use crate::{
    LoadError, Loaded,
    memory::{Age, Old},
    remote::Seal,
    tags::TagSet,
};

/// One load, of one key.
pub(crate) struct Flight<V> {
    outcome: SetOnce<Result<Landed<V>, Failed>>,
    /// What the remote had that is stale, while the load goes on.
    offer: SetOnce<(Old<V>, Seal)>,
    waiters: AtomicU64,
    span: OnceLock<Id>,
    /// The count of invalidated tags from before.
    pub(crate) tags_seen: u64,
    /// From before the source is asked, where the cache has a remote. Not from before the remote is: while another
    /// process has the key's lease, that one's steps are changes of the key.
    pub(crate) seal: OnceLock<Seal>,
}

/// What a load brought.
pub(crate) struct Landed<V> {
    pub(crate) value: Option<Arc<V>>,
    pub(crate) tags: Option<Arc<TagSet>>,
    /// Where the remote had it, and the source was not asked: from before the remote was.
    pub(crate) seal: Option<Seal>,
}

/// Why a load brought nothing.
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// How long it answers those who have nothing else.
    pub(crate) until: Instant,
}

impl Failed {
    pub(crate) fn still_answers(&self) -> bool {
        Instant::now() < self.until
    }
}

/// What one hears who waits for a load.
pub(crate) enum Heard<'f, V> {
    Landed(&'f Landed<V>),
    Failed(&'f Failure),
    /// It is slow or has failed, and there was this: with a seal, in the remote.
    Stale(Old<V>, Option<Seal>),
}

/// A [`LoadError`] whose source's type is forgotten: a table of flights has one type, its callers have many.
#[derive(Clone)]
pub(crate) enum Failure {
    Source(Arc<dyn Any + Send + Sync>),
    Panicked(Arc<str>),
    TimedOut(Duration),
    Aborted,
}

type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;

/// A caller's load, boxed: so the machinery is built once a cache, and not once a call.
pub(crate) enum Load<V> {
    Begun(Boxed<Loaded<V>>),
    /// It wants to know what there was before.
    Revalidation(Revalidation<V>),
}

type Revalidation<V> = Box<dyn FnOnce(Option<Arc<V>>) -> Boxed<Loaded<V>> + Send>;

/// A caller's load of many keys, boxed.
pub(crate) type LoadMany<K, V> = Box<dyn FnOnce(Vec<K>) -> Boxed<Vec<(K, Loaded<V>)>> + Send>;

impl<V> Flight<V> {
    pub(crate) fn new(tags_seen: u64) -> Flight<V> {
        Flight {
            outcome: SetOnce::new(),
            offer: SetOnce::new(),
            waiters: AtomicU64::new(0),
            span: OnceLock::new(),
            tags_seen,
            seal: OnceLock::new(),
        }
    }

    pub(crate) fn set_span(&self, span: &Span) {
        if let Some(id) = span.id() {
            // There is one launch.
            let _ = self.span.set(id);
        }
    }

    /// Counts one more who waits.
    pub(crate) fn join(&self) {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        if let Some(load) = self.span.get() {
            Span::current().follows_from(load.clone());
        }
    }

    pub(crate) fn waiters(&self) -> u64 {
        self.waiters.load(Ordering::Relaxed)
    }

    pub(crate) fn land(&self, outcome: Result<Landed<V>, Failed>) {
        // Fails only for a flight that has landed.
        let _ = self.outcome.set(outcome);
    }

    pub(crate) fn offer(&self, old: Old<V>, seal: Seal) {
        // There is one: the load finds something stale in the remote once.
        let _ = self.offer.set((old, seal));
    }

    pub(crate) fn outcome(&self) -> Option<&Result<Landed<V>, Failed>> {
        self.outcome.get()
    }

    /// Waits for the outcome. One who has something `old` to fall back on waits until they are out of `patience`.
    pub(crate) async fn heard(&self, old: Option<&Old<V>>, patience: Option<Instant>) -> Heard<'_, V> {
        fn offered<V>((old, seal): &(Old<V>, Seal)) -> (&Old<V>, Option<Seal>) {
            (old, Some(*seal))
        }
        let fallback = |old: &&Old<V>| old.age != Age::Over;
        let mut old = old.filter(fallback).map(|old| (old, None));
        let out_of_patience = sleep_until(patience.unwrap_or_else(Instant::now));
        tokio::pin!(out_of_patience);
        loop {
            tokio::select! {
                biased;
                outcome = self.outcome.wait() => return match (outcome, old.or(self.offer.get().map(offered))) {
                    (Ok(landed), _) => Heard::Landed(landed),
                    (Err(_), Some((old, seal))) => Heard::Stale(old.clone(), seal),
                    (Err(failed), None) => Heard::Failed(&failed.failure),
                },
                offer = self.offer.wait(), if old.is_none() => match offered(offer) {
                    (offer, seal) if offer.is_served() => return Heard::Stale(offer.clone(), seal),
                    offer => old = Some(offer),
                },
                () = &mut out_of_patience, if patience.is_some() && old.is_some() => {
                    if let Some((old, seal)) = old {
                        return Heard::Stale(old.clone(), seal);
                    }
                }
            }
        }
    }
}

impl Failure {
    /// `None` when the source's error is not an `E`: it came from a load with another type of errors.
    pub(crate) fn to_error<E: Send + Sync + 'static>(&self) -> Option<LoadError<E>> {
        Some(match self {
            Failure::Source(error) => LoadError::Source(Arc::clone(error).downcast().ok()?),
            Failure::Panicked(message) => LoadError::Panicked(Arc::clone(message)),
            Failure::TimedOut(after) => LoadError::TimedOut(*after),
            Failure::Aborted => LoadError::Aborted,
        })
    }

    pub(crate) fn panicked(payload: Box<dyn Any + Send>) -> Failure {
        let message = match payload.downcast::<String>() {
            Ok(message) => Arc::from(*message),
            Err(payload) => Arc::from(payload.downcast_ref::<&str>().copied().unwrap_or("no message")),
        };
        Failure::Panicked(message)
    }
}

/// The source's own error may be of a type that cannot be shown.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Source(_) => f.write_str("the source returned an error"),
            Failure::Panicked(message) => write!(f, "panicked: {message}"),
            Failure::TimedOut(after) => write!(f, "no end within {after:?}"),
            Failure::Aborted => f.write_str("cut off"),
        }
    }
}

impl<V: Send + Sync + 'static> Load<V> {
    /// `load` itself runs here, on the leader, so that it may borrow what is the caller's.
    pub(crate) fn begin<R, E, F, Fut>(load: F) -> Load<V>
    where
        R: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        Load::Begun(match catch_unwind(AssertUnwindSafe(load)) {
            Ok(load) => Box::pin(async move { answer(load.await) }),
            Err(payload) => {
                let failure = Failure::panicked(payload);
                Box::pin(async move { Err(failure) })
            }
        })
    }

    pub(crate) fn revalidation<R, E, F, Fut>(load: F) -> Load<V>
    where
        R: Into<Loaded<V>>,
        E: Send + Sync + 'static,
        F: FnOnce(Option<Arc<V>>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
    {
        Load::Revalidation(Box::new(move |prior| Box::pin(async move { answer(load(prior).await) })))
    }

    pub(crate) fn with(self, prior: Option<Arc<V>>) -> Boxed<Loaded<V>> {
        match self {
            Load::Begun(load) => load,
            Load::Revalidation(load) => load(prior),
        }
    }
}

fn answer<V, R: Into<Loaded<V>>, E: Send + Sync + 'static>(
    answer: Result<R, E>,
) -> Result<Loaded<V>, Failure> {
    answer.map(R::into).map_err(|error| Failure::Source(Arc::new(error)))
}

/// Boxes the load of many keys for [`Cache::get_many`](crate::Cache::get_many).
pub(crate) fn load_many<K, V, R, I, E, F, Fut>(load: Arc<F>) -> LoadMany<K, V>
where
    K: Send + 'static,
    V: Send + Sync + 'static,
    R: Into<Loaded<V>>,
    I: IntoIterator<Item = (K, R)>,
    E: Send + Sync + 'static,
    F: Fn(Vec<K>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<I, E>> + Send + 'static,
{
    Box::new(move |keys| {
        Box::pin(async move {
            let answers = load(keys).await.map_err(|error| Failure::Source(Arc::new(error)))?;
            Ok(answers.into_iter().map(|(key, answer)| (key, answer.into())).collect())
        })
    })
}

/// Runs a load to its end, to its panic or to its deadline.
pub(crate) async fn within<T>(limit: Duration, mut load: Boxed<T>) -> Result<T, Failure> {
    let caught = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| load.as_mut().poll(context))) {
        Ok(poll) => poll,
        Err(payload) => Err(Failure::panicked(payload)).into(),
    });
    timeout(limit, caught).await.unwrap_or(Err(Failure::TimedOut(limit)))
}
