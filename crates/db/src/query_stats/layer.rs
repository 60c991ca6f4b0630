//! Query statistics for whoever uses sqlx's own pools: from its events.

use std::{fmt, time::Duration};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use super::{Dialect, QueryStats, Scope, Site, Statement};

const TARGET: &str = "sqlx::query";
const ROUTE: &str = "http.route";

/// Counts the statements of sqlx's own pools, and finds N+1 among them, from the events that sqlx emits.
///
/// A statement belongs to the [`Scope`] in which it is awaited or, where there is none, to the innermost span around it
/// that has a field `http.route`: each such span is a scope, which ends when the span closes.
///
/// sqlx's events tell the text, the time and the rows. They do not tell whether a statement failed, where it was called,
/// or how long it waited for its connection: `errors` and `wait_ms` stay 0, and `site` is `unknown`, so that calls from
/// two places in one scope count together. Statements of [`postgres::Pool`](crate::postgres::Pool) emit no such events:
/// nothing is counted twice.
///
/// sqlx emits at DEBUG, unless `ConnectOptions::log_statements` says otherwise, and a filter over all layers that drops
/// those events hides them from this one too: filter each layer by itself.
///
/// ```
/// use greenwave_db::query_stats::{Dialect, QueryStats, SqlxLayer};
/// use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt};
///
/// let stats = QueryStats::default();
/// let subscriber = tracing_subscriber::registry()
///     .with(fmt::layer().with_filter(EnvFilter::new("info")))
///     .with(SqlxLayer::new(stats.clone(), Dialect::Postgres));
/// tracing::subscriber::with_default(subscriber, || { /* the program */ });
/// println!("{:?}", stats.snapshot());
/// ```
pub struct SqlxLayer {
    stats: QueryStats,
    dialect: Dialect,
}

impl SqlxLayer {
    /// Counts in `stats` what runs in a database of this dialect.
    pub fn new(stats: QueryStats, dialect: Dialect) -> Self {
        Self { stats, dialect }
    }
}

impl fmt::Debug for SqlxLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxLayer").field("stats", &self.stats).field("dialect", &self.dialect).finish()
    }
}

/// The scope that a span is.
struct SpanScope(Scope);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SqlxLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        enter(id, &context, |route| attributes.record(route));
    }

    /// A route is often known only after its span has begun.
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        enter(id, &context, |route| values.record(route));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if event.metadata().target() != TARGET {
            return;
        }
        let mut seen = Seen::default();
        event.record(&mut seen);
        let of_span = || {
            let mut spans = context.event_scope(event)?;
            spans.find_map(|span| span.extensions().get::<SpanScope>().map(|SpanScope(scope)| scope.clone()))
        };
        let scope = Scope::current().or_else(of_span);
        let statement = Statement {
            // The rest of a long text stands apart, in blank lines.
            text: if seen.text.is_empty() { &seen.summary } else { seen.text.trim() },
            dialect: self.dialect,
            scope: scope.as_ref(),
            site: Site::Unknown,
            elapsed: seen.elapsed,
            wait: Duration::ZERO,
            rows: seen.returned.max(seen.affected),
            failed: false,
            // Nobody's call site can be found here: sqlx's events come from its own tasks as well.
            given_up: true,
        };
        self.stats.record(&statement, false);
    }
}

/// Makes the span a scope, if what is recorded has a route.
fn enter<S>(id: &Id, context: &Context<'_, S>, record: impl FnOnce(&mut Route))
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let mut route = Route::default();
    record(&mut route);
    if let Some(route) = route.0
        && let Some(span) = context.span(id)
    {
        let old = span.extensions_mut().replace(SpanScope(Scope::of_span(route)));
        // Not under the extensions' lock: its end may warn, and other layers look into them.
        drop(old);
    }
}

#[derive(Default)]
struct Route(Option<String>);

impl Visit for Route {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == ROUTE {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == ROUTE {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

/// What sqlx tells of a statement. The text stands in `db.statement`, or in `summary` alone if it has four words or
/// fewer.
#[derive(Default)]
struct Seen {
    summary: String,
    text: String,
    affected: u64,
    returned: u64,
    elapsed: Duration,
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.text),
            _ => {}
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "rows_affected" => self.affected = value,
            "rows_returned" => self.returned = value,
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "elapsed_secs" {
            self.elapsed = Duration::try_from_secs_f64(value).unwrap_or_default();
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
