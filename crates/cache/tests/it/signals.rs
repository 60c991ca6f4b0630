use std::time::Duration;

use expect_test::expect;
use greenwave_cache::{Cache, CacheConfig, telemetry};
use tokio::time::sleep;

use crate::support::{Failed, Gate, Recording, Source};

const README: &str = include_str!("../../README.md");

#[tokio::test]
async fn every_request_is_counted_once_by_its_result() {
    let recording = Recording::default();
    let cache: Cache<u64, u64> = recording.of(|| Cache::builder("test").build());
    let gate = Gate::new();
    let source = Source::default();
    let miss = cache.get_or_load(&1, || source.clone().load_behind(gate.clone(), 7));
    let coalesced = async {
        gate.arrival().await;
        tokio::join!(cache.get_or_load(&1, || source.clone().load(7)), async { gate.open() }).0
    };
    let (miss, coalesced) = tokio::join!(miss, coalesced);
    assert_eq!((miss.unwrap().as_deref(), coalesced.unwrap().as_deref()), (Some(&7), Some(&7)));
    cache.get_or_load(&1, || source.clone().load(7)).await.unwrap();
    cache.get(&1).await.unwrap();
    cache.get_or_load(&2, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    cache.invalidate(&1).await;
    let stats = cache.stats();
    expect![[r#"
        greenwave.cache.invalidations{cache=test} 1
        greenwave.cache.load.failed{cache=test} 1
        greenwave.cache.requests{cache=test,result=coalesced} 1
        greenwave.cache.requests{cache=test,result=error} 1
        greenwave.cache.requests{cache=test,result=hit} 2
        greenwave.cache.requests{cache=test,result=miss} 1
    "#]]
    .assert_eq(&recording.moved());
    assert_eq!(recording.values("greenwave.cache.load.duration{cache=test}").len(), 2);
    assert_eq!((stats.hits, stats.misses, stats.coalesced, stats.errors, stats.loads), (2, 1, 1, 1, 2));
    assert_eq!((stats.requests(), stats.hit_ratio(), stats.entries), (5, 0.4, 0));
}

#[tokio::test(start_paused = true)]
async fn hits_reach_the_recorder_though_nobody_asks_for_the_stats() {
    let recording = Recording::default();
    let cache: Cache<u64, u64> = recording.of(|| Cache::builder("test").build());
    cache.insert(1, 7).await;
    cache.get(&1).await.unwrap();
    sleep(Duration::from_millis(300)).await;
    assert_eq!(recording.count("greenwave.cache.requests{cache=test,result=hit}"), 1);
    cache.get(&1).await.unwrap();
    drop(cache);
    assert_eq!(
        recording.count("greenwave.cache.requests{cache=test,result=hit}"),
        2,
        "not even the last is lost"
    );
}

#[tokio::test]
async fn stats_say_what_became_of_the_entries() {
    let recording = Recording::default();
    let config =
        CacheConfig { max_entries: 10, max_bytes: 1_000, max_value_bytes: 500, ..Default::default() };
    let cache: Cache<u64, u64> =
        recording.of(|| Cache::builder("test").config(config).weigher(|_, value| *value).build());
    for key in 0..20 {
        cache.insert(key, 100).await;
    }
    cache.get_or_load(&100, || Source::default().load(501)).await.unwrap();
    cache.get_or_load(&101, || async { Ok::<Option<u64>, Failed>(None) }).await.unwrap();
    let stats = cache.stats();
    assert_eq!(stats.evictions + stats.entries, 20);
    assert!(stats.bytes <= 1_000 && stats.bytes == stats.entries * 100, "{stats:?}");
    assert_eq!((stats.too_large, stats.absent, stats.loads), (1, 1, 2));
    assert_eq!(recording.count("greenwave.cache.evictions{cache=test}"), stats.evictions);
    let sent = serde_json::to_string(&stats).unwrap();
    assert_eq!(serde_json::from_str::<greenwave_cache::CacheStats>(&sent).unwrap(), stats);
    let fields =
        serde_json::to_value(&stats).unwrap().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    expect!["absent bytes coalesced discarded entries errors evictions failed_loads hits invalidations load_seconds loads misses name remote_failures remote_hits remote_skipped remote_unconfirmed stale too_large undecodable"]
        .assert_eq(&fields.join(" "));
}

#[test]
fn the_readme_tables_every_signal() {
    for name in telemetry::METRICS {
        assert!(README.contains(&format!("| `{name}` |")), "{name} is not in the README's table");
    }
    assert!(README.contains(&format!("`{}`", telemetry::REMOTE_TARGET)));
}

/// Every field of the config with its default, as the README's table shows them, which may have several in a line.
fn check_config(config: serde_json::Value) {
    for (field, default) in config.as_object().unwrap() {
        let default = match default {
            serde_json::Value::Null => "none".to_owned(),
            serde_json::Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let tells = |line: &str| {
            let mut cells = line.split(" | ");
            cells.next().is_some_and(|fields| fields.contains(&format!("`{field}`")))
                && cells.next() == Some(&default)
        };
        assert!(README.lines().any(tells), "{field} = {default}");
    }
}

#[test]
fn the_readme_tables_every_default() {
    check_config(serde_json::to_value(CacheConfig::default()).unwrap());
    #[cfg(feature = "redis")]
    check_config(serde_json::to_value(greenwave_cache::RemoteConfig::default()).unwrap());
}

#[test]
fn a_config_reads_what_it_knows_and_refuses_the_rest() {
    let config: CacheConfig = serde_json::from_str(r#"{ "ttl": "30s", "max_entries": 10 }"#).unwrap();
    let ttl = std::time::Duration::from_secs(30);
    assert_eq!(config, CacheConfig { ttl, max_entries: 10, ..Default::default() });
    let error = serde_json::from_str::<CacheConfig>(r#"{ "tll": "30s" }"#).unwrap_err().to_string();
    assert!(error.contains("unknown field `tll`"), "{error}");
}
