//! Stores what the `metrics` macros say, within bounds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Gauge, Key, KeyName, Metadata, SharedString, Unit};
use metrics_util::registry::{Registry, Storage};

use super::histogram::{Recording, Scratch};
use super::{Description, Metrics, Process, Series, Snapshot};
use crate::MonitorConfig;
use crate::telemetry;

type Number = Arc<metrics::atomics::AtomicU64>;

struct Storages;

impl Storage<Key> for Storages {
    type Counter = Number;
    type Gauge = Number;
    type Histogram = Arc<Recording>;

    fn counter(&self, _: &Key) -> Number {
        Number::default()
    }

    fn gauge(&self, _: &Key) -> Number {
        Number::default() // the bits of 0.0 are 0
    }

    fn histogram(&self, _: &Key) -> Arc<Recording> {
        Arc::new(Recording::new())
    }
}

/// The series of one process.
#[derive(Clone)]
pub(crate) struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    config: MonitorConfig,
    id: String,
    started_ms: u64,
    registry: Registry<Key, Storages>,
    descriptions: Mutex<BTreeMap<String, Description>>,
    // Held while a series is made, so that two threads cannot pass the bound together.
    making: Mutex<()>,
    series: AtomicUsize,
    histograms: AtomicUsize,
    dropped: AtomicU64,
}

impl Recorder {
    pub(crate) fn new(config: MonitorConfig) -> Recorder {
        let started_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let recorder = Recorder {
            inner: Arc::new(Inner {
                config,
                id: format!("{}-{:016x}", std::process::id(), rand::random::<u64>()),
                started_ms,
                registry: Registry::new(Storages),
                descriptions: Mutex::default(),
                making: Mutex::default(),
                series: AtomicUsize::new(0),
                histograms: AtomicUsize::new(0),
                dropped: AtomicU64::new(0),
            }),
        };
        recorder.describe(
            telemetry::DROPPED_SERIES,
            None,
            "Registrations refused because the process has too many series.",
        );
        recorder
    }

    pub(crate) fn describe(&self, name: &str, unit: Option<Unit>, help: &str) {
        let mut descriptions = self.inner.descriptions.lock().unwrap_or_else(PoisonError::into_inner);
        if descriptions.len() < self.inner.config.max_series || descriptions.contains_key(name) {
            let unit = unit.map(|unit| unit.as_str().to_owned());
            descriptions.insert(name.to_owned(), Description { unit, help: help.to_owned() });
        }
    }

    /// The counter of `key`, or none if it would be one series too many.
    pub(crate) fn counter(&self, key: &Key) -> Option<Number> {
        let registry = &self.inner.registry;
        let known = || registry.get_counter(key);
        known().or_else(|| self.make(known, || registry.get_or_create_counter(key, Number::clone)))
    }

    /// The gauge of `key`, or none if it would be one series too many.
    pub(crate) fn gauge(&self, key: &Key) -> Option<Number> {
        let registry = &self.inner.registry;
        let known = || registry.get_gauge(key);
        known().or_else(|| self.make(known, || registry.get_or_create_gauge(key, Number::clone)))
    }

    /// The histogram of `key`, or none if it would be one series too many.
    pub(crate) fn histogram(&self, key: &Key) -> Option<Arc<Recording>> {
        let registry = &self.inner.registry;
        let known = || registry.get_histogram(key);
        known().or_else(|| {
            if self.inner.histograms.load(Ordering::Relaxed) >= self.inner.config.max_histograms {
                self.inner.dropped.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            self.make(known, || {
                self.inner.histograms.fetch_add(1, Ordering::Relaxed);
                registry.get_or_create_histogram(key, Arc::clone)
            })
        })
    }

    fn make<T>(&self, known: impl Fn() -> Option<T>, make: impl FnOnce() -> T) -> Option<T> {
        let inner = &self.inner;
        let _making = inner.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made_meanwhile) = known() {
            return Some(made_meanwhile);
        }
        if inner.series.load(Ordering::Relaxed) >= inner.config.max_series {
            inner.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        inner.series.fetch_add(1, Ordering::Relaxed);
        Some(make())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let inner = &self.inner;
        let mut metrics = Metrics::default();
        // Keys that differ in the order of their labels only are one series, so numbers are added.
        inner.registry.visit_counters(|key, counter| {
            *metrics.counters.entry(series(key)).or_default() += counter.load(Ordering::Relaxed);
        });
        inner.registry.visit_gauges(|key, gauge| {
            let value = f64::from_bits(gauge.load(Ordering::Relaxed));
            if value.is_finite() {
                *metrics.gauges.entry(series(key)).or_default() += value;
            }
        });
        let mut scratch = Scratch::new();
        inner.registry.visit_histograms(|key, recording| {
            metrics.histograms.entry(series(key)).or_default().add(&recording.read(&mut scratch));
        });
        let dropped = Series { name: telemetry::DROPPED_SERIES.to_owned(), labels: BTreeMap::new() };
        metrics.counters.insert(dropped, inner.dropped.load(Ordering::Relaxed));
        let process = Process { started_ms: inner.started_ms, metrics };
        let descriptions = inner.descriptions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Snapshot { processes: BTreeMap::from([(inner.id.clone(), process)]), descriptions }
    }
}

fn series(key: &Key) -> Series {
    let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned()));
    Series { name: key.name().to_owned(), labels: labels.collect() }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), unit, &description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), unit, &description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.describe(key.as_str(), unit, &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.counter(key).map_or_else(Counter::noop, Counter::from_arc)
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.gauge(key).map_or_else(Gauge::noop, Gauge::from_arc)
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        self.histogram(key).map_or_else(metrics::Histogram::noop, metrics::Histogram::from_arc)
    }
}
