use greenwave_cache::Cache;

use crate::support::{Gate, Recording, Source};

/// A cache with one load of the key 1 under way, which will bring 7.
struct Loading {
    cache: Cache<u64, u64>,
    source: Source,
    gate: Gate,
    recording: Recording,
    caller: tokio::task::JoinHandle<Option<u64>>,
}

async fn loading() -> Loading {
    let recording = Recording::default();
    let cache: Cache<u64, u64> = recording.of(|| Cache::builder("test").build());
    let (source, gate) = (Source::default(), Gate::new());
    let caller = tokio::spawn({
        let (cache, source, gate) = (cache.clone(), source.clone(), gate.clone());
        async move { cache.get_or_load(&1, || source.load_behind(gate, 7)).await.unwrap().map(|value| *value) }
    });
    gate.arrival().await;
    Loading { cache, source, gate, recording, caller }
}

#[tokio::test]
async fn an_invalidation_during_a_load_wins() {
    let Loading { cache, source, gate, recording, caller } = loading().await;
    cache.invalidate(&1).await;
    gate.open();
    assert_eq!(caller.await.unwrap(), Some(7), "who waited gets what was loaded");
    cache.settled().await;
    assert_eq!(cache.get(&1).await, None, "but it is not kept");
    assert_eq!(recording.count("greenwave.cache.load.discarded{cache=test}"), 1);

    let after = cache.get_or_load(&1, || source.clone().load(8)).await;
    assert_eq!(after.unwrap().as_deref(), Some(&8));
}

#[tokio::test]
async fn who_comes_after_an_invalidation_does_not_wait_for_the_old_load() {
    let Loading { cache, source, gate, caller, .. } = loading().await;
    cache.invalidate(&1).await;
    let after = cache.get_or_load(&1, || source.clone().load(8)).await;
    assert_eq!(after.unwrap().as_deref(), Some(&8), "while the old load still stands at its gate");
    gate.open();
    assert_eq!(caller.await.unwrap(), Some(7));
    cache.settled().await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&8), "the old load does not replace the new value");
    assert_eq!(source.loads(), 2);
}

#[tokio::test]
async fn an_insert_during_a_load_wins() {
    let Loading { cache, gate, caller, .. } = loading().await;
    cache.insert(1, 8).await;
    gate.open();
    assert_eq!(caller.await.unwrap(), Some(7));
    cache.settled().await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&8));
}

#[tokio::test]
async fn another_keys_invalidation_does_not_disturb_a_load() {
    let Loading { cache, gate, caller, .. } = loading().await;
    for other in 2..1_000 {
        cache.invalidate(&other).await;
    }
    gate.open();
    assert_eq!(caller.await.unwrap(), Some(7));
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7));
}

#[tokio::test]
async fn many_keys_are_invalidated_in_one_call() {
    let Loading { cache, gate, caller, .. } = loading().await;
    cache.insert(2, 2).await;
    cache.insert(3, 3).await;
    cache.invalidate_many(&[1, 2, 2]).await;
    gate.open();
    assert_eq!(caller.await.unwrap(), Some(7));
    cache.settled().await;
    assert_eq!((cache.get(&1).await, cache.get(&2).await), (None, None));
    assert!(cache.get(&3).await.is_some());
}
