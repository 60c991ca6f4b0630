use greenwave_cache::{Cache, Loaded};

use crate::support::{Failed, Gate, Source};

fn cache() -> Cache<u64, u64> {
    Cache::builder("test").build()
}

#[tokio::test]
async fn a_tag_takes_all_of_its_entries_along_and_no_other() {
    let cache = cache();
    for key in 0..100 {
        let tags = if key % 2 == 0 { vec!["even", "any"] } else { vec!["any"] };
        let load = || async move { Ok::<_, Failed>(Loaded::value(key).tags(tags)) };
        cache.get_or_load(&key, load).await.unwrap();
    }
    cache.insert(100, 100).await;
    cache.invalidate_tag("even").await;
    for key in 0..100 {
        assert_eq!(cache.get(&key).await.is_some(), key % 2 == 1, "{key}");
    }
    cache.invalidate_tag("nobody's").await;
    assert!(cache.get(&1).await.is_some());
    cache.invalidate_tag("any".to_owned()).await;
    assert_eq!(cache.get(&1).await, None);
    assert!(cache.get(&100).await.is_some(), "what has no tag stays");
    cache.insert_loaded(1, Loaded::value(7).tags(["any"])).await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7), "what comes later is good");
}

/// A load of the key 1 that brings 7 with the tag red, once the gate is open.
async fn load(cache: Cache<u64, u64>, gate: Gate) -> Option<u64> {
    let load = || async move {
        gate.pass().await;
        Ok::<_, Failed>(Loaded::value(7).tags(["red"]))
    };
    cache.get_or_load(&1, load).await.unwrap().map(|value| *value)
}

#[tokio::test]
async fn a_tag_invalidated_during_a_load_wins_though_nobody_knew_that_it_would_come() {
    let (cache, gate) = (cache(), Gate::new());
    let leader = tokio::spawn(load(cache.clone(), gate.clone()));
    gate.arrival().await;
    cache.invalidate_tag("red").await;
    let source = Source::default();
    let after = cache.get_or_load(&1, || source.clone().load(8));
    let (after, ()) = tokio::join!(after, async { gate.open() });
    assert_eq!(leader.await.unwrap(), Some(7), "who came before gets what was loaded");
    assert_eq!(after.unwrap().as_deref(), Some(&8), "who came after does not");
    assert_eq!(cache.get(&1).await.as_deref(), Some(&8));
}

#[tokio::test]
async fn another_tag_does_not_disturb_a_load() {
    let (cache, gate) = (cache(), Gate::new());
    let leader = tokio::spawn(load(cache.clone(), gate.clone()));
    gate.arrival().await;
    cache.invalidate_tag("blue").await;
    let source = Source::default();
    let after = cache.get_or_load(&1, || source.clone().load(8));
    let (after, ()) = tokio::join!(after, async { gate.open() });
    assert_eq!((leader.await.unwrap(), after.unwrap().as_deref()), (Some(7), Some(&7)));
    assert_eq!(source.loads(), 0);
}

#[tokio::test]
async fn clearing_forgets_everything_and_what_is_being_loaded() {
    let (cache, gate) = (cache(), Gate::new());
    for key in 2..1_000 {
        cache.insert(key, key).await;
    }
    let leader = tokio::spawn(load(cache.clone(), gate.clone()));
    gate.arrival().await;
    cache.clear().await;
    let after = cache.get_or_load(&1, || Source::default().load(8)).await;
    assert_eq!(after.unwrap().as_deref(), Some(&8), "nobody waits for a load from before");
    gate.open();
    assert_eq!(leader.await.unwrap(), Some(7));
    cache.settled().await;
    for key in 2..1_000 {
        assert_eq!(cache.get(&key).await, None);
    }
    assert_eq!(cache.get(&1).await.as_deref(), Some(&8));
}
