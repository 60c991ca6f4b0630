use std::time::Duration;

use greenwave_cache::{Cache, CacheConfig};
use tokio::time::sleep;

use crate::support::{Recording, Source};

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
async fn bytes_bound_the_cache_where_they_are_weighed() {
    let recording = Recording::default();
    let config = CacheConfig { max_bytes: 100_000, max_entries: 10, ..Default::default() };
    let cache = recording.of(|| {
        let builder = Cache::<u64, Vec<u8>>::builder("test").config(config.clone());
        builder.weigher(|_, value| value.len() as u64).build()
    });
    for key in 0..1_000 {
        cache.insert(key, vec![0; 1_000]).await;
    }
    let mut kept = 0;
    for key in 0..1_000 {
        kept += cache.get(&key).await.map_or(0, |value| value.len());
    }
    assert!((50_000..=100_000).contains(&kept), "{kept}");
    let evicted = recording.count("greenwave.cache.evictions{cache=test}");
    assert_eq!(evicted, 1_000 - kept as u64 / 1_000);

    // What does not fit at all is passed on.
    cache.insert(1, vec![0; 200_000]).await;
    assert_eq!(cache.get(&1).await, None);
    // What weighs nothing has to go too.
    let config = CacheConfig { max_bytes: 1_000, ..config };
    let weightless = Cache::<u64, u64>::builder("test").config(config).weigher(|_, _| 0).build();
    for key in 0..2_000 {
        weightless.insert(key, key).await;
    }
    assert!(weightless.stats().entries <= 1_000);
}

#[tokio::test]
async fn a_value_that_is_too_large_is_passed_on_and_not_kept() {
    let recording = Recording::default();
    let config = CacheConfig { max_value_bytes: 10, ..Default::default() };
    let cache: Cache<u64, String> = recording
        .of(|| Cache::builder("test").config(config).weigher(|_, value: &String| value.len() as u64).build());
    for (text, kept) in [("short", true), ("much too long", false)] {
        let loaded = cache.get_or_load(&1, || Source::default().load(text.to_owned())).await.unwrap();
        assert_eq!(loaded.as_deref().map(String::as_str), Some(text));
        assert_eq!(cache.get(&1).await.is_some(), kept);
        cache.invalidate(&1).await;
    }
    cache.insert(1, "short".to_owned()).await;
    cache.insert(1, "much too long".to_owned()).await;
    assert_eq!(cache.get(&1).await, None, "nor is what was there before");
    assert_eq!(recording.count("greenwave.cache.load.too_large{cache=test}"), 2);
}

#[tokio::test(start_paused = true)]
async fn entries_that_came_together_do_not_end_together() {
    let config = CacheConfig { ttl: Duration::from_secs(100), ttl_jitter: 0.5, ..Default::default() };
    let cache = cache(config);
    for key in 0..1_000 {
        cache.insert(key, key).await;
    }
    let mut left = Vec::new();
    for _ in 0..4 {
        sleep(Duration::from_secs(20)).await;
        let mut kept = 0;
        for key in 0..1_000 {
            kept += usize::from(cache.get(&key).await.is_some());
        }
        left.push(kept);
    }
    assert_eq!(left[0..2], [1_000, 1_000], "half of the TTL is certain");
    assert!((700..900).contains(&left[2]) && (300..500).contains(&left[3]), "{left:?}");
    sleep(Duration::from_secs(21)).await;
    for key in 0..1_000 {
        assert_eq!(cache.get(&key).await, None);
    }
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
