//! Attributes each statement to the request whose span encloses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Span, Subscriber};
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::telemetry;

/// What a request's statements come to so far.
#[derive(Default)]
pub(crate) struct Tally {
    statements: AtomicU64,
    nanos: AtomicU64,
}

impl Tally {
    pub(crate) fn statements(&self) -> u64 {
        self.statements.load(Ordering::Relaxed)
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }

    fn count(&self, time: Duration) {
        self.statements.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A tally that lives in the span's extensions, if the span is recorded by a `tracing-subscriber` registry.
    pub(crate) fn attach(span: &Span) -> Option<Arc<Tally>> {
        let attach = |(id, dispatch): (&tracing::Id, &tracing::Dispatch)| {
            let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
            let tally = Arc::new(Tally::default());
            span.extensions_mut().replace(Attached(tally.clone()));
            Some(tally)
        };
        span.with_subscriber(attach).flatten()
    }
}

struct Attached(Arc<Tally>);

/// Finds the tally around each statement's event.
struct Queries {
    in_place: Arc<AtomicBool>,
}

pub(crate) fn layer<S>(in_place: Arc<AtomicBool>) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let filter = FilterFn::new(wanted as fn(&Metadata<'_>) -> bool).with_max_level_hint(LevelFilter::DEBUG);
    Queries { in_place }.with_filter(filter)
}

fn wanted(metadata: &Metadata<'_>) -> bool {
    if metadata.is_span() {
        metadata.target() == telemetry::REQUEST_SPAN_TARGET
    } else {
        matches!(metadata.target(), telemetry::DB_QUERY_TARGET | telemetry::SQLX_QUERY_TARGET)
    }
}

impl<S> Layer<S> for Queries
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_layer(&mut self, _: &mut S) {
        self.in_place.store(true, Ordering::Relaxed);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(scope) = context.event_scope(event) else { return };
        for span in scope {
            if let Some(Attached(tally)) = span.extensions().get::<Attached>() {
                let mut elapsed = Elapsed::default();
                event.record(&mut elapsed);
                tally.count(elapsed.0);
                return;
            }
        }
    }
}

/// Reads how long a statement took.
#[derive(Default)]
struct Elapsed(Duration);

impl Visit for Elapsed {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "elapsed_us" {
            self.0 = Duration::from_micros(value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.record_u64(field, u64::try_from(value).unwrap_or(0));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.0 = Duration::try_from_secs_f64(value).unwrap_or_default();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
