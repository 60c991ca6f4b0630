//! The experiments on the cache, on small data sets.

use std::time::Duration;

use greenwave_lab::Report;
use greenwave_lab::experiments::{Source, cache_aside, stale, stampede};

use crate::quick::{self, Run, fact};

const SMALL: u64 = 5_000;

/// Long enough for a stampede in a debug build.
const STAMPEDES: Duration = Duration::from_secs(4);

/// The source is well and slow more than once.
const SPELLS: Duration = Duration::from_secs(2);

fn in_memory() -> Source {
    Source { orders: SMALL, ..Source::default() }
}

/// With a Redis that is nobody else's.
fn with_redis() -> (Source, String) {
    let url = greenwave_test_servers::redis_url();
    (Source { redis: Some(url.clone()), ..in_memory() }, url)
}

/// Sees that the keys that the run told of are gone.
async fn left_nothing_in(url: &str, run: &Run) {
    assert_eq!(run.created().len(), 1, "{:?}", run.notes);
    let patient = redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let client = redis::Client::open(url).unwrap();
    let mut redis = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    assert_eq!(keys.first(), None, "and {} more", keys.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_brings_more_pages() {
    let run = quick::run(&cache_aside::experiment(in_memory())).await;
    let report = run.good(1.0);
    assert_eq!(report.after.label, "from memory");
    assert_eq!(fact(report, "page"), Some("10 customers out of 1,000 popular ones"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_behind_it_it_still_does_and_leaves_no_key_behind() {
    let (source, url) = with_redis();
    let run = quick::run(&cache_aside::experiment(source)).await;
    assert_eq!(run.good(1.0).after.label, "from memory, before Redis");
    left_nothing_in(&url, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_before_redis_brings_more_pages_than_redis() {
    let (source, url) = with_redis();
    let run = quick::run(&cache_aside::levels(source)).await;
    run.good(1.0);
    left_nothing_in(&url, &run).await;
}

#[tokio::test]
async fn without_a_redis_the_levels_say_what_to_give() {
    let run = quick::run(&cache_aside::levels(Source::default())).await;
    assert_eq!(
        run.refusal(),
        "this compares Redis with memory before it: give one as --redis redis://HOST:PORT/0"
    );
    assert!(run.notes.is_empty(), "it began: {:?}", run.notes);
}

/// Few orders, so that even a debug build adds them up quickly.
fn few(source: Source) -> Source {
    Source { orders: 1_000, ..source }
}

/// How many loads a stampede caused in each arm.
fn loads(report: &Report) -> (f64, f64) {
    let loads = fact(report, "loads in one stampede, on average").unwrap();
    let (before, after) = loads.strip_prefix("before ").unwrap().split_once(", after ").unwrap();
    (before.replace(',', "").parse().unwrap(), after.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_key_is_loaded_once_instead_of_by_many() {
    let run = quick::run_for(STAMPEDES, &stampede::experiment(few(in_memory()))).await;
    let report = run.good(0.0);
    assert_eq!(fact(report, "callers of a cold key"), Some("250"));
    // By hand it is one too where a load is quicker than the callers come.
    let (by_hand, ours) = loads(report);
    assert!(by_hand >= 1.0 && ours <= 1.0, "{by_hand} {ours}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_caches_over_one_redis_load_a_cold_key_once() {
    let (source, url) = with_redis();
    let run = quick::run_for(STAMPEDES, &stampede::experiment(few(source))).await;
    // A debug build on a busy machine may be too slow for the leases of a moment.
    let (by_hand, ours) = loads(run.good(0.0));
    assert!(by_hand >= 1.0 && ours < 1.5, "{by_hand} {ours}");
    left_nothing_in(&url, &run).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_just_expired_is_shown_while_the_source_is_slow() {
    let experiment = stale::experiment(in_memory());
    let mut run = quick::run_for(SPELLS, &experiment).await;
    // Beside other tests a pair of rounds may tell anything; the third that is no more is a fault.
    for _ in 1..3 {
        if run.good(0.0).ratios.per_second.unwrap().median > 1.0 {
            break;
        }
        run = quick::run_for(SPELLS, &experiment).await;
    }
    let report = run.good(1.0);
    assert!(fact(report, "cache, after").unwrap().starts_with("stale_while_revalidate 1s"), "{report:?}");
}
