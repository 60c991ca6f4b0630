//! Captures events and metric names of the whole test process; tests find theirs by the text of their statement.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use greenwave_db::telemetry::QUERY_EVENT;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry::LookupSpan,
};

#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) target: String,
    pub(crate) fields: BTreeMap<String, String>,
    /// The innermost first.
    pub(crate) spans: Vec<String>,
}

impl Captured {
    pub(crate) fn text(&self) -> &str {
        self.fields.get("db.query.text").map_or("", String::as_str)
    }

    pub(crate) fn number(&self, field: &str) -> u64 {
        self.fields
            .get(field)
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("{field} in {self:?}"))
    }
}

#[derive(Default)]
pub(crate) struct Signals {
    events: Mutex<Vec<Captured>>,
    metrics: Mutex<BTreeSet<String>>,
}

/// Starts capturing, at the first call.
pub(crate) fn signals() -> Arc<Signals> {
    static SIGNALS: OnceLock<Arc<Signals>> = OnceLock::new();
    let start = || {
        let signals = Arc::new(Signals::default());
        let subscriber = tracing_subscriber::registry().with(Capture(Arc::clone(&signals)));
        tracing::subscriber::set_global_default(subscriber).unwrap();
        metrics::set_global_recorder(Names(Arc::clone(&signals))).unwrap();
        signals
    };
    Arc::clone(SIGNALS.get_or_init(start))
}

impl Signals {
    /// Events of `target` whose statement contains `marker`.
    pub(crate) fn of(&self, target: &str, marker: &str) -> Vec<Captured> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter(|event| event.target == target && event.text().contains(marker))
            .cloned()
            .collect()
    }

    /// Events of `target` that are wanted, once there is one: some are emitted aside.
    pub(crate) async fn eventually(&self, target: &str, wanted: impl Fn(&Captured) -> bool) -> Vec<Captured> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found: Vec<_> = {
                let events = self.events.lock().unwrap();
                events.iter().filter(|event| event.target == target && wanted(event)).cloned().collect()
            };
            if !found.is_empty() {
                return found;
            }
            assert!(Instant::now() < deadline, "no such event of {target}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The query events of a span.
    #[cfg_attr(not(feature = "sqlite"), expect(dead_code))]
    pub(crate) fn in_span(&self, name: &str) -> Vec<Captured> {
        let events = self.events.lock().unwrap();
        let within = |event: &&Captured| event.spans.iter().any(|span| span == name);
        events.iter().filter(within).filter(|event| event.target == QUERY_EVENT).cloned().collect()
    }

    /// All events in which any field contains `needle`.
    pub(crate) fn mentioning(&self, needle: &str) -> Vec<Captured> {
        let events = self.events.lock().unwrap();
        let mentions = |event: &&Captured| event.fields.values().any(|value| value.contains(needle));
        events.iter().filter(mentions).cloned().collect()
    }

    #[cfg_attr(not(feature = "postgres"), expect(dead_code))]
    pub(crate) fn metric_names(&self) -> BTreeSet<String> {
        self.metrics.lock().unwrap().clone()
    }
}

struct Capture(Arc<Signals>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let spans =
            context.event_scope(event).into_iter().flatten().map(|span| span.name().to_owned()).collect();
        let target = event.metadata().target().to_owned();
        self.0.events.lock().unwrap().push(Captured { target, fields: fields.0, spans });
    }
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

/// Notes the names of metrics; as a thread's own recorder, only those of one test.
#[derive(Default)]
pub(crate) struct Names(Arc<Signals>);

impl Names {
    #[cfg_attr(not(feature = "postgres"), expect(dead_code))]
    pub(crate) fn has(&self, kind_and_name: &str) -> bool {
        self.0.metrics.lock().unwrap().iter().any(|noted| noted.starts_with(kind_and_name))
    }

    fn note(&self, kind: &str, key: &Key) {
        let labels: Vec<&str> = key.labels().map(metrics::Label::key).collect();
        self.0.metrics.lock().unwrap().insert(format!("{kind} {} [{}]", key.name(), labels.join(" ")));
    }
}

impl Recorder for Names {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.note("counter", key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.note("gauge", key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.note("histogram", key);
        Histogram::noop()
    }
}
