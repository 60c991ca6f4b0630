use greenwave_monitor::{Error, Histogram, Monitor, MonitorConfig};
use metrics::{Unit, counter, describe_histogram, gauge, histogram};
use proptest::prelude::*;

use crate::monitor_of;

fn histogram_of(values: &[f64]) -> Histogram {
    let monitor = monitor_of(|| values.iter().for_each(|value| histogram!("h").record(*value)));
    monitor.snapshot().histogram("h", &[])
}

#[test]
fn counters_and_gauges_are_stored_by_their_labels() {
    let monitor = monitor_of(|| {
        counter!("visits", "page" => "home").increment(2);
        counter!("visits", "page" => "home").increment(3);
        counter!("visits", "page" => "about", "lang" => "en").increment(1);
        gauge!("open").set(4.0);
        gauge!("open").decrement(1.5);
    });
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.counter("visits", &[("page", "home")]), 5);
    assert_eq!(snapshot.counter("visits", &[("page", "about")]), 1);
    assert_eq!(snapshot.counter("visits", &[("page", "about"), ("lang", "de")]), 0);
    assert_eq!(snapshot.counter("visits", &[]), 6);
    assert_eq!(snapshot.counter("visit", &[]), 0);
    assert_eq!(snapshot.gauge("open", &[]), 2.5);
}

#[test]
fn the_order_of_labels_does_not_make_a_series() {
    let monitor = monitor_of(|| {
        counter!("visits", "a" => "1", "b" => "2").increment(1);
        counter!("visits", "b" => "2", "a" => "1").increment(1);
    });
    assert_eq!(
        monitor.snapshot().total().counters.iter().filter(|(series, _)| series.name == "visits").count(),
        1
    );
    assert_eq!(monitor.snapshot().counter("visits", &[]), 2);
}

#[test]
fn quantiles_of_a_known_distribution_are_right() {
    let values: Vec<f64> = (1..=10_000).map(|i| f64::from(i) / 10_000.0).collect();
    let histogram = histogram_of(&values);
    assert_eq!(histogram.count(), 10_000);
    assert!((histogram.sum() - 5000.5).abs() < 1e-6, "{}", histogram.sum());
    assert!((histogram.mean().unwrap() - 0.50005).abs() < 1e-9);
    for (q, exact) in [(0.0, 0.0001), (0.5, 0.5), (0.9, 0.9), (0.99, 0.99), (0.999, 0.999), (1.0, 1.0)] {
        let measured = histogram.quantile(q).unwrap();
        assert!((measured / exact - 1.0).abs() < 0.01, "q{q}: {measured} for {exact}");
    }
}

#[test]
fn an_empty_histogram_has_no_quantile() {
    let empty = Histogram::default();
    assert_eq!((empty.quantile(0.5), empty.mean(), empty.count()), (None, None, 0));
}

#[test]
fn values_that_are_no_measurements_do_no_harm() {
    let histogram = histogram_of(&[f64::NAN, -1.0, f64::INFINITY, f64::NEG_INFINITY, 0.0]);
    assert_eq!(histogram.count(), 4); // all but the NaN
    assert_eq!(histogram.quantile(0.5), Some(0.0));
    assert!(histogram.sum().is_finite());

    let monitor = monitor_of(|| gauge!("g").set(f64::NAN));
    let json = serde_json::to_string(&monitor.snapshot()).unwrap();
    assert_eq!(serde_json::from_str::<greenwave_monitor::Snapshot>(&json).unwrap(), monitor.snapshot());
}

#[test]
fn units_and_descriptions_are_kept() {
    let monitor = monitor_of(|| describe_histogram!("nap", Unit::Seconds, "How long it slept."));
    let description = &monitor.snapshot().descriptions["nap"];
    assert_eq!(
        (description.unit.as_deref(), description.help.as_str()),
        (Some("seconds"), "How long it slept.")
    );
}

#[test]
fn series_beyond_the_bound_are_dropped_and_counted() {
    let monitor = Monitor::with_config(MonitorConfig { max_series: 5, max_histograms: 2 });
    metrics::with_local_recorder(&monitor.recorder(), || {
        for i in 0..4 {
            histogram!("h", "i" => i.to_string()).record(1.0);
        }
        for i in 0..6 {
            counter!("c", "i" => i.to_string()).increment(1);
        }
        counter!("c", "i" => "0").increment(1); // known, so not dropped
    });
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.histogram("h", &[]).count(), 2);
    // One series is the monitor's own gauge of active requests.
    assert_eq!(snapshot.counter("c", &[]), 3);
    assert_eq!(snapshot.counter("greenwave.monitor.dropped_series", &[]), 2 + 4);
}

#[test]
fn many_threads_lose_no_value() {
    let monitor = Monitor::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                metrics::with_local_recorder(&monitor.recorder(), || {
                    for i in 0..10_000 {
                        histogram!("h").record(f64::from(i % 100));
                        counter!("c", "i" => (i % 50).to_string()).increment(1);
                    }
                });
            });
        }
    });
    let snapshot = monitor.snapshot();
    assert_eq!(snapshot.counter("c", &[]), 40_000);
    assert_eq!(snapshot.histogram("h", &[]).count(), 40_000);
    assert_eq!(snapshot.histogram("h", &[]).sum(), 4.0 * 100.0 * 4950.0);
}

#[test]
fn a_process_has_one_installed_monitor() {
    let installed = Monitor::install().unwrap();
    counter!("through_the_macros").increment(1);
    assert_eq!(installed.snapshot().counter("through_the_macros", &[]), 1);
    assert!(matches!(Monitor::install(), Err(Error::AlreadyInstalled)));
}

proptest! {
    #[test]
    fn any_quantile_is_within_one_percent(mut values in prop::collection::vec(5e-5..1e6f64, 1..200), q in 0.0..=1.0f64) {
        let measured = histogram_of(&values).quantile(q).unwrap();
        values.sort_by(f64::total_cmp);
        let rank = ((values.len() as f64 * q).ceil() as usize).max(1);
        let exact = values[rank - 1];
        prop_assert!((measured / exact - 1.0).abs() <= 0.0101, "q{q}: {measured} for {exact}");
    }

    #[test]
    fn adding_and_taking_away_are_inverse(
        before in prop::collection::vec(0.0..100f64, 0..100),
        after in prop::collection::vec(0.0..100f64, 0..100),
    ) {
        let (first, second) = (histogram_of(&before), histogram_of(&after));
        let mut both = first.clone();
        both.add(&second);
        prop_assert_eq!(both.count(), (before.len() + after.len()) as u64);
        let since = both.since(&first);
        prop_assert_eq!(since.count(), second.count());
        prop_assert_eq!(since.quantile(0.9), second.quantile(0.9));
        prop_assert!((since.sum() - second.sum()).abs() < 1e-6);
    }

    #[test]
    fn counts_up_to_a_limit_include_what_equals_it(values in prop::collection::vec(0u32..1000, 1..100), limit in 0u32..1000) {
        let floats: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        let counted = histogram_of(&floats).count_up_to(f64::from(limit));
        let within = |limit: f64| floats.iter().filter(|value| **value <= limit).count() as u64;
        prop_assert!(counted >= within(f64::from(limit)));
        prop_assert!(counted <= within(f64::from(limit) * 1.016));
    }
}
