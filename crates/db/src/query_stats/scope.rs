//! What a statement belongs to: a request, a job, or a batch.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{n_plus_one::Found, watch::Watcher};

/// The most statements that a scope tells apart.
const MAX_COUNTED: usize = 256;

/// Most scopes have no more, and allocate nothing for them.
const FEW: usize = 6;

tokio::task_local! {
    static CURRENT: Scope;
    /// Around scopes, for they may have been made outside of it.
    static WATCHER: Arc<Watcher>;
}

static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// One request, or one job: its statements are counted under its route, and those that repeat in it are found.
///
/// A statement belongs to the scope in which it is awaited. A task that is spawned has none until it is given one. What
/// a [`BatchLoader`](crate::BatchLoader) loads belongs to the loader, not to who asked.
///
/// Clones are the same scope. It ends when the last of them is dropped; a repeated statement is warned of then, with
/// how often it ran in the end.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use greenwave_db::query_stats::Scope;
///
/// Scope::new("/orders/{id}")
///     .run(async {
///         let scope = Scope::current().expect("inside of it");
///         tokio::spawn(scope.run(async { /* counts for /orders/{id} as well */ })).await.unwrap();
///     })
///     .await;
/// # }
/// ```
///
/// For axum, where the route is known once a router has matched it:
///
/// ```ignore
/// async fn in_scope(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
///     let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
///     Scope::new(route).run(next.run(request)).await
/// }
///
/// router.route_layer(axum::middleware::from_fn(in_scope))
/// ```
#[derive(Clone)]
pub struct Scope {
    inner: Arc<Inner>,
    watcher: Option<Arc<Watcher>>,
}

struct Inner {
    /// 0 until it is asked for.
    id: AtomicU64,
    route: Option<Arc<str>>,
    /// Stands for the route where statements are looked up.
    route_key: u64,
    loader: Option<&'static str>,
    /// Whether it lives in a span.
    of_span: bool,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    statements: Statements,
    found: Vec<Found>,
}

/// By the key of its series, how often a statement ran.
#[derive(Default)]
struct Statements {
    few: [(u64, u32); FEW],
    /// How many of the few are used.
    used: usize,
    more: Vec<(u64, u32)>,
}

impl Statements {
    fn get_mut(&mut self, series: u64) -> Option<&mut u32> {
        let mut all = self.few[..self.used].iter_mut().chain(&mut self.more);
        all.find(|(key, _)| *key == series).map(|(_, count)| count)
    }

    fn count(&mut self, series: u64) -> u32 {
        if let Some(count) = self.get_mut(series) {
            *count = count.saturating_add(1);
            return *count;
        }
        if self.used < FEW {
            self.few[self.used] = (series, 1);
            self.used += 1;
        } else if FEW + self.more.len() < MAX_COUNTED {
            self.more.push((series, 1));
        } else {
            return 0;
        }
        1
    }
}

impl Scope {
    /// A scope whose statements are counted under `route`: a pattern such as `/users/{id}`, for each route counts for
    /// itself.
    pub fn new(route: impl Into<Arc<str>>) -> Self {
        Self { inner: Arc::new(Inner::new(Some(route.into()), None)), watcher: None }
    }

    /// That of a span, which keeps it.
    #[cfg(feature = "tracing-layer")]
    pub(super) fn of_span(route: String) -> Self {
        let mut inner = Inner::new(Some(route.into()), None);
        inner.of_span = true;
        Self { inner: Arc::new(inner), watcher: None }
    }

    /// That of a loader's batch, whose statements nobody repeats.
    pub(crate) fn loader(name: &'static str, watcher: Option<Arc<Watcher>>) -> Self {
        Self { inner: Arc::new(Inner::new(None, Some(name))), watcher }
    }

    /// Runs `future` watched: in the same scope as now, or in one without a route.
    pub(super) async fn watched<F: Future>(watcher: Arc<Watcher>, future: F) -> F::Output {
        let inner = Self::current().map_or_else(|| Arc::new(Inner::new(None, None)), |scope| scope.inner);
        let scope = Self { inner, watcher: Some(Arc::clone(&watcher)) };
        WATCHER.scope(watcher, scope.run(future)).await
    }

    /// The scope in which this is called, to carry it into a task.
    pub fn current() -> Option<Self> {
        let mut scope = CURRENT.try_with(Clone::clone).ok()?;
        if scope.watcher.is_none() {
            scope.watcher = WATCHER.try_with(Arc::clone).ok();
        }
        Some(scope)
    }

    /// Runs `future` in this scope.
    ///
    /// # Cancel safety
    /// That of `future`.
    pub fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        // No `async fn`, which would move the future once more: it may be large.
        CURRENT.scope(self, future)
    }

    /// Its route.
    pub fn route(&self) -> Option<&str> {
        self.inner.route.as_deref()
    }

    pub(super) fn shared_route(&self) -> Option<Arc<str>> {
        self.inner.route.clone()
    }

    pub(super) fn route_key(&self) -> u64 {
        self.inner.route_key
    }

    /// Tells scopes apart.
    pub(super) fn id(&self) -> u64 {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let new = IDS.fetch_add(1, Relaxed);
        self.inner.id.compare_exchange(0, new, Relaxed, Relaxed).map_or_else(|known| known, |_| new)
    }

    pub(super) fn loader_name(&self) -> Option<&'static str> {
        self.inner.loader
    }

    pub(super) fn is_of_span(&self) -> bool {
        self.inner.of_span
    }

    pub(crate) fn watcher(&self) -> Option<&Arc<Watcher>> {
        self.watcher.as_ref()
    }

    /// Counts a statement; returns how often it ran, or 0 if that is not counted.
    pub(super) fn count(&self, series: u64) -> u32 {
        if self.inner.loader.is_some() {
            return 0;
        }
        self.inner.counts().statements.count(series)
    }

    /// Keeps what was found, to be told at the scope's end.
    pub(super) fn keep(&self, found: Found) {
        self.inner.counts().found.push(found);
    }
}

impl Inner {
    fn new(route: Option<Arc<str>>, loader: Option<&'static str>) -> Self {
        let route_key = route.as_ref().map_or(0, |route| KEYS.hash_one(route));
        Self { id: AtomicU64::new(0), route, route_key, loader, of_span: false, counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Counts { statements, found } = self.counts.get_mut().unwrap_or_else(PoisonError::into_inner);
        for found in std::mem::take(found) {
            let count = statements.get_mut(found.key()).map_or(0, |count| *count);
            found.tell(count);
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("route", &self.route()).finish_non_exhaustive()
    }
}
