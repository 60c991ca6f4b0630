use greenwave_monitor::{Monitor, Snapshot};
use metrics::{counter, gauge, histogram};

use crate::monitor_of;

fn record(monitor: &Monitor, requests: u64, seconds: f64, active: f64) {
    metrics::with_local_recorder(&monitor.recorder(), || {
        counter!("requests").increment(requests);
        gauge!("active").set(active);
        for _ in 0..requests {
            histogram!("duration", "route" => "/").record(seconds);
        }
    });
}

#[test]
fn processes_add_up() {
    let (one, two) = (Monitor::new(), Monitor::new());
    record(&one, 3, 1.0, 1.0);
    record(&two, 4, 2.0, 2.0);
    let mut both = one.snapshot();
    both.merge(two.snapshot());
    assert_eq!(both.counter("requests", &[]), 7);
    assert_eq!(both.gauge("active", &[]), 3.0);
    assert_eq!(both.histogram("duration", &[]).count(), 7);
    assert_eq!(both.histogram("duration", &[("route", "/")]).sum(), 11.0);
    assert_eq!(both.total().histogram("duration", &[]), both.histogram("duration", &[]));
}

#[test]
fn one_process_never_counts_twice() {
    let monitor = Monitor::new();
    record(&monitor, 3, 1.0, 1.0);
    let mut snapshot = monitor.snapshot();
    record(&monitor, 2, 1.0, 1.0);
    snapshot.merge(monitor.snapshot());
    assert_eq!(snapshot.counter("requests", &[]), 5);
}

#[test]
fn a_difference_holds_what_came_after() {
    let monitor = Monitor::new();
    record(&monitor, 3, 1.0, 1.0);
    let earlier = monitor.snapshot();
    record(&monitor, 2, 5.0, 4.0);
    let since = monitor.snapshot().since(&earlier);
    assert_eq!(since.counter("requests", &[]), 2);
    assert_eq!(since.gauge("active", &[]), 4.0);
    let times = since.histogram("duration", &[]);
    assert_eq!((times.count(), times.sum()), (2, 10.0));
    assert!((times.quantile(0.01).unwrap() / 5.0 - 1.0).abs() < 0.01);
    assert_eq!(monitor.snapshot().since(&monitor.snapshot()).counter("requests", &[]), 0);
}

#[test]
fn a_restarted_process_does_not_look_like_a_flood() {
    let (steady, old, new) = (Monitor::new(), Monitor::new(), Monitor::new());
    record(&steady, 100, 1.0, 0.0);
    record(&old, 1000, 1.0, 0.0);
    let mut earlier = steady.snapshot();
    earlier.merge(old.snapshot());
    record(&steady, 1, 1.0, 0.0);
    record(&new, 2, 1.0, 0.0);
    let mut later = steady.snapshot();
    later.merge(new.snapshot());
    assert_eq!(later.since(&earlier).counter("requests", &[]), 3);
    assert_eq!(later.since(&earlier).histogram("duration", &[]).count(), 3);
}

#[test]
fn numbers_that_fell_count_from_nothing() {
    let (before, after) = (Monitor::new(), Monitor::new());
    record(&before, 10, 1.0, 0.0);
    record(&after, 4, 2.0, 0.0);
    let since = after.snapshot().total().since(&before.snapshot().total());
    assert_eq!(since.counter("requests", &[]), 4);
    assert_eq!(since.histogram("duration", &[]).count(), 4);
}

#[test]
fn a_snapshot_survives_its_journey() {
    let monitor = monitor_of(|| {
        metrics::describe_counter!("requests", metrics::Unit::Count, "All \"requests\"\nso far");
        counter!("requests", "path" => "a\"b\\c\nd", "ключ" => "значение").increment(u64::MAX);
        gauge!("g").set(-0.1);
        histogram!("h").record(0.123_456);
    });
    let snapshot = monitor.snapshot();
    let json = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&json).unwrap(), snapshot);
}

#[test]
fn a_forged_snapshot_is_refused() {
    let with = |buckets: &str| {
        let histogram = format!(r#"[[{{"name":"h"}},{{"buckets":{buckets},"sum":1.0}}]]"#);
        let process = format!(r#"{{"started_ms":0,"metrics":{{"histograms":{histogram}}}}}"#);
        serde_json::from_str::<Snapshot>(&format!(r#"{{"processes":{{"p":{process}}}}}"#))
    };
    assert_eq!(with("[[1,2],[3,4]]").unwrap().histogram("h", &[]).count(), 6);
    assert!(with("[[4000000,1]]").unwrap_err().to_string().contains("beyond the last"));
    assert!(with("[[3,1],[2,1]]").unwrap_err().to_string().contains("out of order"));
    // Counts that overflow are held at the top.
    let huge = with("[[1,18446744073709551615],[3,18446744073709551615]]").unwrap().histogram("h", &[]);
    assert_eq!(huge.count(), u64::MAX);
    assert!(huge.quantile(1.0).is_some());
}
