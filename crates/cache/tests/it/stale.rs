use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, LoadError, Loaded};
use tokio::time::{Instant, sleep};

use crate::support::{Failed, Gate, Recording};

const SECOND: Duration = Duration::from_secs(1);

/// A source whose value is how often it was asked, and which may fail or be slow.
#[derive(Clone, Default)]
struct Flaky {
    loads: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
}

impl Flaky {
    fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }

    fn load(&self) -> impl Future<Output = Result<Option<u64>, Failed>> + Send + use<> {
        let this = self.clone();
        async move {
            let number = this.loads.fetch_add(1, Ordering::SeqCst) + 1;
            if this.hangs.load(Ordering::SeqCst) {
                sleep(10 * SECOND).await;
            }
            match this.fails.load(Ordering::SeqCst) {
                true => Err(Failed),
                false => Ok(Some(number)),
            }
        }
    }
}

fn cache(config: CacheConfig) -> Cache<u64, u64> {
    Cache::builder("test").config(config).build()
}

/// Fresh for exactly a minute.
fn minute() -> CacheConfig {
    CacheConfig { ttl: 60 * SECOND, ttl_jitter: 0.0, ..Default::default() }
}

async fn get(cache: &Cache<u64, u64>, source: &Flaky) -> u64 {
    *cache.get_or_load(&1, || source.load()).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_stale_entry_is_served_at_once_while_it_is_loaded_anew() {
    let recording = Recording::default();
    let config = CacheConfig { stale_while_revalidate: 60 * SECOND, ..minute() };
    let (cache, source) = (recording.of(|| cache(config)), Flaky::default());
    assert_eq!(get(&cache, &source).await, 1);
    sleep(61 * SECOND).await;
    source.hangs.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(&cache, &source).await, 1);
    }
    assert_eq!(asked.elapsed(), Duration::ZERO, "nobody waits");
    assert_eq!(cache.get(&1).await, None, "who cannot load gets nothing that is stale");
    cache.settled().await;
    assert_eq!(source.loads(), 2, "one load in the background");
    assert_eq!(get(&cache, &source).await, 2);
    assert_eq!(recording.count("greenwave.cache.requests{cache=test,result=stale}"), 100);

    sleep(121 * SECOND).await;
    assert_eq!(get(&cache, &source).await, 3, "beyond its time it is not served");
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_is_not_served_as_stale() {
    let hour = 3600 * SECOND;
    let config = CacheConfig {
        stale_while_revalidate: hour,
        stale_if_error: hour,
        soft_timeout: SECOND,
        refresh_after: 0.1,
        ..minute()
    };
    for way in 0..4 {
        let (cache, source) = (cache(config.clone()), Flaky::default());
        let load = || async { Ok::<_, Failed>(Loaded::value(7).tags(["red"])) };
        cache.get_or_load(&1, load).await.unwrap();
        sleep(90 * SECOND).await;
        match way {
            0 => cache.invalidate(&1).await,
            1 => cache.invalidate_tag("red").await,
            2 => cache.clear().await,
            _ => cache.invalidate_many(&[2, 1]).await,
        }
        source.fails.store(true, Ordering::SeqCst);
        let error = cache.get_or_load(&1, || source.load()).await.unwrap_err();
        assert!(matches!(error, LoadError::Source(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_asked_for_is_refreshed_before_it_is_over() {
    let (cache, source) = (cache(CacheConfig { refresh_after: 0.5, ..minute() }), Flaky::default());
    get(&cache, &source).await;
    sleep(29 * SECOND).await;
    get(&cache, &source).await;
    cache.settled().await;
    assert_eq!(source.loads(), 1, "not in the first half of its TTL");
    sleep(17 * SECOND).await;
    assert_eq!(get(&cache, &source).await, 1);
    assert_eq!(cache.get(&1).await.as_deref(), Some(&1), "it is fresh still");
    cache.settled().await;
    assert_eq!(source.loads(), 2, "in the last quarter for certain");
    sleep(20 * SECOND).await;
    assert_eq!(get(&cache, &source).await, 2, "and nobody has waited");
    assert_eq!(source.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn processes_do_not_refresh_at_the_same_age() {
    let mut refreshed = Vec::new();
    for _ in 0..20 {
        let (cache, source) = (cache(CacheConfig { refresh_after: 0.5, ..minute() }), Flaky::default());
        get(&cache, &source).await;
        let begun = Instant::now();
        while source.loads() == 1 {
            sleep(Duration::from_millis(100)).await;
            get(&cache, &source).await;
            cache.settled().await;
        }
        refreshed.push(begun.elapsed());
    }
    let (first, last) = (refreshed.iter().min().unwrap(), refreshed.iter().max().unwrap());
    assert!(*last - *first > 3 * SECOND, "{refreshed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_source_is_covered_by_the_stale_entry_and_left_alone() {
    let recording = Recording::default();
    let config = CacheConfig { stale_if_error: 600 * SECOND, retry_after: 5 * SECOND, ..minute() };
    let (cache, source) = (recording.of(|| cache(config)), Flaky::default());
    get(&cache, &source).await;
    sleep(61 * SECOND).await;
    source.fails.store(true, Ordering::SeqCst);
    for _ in 0..40 {
        assert_eq!(get(&cache, &source).await, 1);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(source.loads(), 2, "4 of 5 seconds");
    sleep(2 * SECOND).await;
    assert_eq!(get(&cache, &source).await, 1);
    assert_eq!(source.loads(), 3, "then it is tried again");
    assert_eq!(recording.count("greenwave.cache.load.failed{cache=test}"), 2, "covered, but not unheard of");

    source.fails.store(false, Ordering::SeqCst);
    sleep(6 * SECOND).await;
    assert_eq!(get(&cache, &source).await, 4, "and the caller gets what it brings");
    source.fails.store(true, Ordering::SeqCst);
    sleep(661 * SECOND).await;
    cache.get_or_load(&1, || source.load()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_failing_refresh_is_not_repeated_by_every_caller() {
    for config in [
        CacheConfig { stale_while_revalidate: 60 * SECOND, retry_after: 5 * SECOND, ..minute() },
        CacheConfig { refresh_after: 0.5, retry_after: 5 * SECOND, ..minute() },
    ] {
        let age = if config.refresh_after > 0.0 { 50 } else { 61 };
        let (cache, source) = (cache(config), Flaky::default());
        get(&cache, &source).await;
        source.fails.store(true, Ordering::SeqCst);
        sleep(age * SECOND).await;
        for _ in 0..40 {
            assert_eq!(get(&cache, &source).await, 1);
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(source.loads(), 2);
    }
}

// The failure of the load is kept for retry_after, for those with something to fall back on.
#[tokio::test(start_paused = true)]
async fn who_has_nothing_stale_is_not_throttled() {
    let config = CacheConfig {
        stale_while_revalidate: 2 * SECOND,
        retry_after: 60 * SECOND,
        error_ttl: Duration::ZERO,
        ..minute()
    };
    let (cache, source) = (cache(config), Flaky::default());
    get(&cache, &source).await;
    sleep(61 * SECOND).await;
    source.fails.store(true, Ordering::SeqCst);
    assert_eq!(get(&cache, &source).await, 1);
    cache.settled().await;
    source.fails.store(false, Ordering::SeqCst);
    sleep(2 * SECOND).await;
    assert_eq!(get(&cache, &source).await, 3, "it is past the time for stale values");
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_is_covered_by_the_stale_entry_and_goes_on() {
    let config = CacheConfig { stale_if_error: 600 * SECOND, soft_timeout: SECOND, ..minute() };
    let (cache, source) = (cache(config), Flaky::default());
    source.hangs.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    assert_eq!(get(&cache, &source).await, 1);
    assert_eq!(asked.elapsed(), 10 * SECOND, "without anything stale there is nothing but to wait");
    sleep(61 * SECOND).await;
    let asked = Instant::now();
    assert_eq!(get(&cache, &source).await, 1);
    assert_eq!(asked.elapsed().as_secs(), 1);
    assert_eq!(get(&cache, &source).await, 1, "another waits for the same load");
    sleep(10 * SECOND).await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&2), "the load was not given up");
    assert_eq!(source.loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_load_beyond_the_hard_timeout_is_covered_too() {
    let config = CacheConfig { stale_if_error: 600 * SECOND, load_timeout: 5 * SECOND, ..minute() };
    let (cache, source) = (cache(config), Flaky::default());
    get(&cache, &source).await;
    sleep(61 * SECOND).await;
    let asked = Instant::now();
    let answer = cache.get_or_load(&1, pending::<Result<Option<u64>, Failed>>).await;
    assert_eq!(answer.unwrap().as_deref(), Some(&1));
    assert_eq!(asked.elapsed(), 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_modified_begins_a_new_life() {
    let (cache, source) = (cache(minute()), Flaky::default());
    let first = {
        let load = || async { Ok::<_, Failed>(Loaded::value(7).tags(["red"])) };
        cache.get_or_load(&1, load).await.unwrap().unwrap()
    };
    sleep(61 * SECOND).await;
    assert_eq!(cache.get(&1).await, None);
    let revalidate = |prior: Option<Arc<u64>>| async move {
        assert_eq!(prior.as_deref(), Some(&7));
        Ok::<_, Failed>(Loaded::not_modified())
    };
    let again = cache.get_or_revalidate(&1, revalidate).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    sleep(59 * SECOND).await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7));
    cache.invalidate_tag("red").await;
    let load = move |prior: Option<Arc<u64>>| {
        assert_eq!(prior, None, "what was invalidated is no base for a comparison");
        source.load()
    };
    assert_eq!(cache.get_or_revalidate(&1, load).await.unwrap().as_deref(), Some(&1));

    // A source that takes for known what nobody knows.
    let nothing = |_| async { Ok::<_, Failed>(Loaded::not_modified()) };
    assert_eq!(cache.get_or_revalidate(&2, nothing).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_source_may_say_how_long_its_answer_is_good() {
    let cache = cache(minute());
    let load = |ttl| move || async move { Ok::<_, Failed>(Loaded::value(7).ttl(ttl)) };
    cache.get_or_load(&1, load(5 * SECOND)).await.unwrap();
    cache.get_or_load(&2, load(500 * SECOND)).await.unwrap();
    cache.get_or_load(&3, load(Duration::ZERO)).await.unwrap();
    cache.get_or_load(&4, load(Duration::MAX)).await.unwrap();
    assert_eq!(cache.get(&3).await, None, "zero is not at all");
    sleep(4 * SECOND).await;
    assert!(cache.get(&1).await.is_some());
    sleep(2 * SECOND).await;
    assert_eq!(cache.get(&1).await, None);
    sleep(490 * SECOND).await;
    assert!(cache.get(&2).await.is_some());
    sleep(5 * SECOND).await;
    assert_eq!(cache.get(&2).await, None);
    assert!(cache.get(&4).await.is_some(), "the end of time is not yet");
}

#[tokio::test]
async fn what_the_source_asks_not_to_keep_is_not_kept() {
    let cache = cache(minute());
    cache.insert(1, 6).await;
    cache.invalidate(&1).await;
    let load = || async { Ok::<_, Failed>(Loaded::value(7).no_store()) };
    assert_eq!(cache.get_or_load(&1, load).await.unwrap().as_deref(), Some(&7));
    assert_eq!(cache.get(&1).await, None);
    cache.insert(1, 6).await;
    cache.insert_loaded(1, Loaded::value(7).no_store()).await;
    assert_eq!(cache.get(&1).await, None, "nor is what was there before");
}

#[tokio::test(start_paused = true)]
async fn absence_is_kept_for_its_own_time() {
    let cache = cache(CacheConfig { absent_ttl: 5 * SECOND, ..minute() });
    let loads = AtomicU64::new(0);
    let ask = || {
        loads.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Failed>(None) }
    };
    for _ in 0..3 {
        assert_eq!(cache.get_or_load(&1, ask).await.unwrap(), None);
        assert_eq!(cache.get(&1).await, None);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    sleep(6 * SECOND).await;
    cache.get_or_load(&1, ask).await.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    cache.insert(1, 7).await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7));
}

// A refresh that is under way when the entry ends is the load that callers then wait for.
#[tokio::test(start_paused = true)]
async fn a_refresh_is_joined_by_those_who_cannot_do_without() {
    let (cache, source) = (cache(CacheConfig { refresh_after: 0.5, ..minute() }), Flaky::default());
    get(&cache, &source).await;
    sleep(50 * SECOND).await;
    let gate = Gate::new();
    let refresh = || {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok::<_, Failed>(Some(8))
        }
    };
    assert_eq!(cache.get_or_load(&1, refresh).await.unwrap().as_deref(), Some(&1));
    gate.arrival().await;
    sleep(11 * SECOND).await;
    let (answer, ()) = tokio::join!(cache.get_or_load(&1, || source.load()), async {
        sleep(SECOND).await;
        gate.open();
    });
    assert_eq!(answer.unwrap().as_deref(), Some(&8));
    assert_eq!(source.loads(), 1);
}

/// What another process left in Redis is as good a cover as what was in memory.
#[cfg(feature = "redis")]
#[tokio::test]
async fn what_is_stale_in_redis_is_served_and_revalidated_too() {
    let hour = 3600 * SECOND;
    let config = CacheConfig {
        ttl: Duration::from_millis(20),
        remote_ttl: Duration::from_millis(20),
        stale_if_error: hour,
        ..Default::default()
    };
    let server = greenwave_test_servers::Server::redis();
    let url = server.url();
    let cache = |config: &CacheConfig| {
        let remote = crate::remote::patient(&url);
        Cache::<u64, u64>::builder("test").config(config.clone()).remote(remote).build()
    };
    let first = cache(&config);
    first.get_or_load(&1, || async { Ok::<_, Failed>(Some(7)) }).await.unwrap();
    first.settled().await;
    // That it is past its end then is certain, however busy the machine.
    sleep(Duration::from_millis(50)).await;

    let fail = || async { Err::<Option<u64>, _>(Failed) };
    assert_eq!(cache(&config).get(&1).await, None);
    assert_eq!(cache(&config).get_or_load(&1, fail).await.unwrap().as_deref(), Some(&7));
    let behind = cache(&CacheConfig {
        stale_while_revalidate: hour,
        stale_if_error: Duration::ZERO,
        ..config.clone()
    });
    let gate = Gate::new();
    let slow = || {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Err::<Option<u64>, _>(Failed)
        }
    };
    assert_eq!(behind.get_or_load(&1, slow).await.unwrap().as_deref(), Some(&7), "nobody waits");
    gate.open();
    behind.settled().await;

    let renewed = cache(&CacheConfig { ttl: hour, remote_ttl: hour, ..config });
    let check = |prior: Option<Arc<u64>>| async move {
        assert_eq!(prior.as_deref(), Some(&7));
        Ok::<_, Failed>(Loaded::not_modified())
    };
    assert_eq!(renewed.get_or_revalidate(&1, check).await.unwrap().as_deref(), Some(&7));
    renewed.settled().await;
    assert_eq!(cache(&CacheConfig::default()).get(&1).await.as_deref(), Some(&7), "a new life for all");
}
