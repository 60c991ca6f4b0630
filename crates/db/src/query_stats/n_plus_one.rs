//! Statements that repeat where one would do.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::runtime::Handle;
use tracing::Span;

use super::{
    QueryStats, Scope, Shape,
    site::{Site, Trace},
    table::{ByKey, Series, lock},
};
use crate::telemetry;

/// A statement of a route is warned of once in this time.
const PAUSE: Duration = Duration::from_secs(60);

/// A statement that ran again and again in one scope, from one call site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NPlusOne {
    /// The statement's fingerprint, by which it can be allowed.
    pub fingerprint: String,
    /// The statement, without values.
    pub text: String,
    /// The route of the scopes in which it repeated.
    pub route: Option<String>,
    /// The call site.
    pub site: String,
    /// In how many scopes it repeated.
    pub scopes: u64,
    /// The most often that it ran in one of them.
    pub worst: u32,
    /// What would be better.
    pub cure: &'static str,
}

impl fmt::Display for NPlusOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, route, site, worst, cure, .. } = self;
        let route = route.as_deref().unwrap_or("no route");
        write!(f, "{worst} times in {route}, from {site}: {text}\n    cure: {cure}")
    }
}

pub(super) fn cure(shape: &Shape) -> &'static str {
    match (shape.reads, shape.inserts) {
        (true, _) => "load them with a BatchLoader, or with one statement for all keys",
        (_, true) => "insert the rows with one statement: several VALUES rows, or unnest",
        _ => "change the rows with one statement for all keys",
    }
}

#[derive(Default)]
pub(super) struct Findings(Mutex<State>);

#[derive(Default)]
struct State {
    by_series: ByKey<Finding>,
    /// When a statement of a route was last warned of. No more of them than series.
    warned: HashMap<(String, Option<Arc<str>>), Instant>,
}

struct Finding {
    series: Arc<Series>,
    trace: Arc<Trace>,
    scopes: u64,
    worst: u32,
}

impl Findings {
    fn begin(&self, found: &Found, count: u32) {
        let mut state = lock(&self.0);
        let finding = state.by_series.entry(found.series.key).or_insert_with(|| Finding {
            series: Arc::clone(&found.series),
            trace: Arc::clone(&found.trace),
            scopes: 0,
            worst: count,
        });
        finding.scopes += 1;
    }

    /// Whether it is time to warn.
    fn end(&self, found: &Found, count: u32) -> bool {
        let mut state = lock(&self.0);
        let Some(finding) = state.by_series.get_mut(&found.series.key) else { return false };
        finding.worst = finding.worst.max(count);
        let now = Instant::now();
        let what = (found.series.shape.fingerprint.clone(), found.series.route.clone());
        let due = state.warned.get(&what).is_none_or(|last| now.duration_since(*last) >= PAUSE);
        if due {
            state.warned.insert(what, now);
        }
        due
    }

    pub(super) fn list(&self) -> Vec<NPlusOne> {
        let found: Vec<_> = lock(&self.0)
            .by_series
            .values()
            .map(|finding| {
                (Arc::clone(&finding.series), Arc::clone(&finding.trace), finding.scopes, finding.worst)
            })
            .collect();
        // Finding call sites takes time: not under the lock.
        let mut found: Vec<NPlusOne> = found
            .into_iter()
            .map(|(series, trace, scopes, worst)| NPlusOne {
                fingerprint: series.shape.fingerprint.clone(),
                text: series.shape.text.clone(),
                route: series.route.as_deref().map(str::to_owned),
                site: site_name(&series, &trace),
                scopes,
                worst,
                cure: cure(&series.shape),
            })
            .collect();
        found.sort_by(|a, b| b.worst.cmp(&a.worst).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
        found
    }

    pub(super) fn clear(&self) {
        *lock(&self.0) = State::default();
    }
}

fn site_name(series: &Series, trace: &Trace) -> String {
    match series.site {
        Site::Unknown => trace.site().as_ref().to_owned(),
        known => known.to_string(),
    }
}

/// A repeated statement of a scope that has not ended yet.
pub(super) struct Found {
    stats: QueryStats,
    series: Arc<Series>,
    trace: Arc<Trace>,
    span: Span,
}

impl Found {
    /// With the call site of the statement that is just ending, if `trace`.
    pub(super) fn new(
        stats: &QueryStats,
        scope: &Scope,
        series: Arc<Series>,
        count: u32,
        trace: bool,
    ) -> Self {
        let trace = match (series.site, trace) {
            (Site::Unknown, true) => Trace::capture(),
            _ => Trace::default(),
        };
        // A scope that a span keeps must not keep the span: neither would ever end.
        let span = if scope.is_of_span() { Span::none() } else { Span::current() };
        let found = Self { stats: stats.clone(), series, trace: Arc::new(trace), span };
        stats.0.findings.begin(&found, count);
        telemetry::n_plus_one_found(found.series.route.as_deref());
        found
    }

    pub(super) fn key(&self) -> u64 {
        self.series.key
    }

    pub(super) fn tell(self, count: u32) {
        if !self.stats.0.findings.end(&self, count) {
            return;
        }
        // Where the call site is still to be found; and never inside of a subscriber, where a scope of `SqlxLayer` ends.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || self.warn(count))),
            Err(_) => self.warn(count),
        }
    }

    fn warn(&self, count: u32) {
        let Self { series, trace, span, .. } = self;
        let site = site_name(series, trace);
        span.in_scope(|| {
            telemetry::n_plus_one(
                &series.shape.text,
                count,
                series.route.as_deref(),
                &site,
                cure(&series.shape),
            );
        });
    }
}
