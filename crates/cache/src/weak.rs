//! A cache whose entries live as long as somebody holds them.

mod seats;

use std::{
    fmt,
    future::Future,
    hash::Hash,
    ops::Deref,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use metrics::{Gauge, counter, gauge};
use serde::{Deserialize, Serialize};
use tokio::task::unconstrained;
use tracing::{Instrument, Span};

use self::seats::{Entrance, Guest, Outcome, Seat, Seats};
use crate::{
    LoadError,
    singleflight::{Failure, within},
    sync::{self, SHARDS},
    telemetry::{BYTES, ENTRIES, REQUESTS, Tally},
};

/// A cache that keeps nothing alive: an entry lives exactly as long as somebody holds it, and all who hold it hold the
/// same one.
///
/// For what is shared while it is in use and of no worth afterwards: the state of a room that people are in, a client
/// for each tenant that has requests under way, an opened file. A [`Cache`](crate::Cache) is for what is expensive to
/// read and cheap to keep: it bounds itself by size and age, and forgets what is in use as readily as what is not.
///
/// **There are never two values of a key at one time.** However many ask for a key at once, one of them makes the value.
/// When its last holder lets go, those who come wait until its destructor has returned, and only then make a new one:
/// so a value may own a port, a lock or a file. A key that nobody holds costs nothing.
///
/// A clone is another handle to the same cache. Values outlive it.
///
/// ```
/// use greenwave_cache::WeakCache;
/// use std::sync::Mutex;
///
/// #[derive(Default)]
/// struct Room { messages: Mutex<Vec<String>> }
///
/// let rooms = WeakCache::<u64, Room>::builder("room").build();
///
/// let ada = rooms.get_or_insert_with(&7, Room::default);
/// let bob = rooms.get_or_insert_with(&7, Room::default); // the same room
/// ada.messages.lock().unwrap().push("hello".into());
/// assert_eq!(bob.messages.lock().unwrap().len(), 1);
/// assert_eq!(rooms.stats().entries, 1);
///
/// drop((ada, bob)); // the last one turns off the light
/// assert!(rooms.get(&7).is_none());
/// assert_eq!(rooms.stats().entries, 0);
/// ```
pub struct WeakCache<K: Hash + Eq, V> {
    inner: Arc<Inner<K, V>>,
}

struct Inner<K: Hash + Eq, V> {
    seats: Arc<Seats<K, Counted<V>, Failure>>,
    weigher: Option<Weigher<K, V>>,
    load_timeout: Duration,
    requests: Requests,
    alive: Arc<Alive>,
}

type Weigher<K, V> = Box<dyn Fn(&K, &V) -> u64 + Send + Sync>;

/// Puts a [`WeakCache`] together.
pub struct WeakCacheBuilder<K, V> {
    name: &'static str,
    weigher: Option<Weigher<K, V>>,
    load_timeout: Duration,
}

impl<K: Hash + Eq, V> WeakCacheBuilder<K, V> {
    /// How many bytes an entry counts for, asked once when it is made; by default none. It bounds nothing, and tells
    /// in [`WeakStats::bytes`] and the metrics what is held.
    pub fn weigher(
        mut self,
        weigher: impl Fn(&K, &V) -> u64 + Send + Sync + 'static,
    ) -> WeakCacheBuilder<K, V> {
        self.weigher = Some(Box::new(weigher));
        self
    }

    /// How long the future of [`WeakCache::get_or_load`] may take before its callers get [`LoadError::TimedOut`] and
    /// it is dropped; default 30s.
    pub fn load_timeout(mut self, load_timeout: Duration) -> WeakCacheBuilder<K, V> {
        self.load_timeout = load_timeout;
        self
    }

    /// Makes the cache.
    ///
    /// Its metrics go to the `metrics` recorder that is installed now: install yours before.
    pub fn build(self) -> WeakCache<K, V> {
        let inner = Inner {
            seats: Seats::new(SHARDS),
            weigher: self.weigher,
            load_timeout: self.load_timeout,
            requests: Requests::new(self.name),
            alive: Arc::new(Alive::new(self.name)),
        };
        WeakCache { inner: Arc::new(inner) }
    }
}

impl<K, V> fmt::Debug for WeakCacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakCacheBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<K: Hash + Eq, V> WeakCache<K, V> {
    /// Begins a cache. `name` labels its metrics.
    pub fn builder(name: &'static str) -> WeakCacheBuilder<K, V> {
        WeakCacheBuilder { name, weigher: None, load_timeout: Duration::from_secs(30) }
    }

    /// The value of `key`, if somebody holds it.
    pub fn get(&self, key: &K) -> Option<Held<K, V>> {
        let found = self.inner.seats.find(key);
        match &found {
            Some(_) => self.inner.requests.hits.increment(1),
            None => self.inner.requests.misses.increment(1),
        }
        found.map(Held)
    }

    /// The value of `key`: the one that somebody holds, or else what `make` makes.
    ///
    /// When others ask for the key meanwhile, they wait for it. While another makes the value, or the last one's
    /// destructor runs, this blocks the thread: in async code let `make` be quick, and make what takes time by
    /// [`get_or_load`](WeakCache::get_or_load). Don't mix the two over one cache in a runtime with few threads, where
    /// the thread that is blocked here may be the one that the load needs.
    ///
    /// If `make` panics, the panic is the caller's, and the next one who waits makes the value.
    ///
    /// Neither `make` nor the destructor of `V` may ask for its own key: it would wait for itself.
    pub fn get_or_insert_with(&self, key: &K, make: impl FnOnce() -> V) -> Held<K, V>
    where
        K: Clone,
    {
        let Inner { seats, requests, .. } = &*self.inner;
        loop {
            match seats.enter(key) {
                Entrance::Found(guest) => {
                    requests.hits.increment(1);
                    return Held(guest);
                }
                Entrance::Wait(turn) => {
                    if let Outcome::Made(guest) = block_on(unconstrained(turn.wait())) {
                        requests.coalesced.increment(1);
                        return Held(Arc::clone(guest));
                    }
                }
                Entrance::Make(seat) => {
                    requests.misses.increment(1);
                    return Held(self.inner.fill(seat, make()));
                }
            }
        }
    }

    /// What is alive now, and what was asked for.
    pub fn stats(&self) -> WeakStats {
        let Inner { alive, requests, .. } = &*self.inner;
        WeakStats {
            entries: alive.entries.load(Ordering::Relaxed),
            bytes: alive.bytes.load(Ordering::Relaxed),
            hits: requests.hits.get(),
            misses: requests.misses.get(),
            coalesced: requests.coalesced.get(),
            errors: requests.errors.get(),
        }
    }
}

impl<K, V> WeakCache<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// The value of `key`: the one that somebody holds, or else what the future of `load` brings.
    ///
    /// One load runs, however many ask; the others wait, and share its value, its error or its panic. Nothing is kept
    /// of a failure: who comes later loads again. Callers whose loads have different error types share values but no
    /// errors.
    ///
    /// ```
    /// use greenwave_cache::WeakCache;
    /// # struct Client;
    /// # impl Client { async fn connect(tenant: String) -> std::io::Result<Client> { Ok(Client) } }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let clients = WeakCache::<String, Client>::builder("tenant").build();
    /// let tenant = "acme".to_owned();
    /// let client = clients.get_or_load(&tenant, || Client::connect(tenant.clone())).await.unwrap();
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// The load runs in a task of its own, within the caller's span, for at most
    /// [`load_timeout`](WeakCacheBuilder::load_timeout). Dropping this future neither stops nor repeats it. A value
    /// that nobody waits for any more is dropped as soon as it is there.
    pub async fn get_or_load<E, L, Fut>(&self, key: &K, load: L) -> Result<Held<K, V>, LoadError<E>>
    where
        E: Send + Sync + 'static,
        L: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        let Inner { seats, requests, .. } = &*self.inner;
        let seat = loop {
            match seats.enter(key) {
                Entrance::Found(guest) => {
                    requests.hits.increment(1);
                    return Ok(Held(guest));
                }
                Entrance::Wait(turn) => match turn.wait().await {
                    Outcome::Made(guest) => {
                        requests.coalesced.increment(1);
                        return Ok(Held(Arc::clone(guest)));
                    }
                    Outcome::Failed(failure) => {
                        if let Some(error) = failure.to_error() {
                            requests.errors.increment(1);
                            return Err(error);
                        }
                    }
                    Outcome::Free => {}
                },
                Entrance::Make(seat) => break seat,
            }
        };
        let (turn, load) = (seat.turn(), load());
        tokio::spawn(Arc::clone(&self.inner).load(seat, load).instrument(Span::current()));
        match turn.wait().await {
            Outcome::Made(guest) => Ok(Held(Arc::clone(guest))),
            // Our own load fails with an E, so there is always an error.
            Outcome::Failed(failure) => Err(failure.to_error().unwrap_or(LoadError::Aborted)),
            Outcome::Free => Err(LoadError::Aborted),
        }
    }
}

impl<K: Hash + Eq, V> Inner<K, V> {
    async fn load<E: Send + Sync + 'static>(
        self: Arc<Self>,
        seat: Seat<K, Counted<V>, Failure>,
        load: impl Future<Output = Result<V, E>> + Send + 'static,
    ) {
        let load = Box::pin(async move { load.await.map_err(|error| Failure::Source(Arc::new(error))) });
        // When it returns, the future is gone: only then may the seat be free.
        match within(self.load_timeout, load).await {
            Ok(value) => {
                self.requests.misses.increment(1);
                self.fill(seat, value);
            }
            Err(failure) => {
                self.requests.errors.increment(1);
                seat.fail(failure);
            }
        }
    }

    fn fill(&self, seat: Seat<K, Counted<V>, Failure>, value: V) -> Arc<Guest<K, Counted<V>, Failure>> {
        let bytes = self.weigher.as_ref().map_or(0, |weigh| weigh(seat.key(), &value));
        seat.fill(Counted { value, _count: self.alive.count(bytes) })
    }
}

impl<K: Hash + Eq, V> Clone for WeakCache<K, V> {
    fn clone(&self) -> WeakCache<K, V> {
        WeakCache { inner: Arc::clone(&self.inner) }
    }
}

impl<K: Hash + Eq, V> fmt::Debug for WeakCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakCache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// A value of a [`WeakCache`], and the reason why it lives.
///
/// It dereferences to the value; a clone holds the same one.
pub struct Held<K: Hash + Eq, V>(Arc<Guest<K, Counted<V>, Failure>>);

impl<K: Hash + Eq, V> Held<K, V> {
    /// The key under which it is held.
    pub fn key(held: &Held<K, V>) -> &K {
        held.0.key()
    }
}

impl<K: Hash + Eq, V> Deref for Held<K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0.value.value
    }
}

impl<K: Hash + Eq, V> Clone for Held<K, V> {
    fn clone(&self) -> Held<K, V> {
        Held(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq, V: fmt::Debug> fmt::Debug for Held<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        V::fmt(self, f)
    }
}

/// What of a [`WeakCache`] is alive, and what it has done since it was made. An entry counts once, however many hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WeakStats {
    /// How many entries somebody holds.
    pub entries: u64,
    /// Their bytes, as the [`weigher`](WeakCacheBuilder::weigher) counted them.
    pub bytes: u64,
    /// Calls that found a value.
    pub hits: u64,
    /// Calls that made one, or a `get` that found none.
    pub misses: u64,
    /// Calls that waited for a value that another made.
    pub coalesced: u64,
    /// Calls that ended in an error.
    pub errors: u64,
}

/// A value, and its part in the count. The order of the fields is the order in which they are dropped.
struct Counted<V> {
    value: V,
    _count: Count,
}

struct Count {
    alive: Arc<Alive>,
    bytes: u64,
}

impl Drop for Count {
    fn drop(&mut self) {
        self.alive.entries.fetch_sub(1, Ordering::Relaxed);
        self.alive.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.alive.entries_gauge.decrement(1.0);
        self.alive.bytes_gauge.decrement(self.bytes as f64);
    }
}

/// What is alive, for [`WeakCache::stats`] and for the metrics.
struct Alive {
    entries: AtomicU64,
    bytes: AtomicU64,
    entries_gauge: Gauge,
    bytes_gauge: Gauge,
}

impl Alive {
    fn new(cache: &'static str) -> Alive {
        Alive {
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries_gauge: gauge!(ENTRIES, "cache" => cache),
            bytes_gauge: gauge!(BYTES, "cache" => cache),
        }
    }

    fn count(self: &Arc<Self>, bytes: u64) -> Count {
        self.entries.fetch_add(1, Ordering::Relaxed);
        // A sum past the end wraps, and comes back when it is subtracted.
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.entries_gauge.increment(1.0);
        self.bytes_gauge.increment(bytes as f64);
        Count { alive: Arc::clone(self), bytes }
    }
}

struct Requests {
    hits: Tally,
    misses: Tally,
    coalesced: Tally,
    errors: Tally,
}

impl Requests {
    fn new(cache: &'static str) -> Requests {
        let requests =
            |result: &'static str| Tally::new(counter!(REQUESTS, "cache" => cache, "result" => result));
        Requests {
            hits: requests("hit"),
            misses: requests("miss"),
            coalesced: requests("coalesced"),
            errors: requests("error"),
        }
    }
}

/// Blocks the thread until the future is ready.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
