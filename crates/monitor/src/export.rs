//! Snapshots in the text format of Prometheus (version 0.0.4).
//!
//! Names follow OpenTelemetry's rules for Prometheus: what is neither a letter nor a digit becomes `_`, the unit
//! comes at the end, and a counter ends in `_total`. So `http.server.request.duration` is exported as
//! `http_server_request_duration_seconds`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use axum::response::{IntoResponse, Response};
use http::header;

use crate::{Description, Histogram, Metrics, Series, Snapshot};

/// The bounds of exported buckets for times, in seconds.
pub const SECONDS_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// The bounds of exported buckets for everything else.
pub const COUNT_BUCKETS: &[f64] = &[
    0.0,
    1.0,
    2.0,
    3.0,
    5.0,
    10.0,
    20.0,
    50.0,
    100.0,
    200.0,
    500.0,
    1_000.0,
    10_000.0,
    100_000.0,
    1_000_000.0,
];

/// The snapshot, all its processes added up, as Prometheus reads it.
///
/// A histogram without a described unit is taken for seconds if its name ends in `duration`, `time` or `wait`.
/// A value within 1.6 % above a bucket's bound may count as within it.
pub fn prometheus(snapshot: &Snapshot) -> String {
    render(&snapshot.total(), &snapshot.descriptions)
}

pub(crate) fn response(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

pub(crate) fn render(metrics: &Metrics, descriptions: &BTreeMap<String, Description>) -> String {
    let mut page = Page { text: String::new(), taken: BTreeSet::new(), descriptions };
    for (name, series) in by_name(&metrics.counters) {
        let family = page.family(name, "counter", name_suffix(name, descriptions, "_total"));
        for (series, count) in series {
            page.sample(&family, &labels(series), *count);
        }
    }
    for (name, series) in by_name(&metrics.gauges) {
        let family = page.family(name, "gauge", name_suffix(name, descriptions, ""));
        for (series, value) in series {
            page.sample(&family, &labels(series), *value);
        }
    }
    for (name, series) in by_name(&metrics.histograms) {
        let family = page.family(name, "histogram", name_suffix(name, descriptions, ""));
        let seconds = is_seconds(name, descriptions);
        for (series, histogram) in series {
            page.histogram(&family, &labels(series), histogram, seconds);
        }
    }
    page.text
}

/// The maps are ordered by name first.
fn by_name<V>(map: &BTreeMap<Series, V>) -> Vec<(&str, Vec<(&Series, &V)>)> {
    let mut families: Vec<(&str, Vec<(&Series, &V)>)> = Vec::new();
    for (series, value) in map {
        match families.last_mut() {
            Some((name, of_name)) if *name == series.name => of_name.push((series, value)),
            _ => families.push((&series.name, vec![(series, value)])),
        }
    }
    families
}

fn is_seconds(name: &str, descriptions: &BTreeMap<String, Description>) -> bool {
    match descriptions.get(name).and_then(|description| description.unit.as_deref()) {
        Some(unit) => unit == "seconds",
        None => ["duration", "time", "wait"].iter().any(|end| name.ends_with(end)),
    }
}

/// What comes after the name: the unit, then the kind.
fn name_suffix(name: &str, descriptions: &BTreeMap<String, Description>, kind: &str) -> String {
    let unit = descriptions.get(name).and_then(|description| description.unit.as_deref());
    let unit = match unit {
        Some("count" | "count_per_second") => None,
        Some(unit) => Some(unit),
        None if kind.is_empty() && is_seconds(name, descriptions) => Some("seconds"),
        None => None,
    };
    let unit =
        unit.map(|unit| format!("_{unit}")).filter(|unit| !name.ends_with(unit.as_str())).unwrap_or_default();
    let kind = if name.ends_with(kind) { "" } else { kind };
    format!("{unit}{kind}")
}

struct Page<'a> {
    text: String,
    // Names of samples in use: two metrics whose names differ only in what is replaced must not mix.
    taken: BTreeSet<String>,
    descriptions: &'a BTreeMap<String, Description>,
}

impl Page<'_> {
    fn family(&mut self, name: &str, kind: &str, suffix: String) -> String {
        let wanted = sanitized(name, ':') + &suffix;
        let samples = |family: &str| match kind {
            "histogram" => ["", "_bucket", "_sum", "_count"].map(|end| format!("{family}{end}")).to_vec(),
            _ => vec![family.to_owned()],
        };
        let mut family = wanted.clone();
        let mut attempt = 1;
        while samples(&family).iter().any(|sample| self.taken.contains(sample)) {
            attempt += 1;
            family = format!("{wanted}_{kind}{attempt}");
        }
        self.taken.extend(samples(&family));
        if let Some(description) =
            self.descriptions.get(name).filter(|description| !description.help.is_empty())
        {
            let help = description.help.replace('\\', r"\\").replace('\n', r"\n");
            let _ = writeln!(self.text, "# HELP {family} {help}");
        }
        let _ = writeln!(self.text, "# TYPE {family} {kind}");
        family
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            _ => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    fn histogram(&mut self, family: &str, labels: &str, histogram: &Histogram, seconds: bool) {
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket = format!("{family}_bucket");
        for bound in if seconds { SECONDS_BUCKETS } else { COUNT_BUCKETS } {
            let count = histogram.count_up_to(*bound);
            self.sample(&bucket, &format!("{labels}{comma}le=\"{bound}\""), count);
        }
        let count = histogram.count();
        self.sample(&bucket, &format!("{labels}{comma}le=\"+Inf\""), count);
        self.sample(&format!("{family}_sum"), labels, histogram.sum());
        self.sample(&format!("{family}_count"), labels, count);
    }
}

fn labels(series: &Series) -> String {
    let mut names = BTreeSet::from(["le".to_owned()]); // a bucket's own
    let pairs = series.labels.iter().map(|(name, value)| {
        let mut name = sanitized(name, '_');
        while !names.insert(name.clone()) {
            name.push('_');
        }
        let value = value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
        format!("{name}=\"{value}\"")
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// Letters, digits, `_` and one more character; the first is no digit.
fn sanitized(name: &str, also: char) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == also;
    let first = name.starts_with(|c: char| c.is_ascii_digit()).then_some('_');
    let rest = name.chars().map(|c| if allowed(c) { c } else { '_' });
    let clean: String = first.into_iter().chain(rest).collect();
    if clean.is_empty() { "_".to_owned() } else { clean }
}
