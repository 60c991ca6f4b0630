use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect;
use greenwave_monitor::export::prometheus;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::monitor_of;

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads the text as strictly as its format is written, and fails where a lenient reader would guess.
fn parse(text: &str) -> Vec<Sample> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
    let mut samples = Vec::new();
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let mut family = String::new();
    let mut helped = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for line in text.split('\n').filter(|line| !line.is_empty()) {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(is_name(name, true) && helped.insert(name.to_owned()), "{line}");
            unescape(text, false);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(is_name(name, true), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
            family = name.to_owned();
        } else {
            let sample = parse_sample(line);
            let suffix =
                sample.name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not of {family}"));
            match kinds[&family].as_str() {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
            assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
            samples.push(sample);
        }
    }
    check_histograms(&samples, kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name));
    samples
}

fn parse_sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, mut rest) = series.split_at(series.find('{').unwrap_or(series.len()));
    assert!(is_name(name, true), "{line}");
    let mut labels = BTreeMap::new();
    if !rest.is_empty() {
        rest = rest.strip_prefix('{').unwrap();
        loop {
            let (label, after) = rest.split_once("=\"").unwrap();
            assert!(is_name(label, false), "{line}");
            let end = end_of_string(after);
            assert!(labels.insert(label.to_owned(), unescape(&after[..end], true)).is_none(), "{line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break assert_eq!(rest, "}", "{line}"),
            }
        }
    }
    Sample { name: name.to_owned(), labels, value: value.parse().unwrap() }
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    let end = text.char_indices().find(|(_, c)| {
        let ends = !escaped && *c == '"';
        escaped = !escaped && *c == '\\';
        ends
    });
    end.unwrap().0
}

fn unescape(text: &str, quotes: bool) -> String {
    let mut clean = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        clean.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('\\') => '\\',
                Some('"') if quotes => '"',
                other => panic!("\\{other:?} in {text}"),
            },
            other => other,
        });
    }
    clean
}

fn is_name(name: &str, colons: bool) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':'))
}

fn check_histograms<'a>(samples: &[Sample], histograms: impl Iterator<Item = &'a String>) {
    for family in histograms {
        let mut last: BTreeMap<BTreeMap<String, String>, (f64, f64)> = BTreeMap::new();
        for bucket in samples.iter().filter(|sample| sample.name == format!("{family}_bucket")) {
            let mut labels = bucket.labels.clone();
            let bound: f64 = labels.remove("le").unwrap().parse().unwrap();
            let before = last.insert(labels, (bound, bucket.value)).unwrap_or((f64::NEG_INFINITY, 0.0));
            assert!(bound > before.0 && bucket.value >= before.1, "{bucket:?} after {before:?}");
        }
        for (labels, (bound, count)) in last {
            assert_eq!(bound, f64::INFINITY);
            let of = |end: &str| {
                let name = format!("{family}{end}");
                samples.iter().find(|sample| sample.name == name && sample.labels == labels).unwrap().value
            };
            assert_eq!(of("_count"), count);
            assert!(of("_sum").is_finite());
        }
    }
}

#[test]
fn the_text_is_what_prometheus_expects() {
    let monitor = monitor_of(|| {
        describe_counter!("greenwave.cache.requests", Unit::Count, "Lookups by result.");
        describe_gauge!("greenwave.edge.upstreams.healthy", "Instances that take requests.");
        describe_histogram!("greenwave.db.batch.size", Unit::Count, "Keys in a batch.");
        counter!("greenwave.cache.requests", "cache" => "user", "result" => "hit").increment(7);
        counter!("greenwave.cache.requests", "cache" => "user", "result" => "miss").increment(2);
        gauge!("greenwave.edge.upstreams.healthy").set(2);
        for size in [1.0, 10.0, 10.0, 11.0] {
            histogram!("greenwave.db.batch.size", "loader" => "items").record(size);
        }
        histogram!("greenwave.jobs.wait", "queue" => "default").record(0.005);
        histogram!("greenwave.jobs.wait", "queue" => "default").record(0.3);
    });
    let text = prometheus(&monitor.snapshot());
    parse(&text);
    expect![[r##"
        # HELP greenwave_cache_requests_total Lookups by result.
        # TYPE greenwave_cache_requests_total counter
        greenwave_cache_requests_total{cache="user",result="hit"} 7
        greenwave_cache_requests_total{cache="user",result="miss"} 2
        # HELP greenwave_monitor_dropped_series_total Registrations refused because the process has too many series.
        # TYPE greenwave_monitor_dropped_series_total counter
        greenwave_monitor_dropped_series_total 0
        # HELP greenwave_edge_upstreams_healthy Instances that take requests.
        # TYPE greenwave_edge_upstreams_healthy gauge
        greenwave_edge_upstreams_healthy 2
        # HELP http_server_active_requests Requests that are being answered.
        # TYPE http_server_active_requests gauge
        http_server_active_requests 0
        # HELP greenwave_db_batch_size Keys in a batch.
        # TYPE greenwave_db_batch_size histogram
        greenwave_db_batch_size_bucket{loader="items",le="0"} 0
        greenwave_db_batch_size_bucket{loader="items",le="1"} 1
        greenwave_db_batch_size_bucket{loader="items",le="2"} 1
        greenwave_db_batch_size_bucket{loader="items",le="3"} 1
        greenwave_db_batch_size_bucket{loader="items",le="5"} 1
        greenwave_db_batch_size_bucket{loader="items",le="10"} 3
        greenwave_db_batch_size_bucket{loader="items",le="20"} 4
        greenwave_db_batch_size_bucket{loader="items",le="50"} 4
        greenwave_db_batch_size_bucket{loader="items",le="100"} 4
        greenwave_db_batch_size_bucket{loader="items",le="200"} 4
        greenwave_db_batch_size_bucket{loader="items",le="500"} 4
        greenwave_db_batch_size_bucket{loader="items",le="1000"} 4
        greenwave_db_batch_size_bucket{loader="items",le="10000"} 4
        greenwave_db_batch_size_bucket{loader="items",le="100000"} 4
        greenwave_db_batch_size_bucket{loader="items",le="1000000"} 4
        greenwave_db_batch_size_bucket{loader="items",le="+Inf"} 4
        greenwave_db_batch_size_sum{loader="items"} 32
        greenwave_db_batch_size_count{loader="items"} 4
        # TYPE greenwave_jobs_wait_seconds histogram
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.0001"} 0
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.00025"} 0
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.0005"} 0
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.001"} 0
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.0025"} 0
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.005"} 1
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.01"} 1
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.025"} 1
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.05"} 1
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.1"} 1
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.25"} 1
        greenwave_jobs_wait_seconds_bucket{queue="default",le="0.5"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="1"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="2.5"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="5"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="10"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="30"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="60"} 2
        greenwave_jobs_wait_seconds_bucket{queue="default",le="+Inf"} 2
        greenwave_jobs_wait_seconds_sum{queue="default"} 0.305
        greenwave_jobs_wait_seconds_count{queue="default"} 2
    "##]]
    .assert_eq(&text);
}

#[test]
fn a_request_is_exported_under_opentelemetrys_name() {
    let monitor = monitor_of(|| {
        let labels =
            [("http.request.method", "GET"), ("http.route", "/a/{id}"), ("http.response.status_code", "200")];
        histogram!("http.server.request.duration", &labels).record(0.002);
    });
    let samples = parse(&prometheus(&monitor.snapshot()));
    let count =
        samples.iter().find(|sample| sample.name == "http_server_request_duration_seconds_count").unwrap();
    assert_eq!(count.value, 1.0);
    assert_eq!(count.labels["http_route"], "/a/{id}");
    assert_eq!(count.labels["http_response_status_code"], "200");
    let bucket = |le: &str| {
        let is = |sample: &&Sample| {
            sample.name.ends_with("_bucket") && sample.labels.get("le").is_some_and(|l| l == le)
        };
        samples.iter().find(is).unwrap().value
    };
    assert_eq!((bucket("0.001"), bucket("0.0025"), bucket("+Inf")), (0.0, 1.0, 1.0));
}

#[test]
fn hostile_names_and_labels_are_tamed() {
    let hostile = "a\"b\\c\nd\r{}=,# HELP x";
    let monitor = monitor_of(|| {
        describe_counter!("1st metric!", "a help\nwith two lines and a \\");
        counter!("1st metric!", "1st label" => hostile, "" => "empty", "le" => "taken").increment(1);
        // Names that differ only in what is replaced.
        gauge!("a.b").set(1);
        gauge!("a-b").set(2);
        gauge!("h.d").set(3);
        histogram!("h_d", "le" => "5", "a.b" => "1", "a-b" => "2").record(1.0);
        gauge!("h_d_count").set(4);
        counter!("ends_total").increment(1);
    });
    let samples = parse(&prometheus(&monitor.snapshot()));
    let first = samples.iter().find(|sample| sample.name == "_1st_metric__total").unwrap();
    assert_eq!(first.labels["_1st_label"], hostile);
    assert_eq!(first.labels["_"], "empty");
    assert_eq!(first.labels["le_"], "taken");
    assert!(samples.iter().any(|sample| sample.name == "ends_total"));
    let gauges: BTreeSet<_> =
        samples.iter().filter(|s| s.name.starts_with("a_b")).map(|s| s.value as i64).collect();
    assert_eq!(gauges, BTreeSet::from([1, 2]));
}
