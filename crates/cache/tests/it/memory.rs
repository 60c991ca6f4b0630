use std::time::Duration;

use greenwave_cache::{Cache, CacheConfig};
use tokio::time::sleep;

use crate::support::Source;

fn cache(config: CacheConfig) -> Cache<u64, u64> {
    Cache::builder("test").config(config).build()
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_served_until_its_ttl_ends() {
    let cache = cache(CacheConfig { ttl: Duration::from_secs(60), ..Default::default() });
    let source = Source::default();
    for _ in 0..2 {
        let loaded_before = source.loads();
        for _ in 0..3 {
            cache.get_or_load(&1, || source.clone().load(7)).await.unwrap();
            sleep(Duration::from_secs(15)).await;
        }
        assert_eq!(source.loads(), loaded_before + 1, "served from memory for 45 of 60 seconds");
        sleep(Duration::from_secs(16)).await;
        assert_eq!(cache.get(&1).await, None, "not served after 61");
    }
}

#[tokio::test]
async fn a_zero_ttl_keeps_nothing() {
    let cache = cache(CacheConfig { ttl: Duration::ZERO, ..Default::default() });
    let source = Source::default();
    for _ in 0..2 {
        cache.get_or_load(&1, || source.clone().load(7)).await.unwrap();
    }
    assert_eq!(source.loads(), 2);
    cache.insert(1, 8).await;
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn no_more_entries_stay_than_configured() {
    let cache = cache(CacheConfig { max_entries: 100, ..Default::default() });
    for key in 0..1_000 {
        cache.insert(key, key).await;
    }
    let mut kept = 0;
    for key in 0..1_000 {
        if let Some(value) = cache.get(&key).await {
            assert_eq!(*value, key);
            kept += 1;
        }
    }
    assert!((1..=100).contains(&kept), "{kept}");
}

#[tokio::test]
async fn a_clone_is_another_handle_to_the_same_cache() {
    let cache = cache(CacheConfig::default());
    cache.clone().insert(1, 7).await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7));
}

// What is not serialisable needs no remote, and no serde.
#[tokio::test]
async fn any_value_can_be_kept_in_memory() {
    struct Opaque(std::net::TcpListener);
    let cache = Cache::<&'static str, Opaque>::builder("test").build();
    cache.insert("a", Opaque(std::net::TcpListener::bind("127.0.0.1:0").unwrap())).await;
    let kept = cache.get(&"a").await.unwrap();
    assert!(kept.0.local_addr().is_ok());
}

#[test]
#[should_panic(expected = "must hold no colon")]
fn a_name_that_could_run_into_its_keys_is_refused() {
    let _ = Cache::<u64, u64>::builder("user:1");
}
