//! Works out the page's rows. `recent` is what happened in the window, `total` all that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::overview::*;
use crate::collect::series_of_name as of_name;
use crate::telemetry::{self as names, METHOD, ROUTE, STATUS};
use crate::{Histogram, Metrics, Series};

/// More routes than a page can show well.
const MAX_ROUTES: usize = 200;

pub(super) fn point(second: &Metrics, total: &Metrics, elapsed: Duration, time_ms: u64) -> Point {
    let answers = Answers::of(second, traffic_metric(total));
    Point {
        time_ms,
        rate: per_second(answers.count(), elapsed),
        latency: Latency::of(&answers.times),
        errors: answers.errors(),
    }
}

pub(super) fn overview(recent: &Metrics, total: &Metrics, span: Duration) -> Overview {
    let mut routes = routes(recent, total, span);
    let routes_omitted = routes.len().saturating_sub(MAX_ROUTES);
    routes.truncate(MAX_ROUTES);
    Overview {
        window_seconds: span.as_secs_f64(),
        traffic: traffic(recent, total, span),
        routes,
        routes_omitted,
        edge: edge(recent, total, span),
        databases: databases(recent, total, span),
        batches: batches(recent, total, span),
        caches: caches(recent, total, span),
        queues: queues(recent, total, span),
        jobs: jobs(recent, total, span),
        events: events(recent, total, span),
        subscriptions: subscriptions(recent, total, span),
        ..Overview::default()
    }
}

impl Latency {
    fn of(times: &Histogram) -> Latency {
        Latency { p50: times.quantile(0.5), p99: times.quantile(0.99) }
    }
}

/// Responses by time, and how many of them failed.
#[derive(Default)]
struct Answers {
    times: Histogram,
    failed: u64,
}

impl Answers {
    fn of(metrics: &Metrics, name: &str) -> Answers {
        let mut answers = Answers::default();
        for (series, times) in of_name(&metrics.histograms, name) {
            answers.take_in(series, times);
        }
        answers
    }

    fn take_in(&mut self, series: &Series, times: &Histogram) {
        self.times.add(times);
        if series.label(STATUS).is_some_and(|status| status.starts_with('5')) {
            self.failed += times.count();
        }
    }

    fn count(&self) -> u64 {
        self.times.count()
    }

    fn errors(&self) -> f64 {
        share(self.failed, self.count()).unwrap_or(0.0)
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn per_second(count: u64, span: Duration) -> f64 {
    if span.is_zero() { 0.0 } else { count as f64 / span.as_secs_f64() }
}

/// A service in another language has no metrics of its own here, but the balancer before it does.
fn traffic_metric(total: &Metrics) -> &'static str {
    let has = |name| of_name(&total.histograms, name).next().is_some();
    if !has(names::REQUEST_DURATION) && has(names::EDGE_DURATION) {
        names::EDGE_DURATION
    } else {
        names::REQUEST_DURATION
    }
}

fn traffic(recent: &Metrics, total: &Metrics, span: Duration) -> Traffic {
    let metric = traffic_metric(total);
    let active = if metric == names::EDGE_DURATION { names::EDGE_ACTIVE } else { names::ACTIVE_REQUESTS };
    let answers = Answers::of(recent, metric);
    Traffic {
        metric: metric.to_owned(),
        rate: per_second(answers.count(), span),
        latency: Latency::of(&answers.times),
        errors: answers.errors(),
        active: total.gauge(active, &[]),
    }
}

fn edge(recent: &Metrics, total: &Metrics, span: Duration) -> Option<EdgeRow> {
    let exists = of_name(&total.histograms, names::EDGE_DURATION).next().is_some()
        || of_name(&total.gauges, names::EDGE_HEALTHY).next().is_some();
    let answers = Answers::of(recent, names::EDGE_DURATION);
    exists.then(|| EdgeRow {
        rate: per_second(answers.count(), span),
        latency: Latency::of(&answers.times),
        errors: answers.errors(),
        active: total.gauge(names::EDGE_ACTIVE, &[]),
        retries: total.counter(names::EDGE_RETRIES, &[]),
        healthy: total.gauge(names::EDGE_HEALTHY, &[]),
    })
}

fn routes(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<RouteRow> {
    let by_route = |metrics: &Metrics| {
        let mut routes: BTreeMap<[String; 2], Answers> = BTreeMap::new();
        for (series, times) in of_name(&metrics.histograms, names::REQUEST_DURATION) {
            routes.entry(key(series, [METHOD, ROUTE])).or_default().take_in(series, times);
        }
        routes
    };
    let mut known: Vec<_> = by_route(total).into_iter().map(|(key, all)| (all.count(), key)).collect();
    // By all their requests rather than the recent ones, so that rows do not change places every second.
    known.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let mut answers = by_route(recent);
    let queries = grouped(recent, names::REQUEST_QUERIES, [METHOD, ROUTE]);
    let db_time = grouped(recent, names::REQUEST_DB_TIME, [METHOD, ROUTE]);
    let rows = known.into_iter().map(|(_, key)| {
        let answers = answers.remove(&key).unwrap_or_default();
        let whole = answers.times.sum();
        // Statements that ran side by side add up to more than the time that passed.
        let db_share =
            db_time.get(&key).filter(|_| whole > 0.0).map(|db_time| (db_time.sum() / whole).min(1.0));
        let queries = queries.get(&key).and_then(Histogram::mean);
        let [method, route] = key;
        let (rate, latency) = (per_second(answers.count(), span), Latency::of(&answers.times));
        RouteRow { method, route, rate, latency, errors: answers.errors(), queries, db_share }
    });
    rows.collect()
}

fn databases(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<DatabaseRow> {
    const LABEL: [&str; 1] = ["db.system.name"];
    let named: Vec<_> =
        grouped(total, names::DB_DURATION, LABEL).into_keys().filter(|[system]| !system.is_empty()).collect();
    // Waits may not say what for. Where there is one database, it is clear.
    let only = if let [only] = &named[..] { Some(only.clone()) } else { None };
    let system = |key: [String; 1]| match &only {
        Some(only) if key[0].is_empty() => only.clone(),
        _ => key,
    };
    let statements = grouped(recent, names::DB_DURATION, LABEL);
    let mut rows: BTreeMap<[String; 1], DatabaseRow> = BTreeMap::new();
    for key in grouped(total, names::DB_DURATION, LABEL).into_keys() {
        let statements = statements.get(&key).cloned().unwrap_or_default();
        let row = rows.entry(key).or_default();
        (row.rate, row.latency) = (per_second(statements.count(), span), Latency::of(&statements));
    }
    for (key, waits) in grouped(recent, names::DB_WAIT, LABEL) {
        rows.entry(system(key)).or_default().wait_p99 = waits.quantile(0.99);
    }
    for (key, timeouts) in counted(total, names::DB_TIMEOUTS, LABEL) {
        rows.entry(system(key)).or_default().timeouts += timeouts;
    }
    rows.into_iter().map(|(key, row)| DatabaseRow { system: first(key), ..row }).collect()
}

fn batches(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<BatchRow> {
    let recent = grouped(recent, names::DB_BATCH, ["loader"]);
    let rows = grouped(total, names::DB_BATCH, ["loader"]).into_keys().map(|key| {
        let sizes = recent.get(&key).cloned().unwrap_or_default();
        BatchRow { rate: per_second(sizes.count(), span), size: sizes.mean(), loader: first(key) }
    });
    rows.collect()
}

fn caches(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<CacheRow> {
    let mut lookups: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ([cache, result], count) in counted(recent, names::CACHE_REQUESTS, ["cache", "result"]) {
        lookups.entry(cache).or_default().insert(result, count);
    }
    let loads = grouped(recent, names::CACHE_LOAD, ["cache"]);
    let rows = counted(total, names::CACHE_REQUESTS, ["cache"]).into_keys().map(|key| {
        let results = lookups.remove(&key[0]).unwrap_or_default();
        let all = results.values().sum();
        let hits = ["hit", "stale", "remote_hit"].iter().filter_map(|result| results.get(*result)).sum();
        CacheRow {
            rate: per_second(all, span),
            hit_ratio: share(hits, all),
            results: results
                .into_iter()
                .filter_map(|(result, count)| Some((result, share(count, all)?)))
                .collect(),
            load_p99: loads.get(&key).and_then(|loads| loads.quantile(0.99)),
            cache: first(key),
        }
    });
    rows.collect()
}

fn queues(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<QueueRow> {
    let pushed = counted(total, names::JOBS_PUSHED, ["queue"]);
    let [ready, oldest, dead, missed] =
        [names::JOBS_READY, names::JOBS_OLDEST, names::JOBS_DEAD, names::JOBS_OBJECTIVE]
            .map(|name| gauged(total, name, ["queue"]));
    let waited = grouped(total, names::JOBS_WAIT, ["queue"]).into_keys();
    let known: BTreeSet<_> = pushed.keys().chain(ready.keys()).cloned().chain(waited).collect();
    let recently = counted(recent, names::JOBS_PUSHED, ["queue"]);
    let waits = grouped(recent, names::JOBS_WAIT, ["queue"]);
    let rows = known.into_iter().map(|key| QueueRow {
        rate: per_second(recently.get(&key).copied().unwrap_or(0), span),
        pushed: pushed.get(&key).copied().unwrap_or(0),
        latency: waits.get(&key).map(Latency::of).unwrap_or_default(),
        ready: ready.get(&key).copied(),
        oldest: oldest.get(&key).copied(),
        dead: dead.get(&key).copied(),
        late: missed.get(&key).is_some_and(|missed| *missed > 0.0),
        queue: first(key),
    });
    rows.collect()
}

fn jobs(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<JobRow> {
    let mut outcomes: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ([job, outcome], runs) in grouped(total, names::JOBS_RUN, ["job", "outcome"]) {
        outcomes.entry(job).or_default().insert(outcome, runs.count());
    }
    let recent = grouped(recent, names::JOBS_RUN, ["job"]);
    let rows = outcomes.into_iter().map(|(job, outcomes)| {
        let runs = recent.get(std::slice::from_ref(&job)).cloned().unwrap_or_default();
        JobRow { job, rate: per_second(runs.count(), span), latency: Latency::of(&runs), outcomes }
    });
    rows.collect()
}

fn events(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<EventRow> {
    let recent = counted(recent, names::EVENTS_PUBLISHED, ["event"]);
    let rows = counted(total, names::EVENTS_PUBLISHED, ["event"]).into_iter().map(|(key, published)| {
        let rate = per_second(recent.get(&key).copied().unwrap_or(0), span);
        EventRow { event: first(key), rate, published }
    });
    rows.collect()
}

fn subscriptions(recent: &Metrics, total: &Metrics, span: Duration) -> Vec<SubscriptionRow> {
    let mut outcomes: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for ([subscription, outcome], count) in counted(total, names::EVENTS_HANDLED, ["subscription", "outcome"])
    {
        outcomes.entry(subscription).or_default().insert(outcome, count);
    }
    let handled = counted(recent, names::EVENTS_HANDLED, ["subscription"]);
    let times = grouped(recent, names::EVENTS_HANDLE, ["subscription"]);
    let rows = outcomes.into_iter().map(|(subscription, outcomes)| {
        let key = std::slice::from_ref(&subscription);
        SubscriptionRow {
            rate: per_second(handled.get(key).copied().unwrap_or(0), span),
            latency: times.get(key).map(Latency::of).unwrap_or_default(),
            subscription,
            outcomes,
        }
    });
    rows.collect()
}

/// The values of some labels of a series; empty where it lacks one.
fn key<const N: usize>(series: &Series, labels: [&str; N]) -> [String; N] {
    labels.map(|label| series.label(label).unwrap_or_default().to_owned())
}

fn first([only]: [String; 1]) -> String {
    only
}

fn grouped<const N: usize>(
    metrics: &Metrics,
    name: &str,
    labels: [&str; N],
) -> BTreeMap<[String; N], Histogram> {
    let mut groups: BTreeMap<[String; N], Histogram> = BTreeMap::new();
    for (series, histogram) in of_name(&metrics.histograms, name) {
        groups.entry(key(series, labels)).or_default().add(histogram);
    }
    groups
}

fn gauged<const N: usize>(metrics: &Metrics, name: &str, labels: [&str; N]) -> BTreeMap<[String; N], f64> {
    let mut groups: BTreeMap<[String; N], f64> = BTreeMap::new();
    for (series, value) in of_name(&metrics.gauges, name) {
        *groups.entry(key(series, labels)).or_default() += value;
    }
    groups
}

fn counted<const N: usize>(metrics: &Metrics, name: &str, labels: [&str; N]) -> BTreeMap<[String; N], u64> {
    let mut groups: BTreeMap<[String; N], u64> = BTreeMap::new();
    for (series, count) in of_name(&metrics.counters, name) {
        let group = groups.entry(key(series, labels)).or_default();
        *group = group.saturating_add(*count);
    }
    groups
}
