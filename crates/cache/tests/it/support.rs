use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tokio::sync::Semaphore;

/// A source that counts how often it is asked.
#[derive(Clone, Default)]
pub(crate) struct Source {
    loads: Arc<AtomicUsize>,
}

impl Source {
    pub(crate) fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    pub(crate) async fn load<T>(self, value: T) -> Result<Option<T>, Failed> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        Ok(Some(value))
    }

    /// Waits at the gate, then gives `value`.
    pub(crate) async fn load_behind<T>(self, gate: Gate, value: T) -> Result<Option<T>, Failed> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        gate.pass().await;
        Ok(Some(value))
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the source failed")
    }
}

impl std::error::Error for Failed {}

/// Holds a load until the test lets it go on.
#[derive(Clone)]
pub(crate) struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate { arrived: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }

    /// Waits until one stands before the gate.
    pub(crate) async fn arrival(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }

    /// Lets one through.
    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}

/// Notes what is counted, under names like `greenwave.cache.requests{cache=user,result=hit}`.
#[derive(Clone, Default)]
pub(crate) struct Recording {
    counters: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
    gauges: Arc<Mutex<HashMap<String, Arc<Level>>>>,
    histograms: Arc<Mutex<HashMap<String, Arc<Values>>>>,
}

#[derive(Default)]
pub(crate) struct Level(Mutex<f64>);

impl GaugeFn for Level {
    fn increment(&self, value: f64) {
        *self.0.lock().unwrap() += value;
    }

    fn decrement(&self, value: f64) {
        *self.0.lock().unwrap() -= value;
    }

    fn set(&self, value: f64) {
        *self.0.lock().unwrap() = value;
    }
}

#[derive(Default)]
pub(crate) struct Values(Mutex<Vec<f64>>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

impl Recording {
    /// Makes a cache whose signals come here.
    pub(crate) fn of<T>(&self, make: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(self, make)
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counters.lock().unwrap()[name].load(Ordering::SeqCst)
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        self.histograms.lock().unwrap()[name].0.lock().unwrap().clone()
    }

    /// All counters and gauges that moved.
    pub(crate) fn moved(&self) -> String {
        let (counters, gauges) = (self.counters.lock().unwrap(), self.gauges.lock().unwrap());
        let counted = counters.iter().map(|(name, count)| (name, count.load(Ordering::SeqCst)));
        let levels = gauges.iter().map(|(name, level)| (name, *level.0.lock().unwrap() as u64));
        let mut lines: Vec<_> = counted
            .chain(levels)
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}\n"))
            .collect();
        lines.sort();
        lines.concat()
    }
}

fn full_name(key: &Key) -> String {
    let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
    format!("{}{{{}}}", key.name(), labels.join(","))
}

impl Recorder for Recording {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let counter = Arc::clone(self.counters.lock().unwrap().entry(full_name(key)).or_default());
        CounterFn::increment(&counter, 0);
        Counter::from_arc(counter)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::clone(self.gauges.lock().unwrap().entry(full_name(key)).or_default()))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(self.histograms.lock().unwrap().entry(full_name(key)).or_default()))
    }
}

/// A small generator of randomness whose seed can be told. Set `SEED` to repeat a run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn seed() -> u64 {
        let from_clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000;
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(from_clock)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A client that knows nothing of this crate.
#[cfg(feature = "redis")]
pub(crate) async fn admin(url: &str) -> redis::aio::MultiplexedConnection {
    // As patient as a busy machine needs.
    let config = redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

/// Sends a command of words without spaces.
#[cfg(feature = "redis")]
pub(crate) async fn tell<T: redis::FromRedisValue>(
    redis: &mut redis::aio::MultiplexedConnection,
    command: &str,
) -> T {
    let mut told = redis::Cmd::new();
    for word in command.split(' ') {
        told.arg(word);
    }
    told.query_async(redis).await.unwrap()
}
