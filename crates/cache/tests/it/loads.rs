use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, LoadError};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{Failed, Gate, Source};

const CALLERS: usize = 1_000;

fn cache() -> Cache<u64, u64> {
    Cache::builder("test").build()
}

fn cache_with(config: CacheConfig) -> Cache<u64, u64> {
    Cache::builder("test").config(config).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_callers_of_a_cold_key_cause_one_load() {
    let (cache, source) = (cache(), Source::default());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (cache, source) = (cache.clone(), source.clone());
        callers.spawn(async move {
            let load = || async {
                sleep(Duration::from_millis(20)).await;
                source.load(7).await
            };
            cache.get_or_load(&1, load).await.unwrap().unwrap()
        });
    }
    let answers = callers.join_all().await;
    assert_eq!(source.loads(), 1);
    assert_eq!(answers.len(), CALLERS);
    assert!(answers.iter().all(|answer| Arc::ptr_eq(answer, &answers[0])), "all share one value");
}

// Loads that end at once: callers come while one begins, flies, lands and is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_that_come_while_a_load_ends_do_not_repeat_it() {
    let (cache, source) = (cache(), Source::default());
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (cache, source) = (cache.clone(), source.clone());
        callers.spawn(async move {
            for key in 0..5_000 {
                cache.get_or_load(&key, || source.clone().load(key)).await.unwrap();
            }
        });
    }
    callers.join_all().await;
    assert_eq!(source.loads(), 5_000);
}

// On one thread, all callers are there before the first load begins.
#[tokio::test]
async fn a_failing_source_is_asked_once_and_all_get_its_error() {
    let (cache, loads) = (cache(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (cache, loads) = (cache.clone(), Arc::clone(&loads));
        callers.spawn(async move {
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                Err::<Option<u64>, _>(Failed)
            };
            cache.get_or_load(&1, load).await.unwrap_err()
        });
    }
    let errors = callers.join_all().await;
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(errors.len(), CALLERS);
    assert!(errors.iter().all(|error| matches!(error, LoadError::Source(error) if **error == Failed)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_answers_those_who_come_shortly_after_it() {
    let cache = cache_with(CacheConfig { error_ttl: Duration::from_millis(100), ..Default::default() });
    let fail = || async { Err::<Option<u64>, _>(Failed) };
    let load = || Source::default().load(7);
    cache.get_or_load(&1, fail).await.unwrap_err();
    sleep(Duration::from_millis(90)).await;
    let error = cache.get_or_load(&1, load).await.unwrap_err();
    assert!(matches!(error, LoadError::Source(error) if *error == Failed));
    assert_eq!(cache.get(&1).await, None);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(cache.get_or_load(&1, load).await.unwrap().as_deref(), Some(&7));

    cache.get_or_load(&2, fail).await.unwrap_err();
    cache.invalidate(&2).await;
    assert_eq!(cache.get_or_load(&2, load).await.unwrap().as_deref(), Some(&7), "an invalidation ends it");
    cache.get_or_load(&3, fail).await.unwrap_err();
    cache.insert(3, 8).await;
    assert_eq!(cache.get_or_load(&3, load).await.unwrap().as_deref(), Some(&8), "and so does an insertion");
    cache.get_or_load(&4, fail).await.unwrap_err();
    cache.clear().await;
    assert_eq!(cache.get_or_load(&4, load).await.unwrap().as_deref(), Some(&7));
}

#[tokio::test]
async fn a_failure_that_is_kept_keeps_nothing_else() {
    let cache = cache_with(CacheConfig { error_ttl: Duration::MAX, ..Default::default() });
    let value = Arc::new(7);
    cache.insert(1, Arc::clone(&value)).await;
    cache.get_or_load(&2, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    cache.settled().await;
    drop(cache);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_not_kept_where_its_ttl_is_zero() {
    let cache = cache_with(CacheConfig { error_ttl: Duration::ZERO, ..Default::default() });
    cache.get_or_load(&1, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    assert_eq!(cache.get_or_load(&1, || Source::default().load(7)).await.unwrap().as_deref(), Some(&7));
}

#[tokio::test]
async fn a_panicking_load_is_an_error_for_all_who_wait() {
    let cache = cache();
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let cache = cache.clone();
        callers.spawn(async move {
            let load = || async { panic!("out of {}", "tea") };
            cache.get_or_load::<Option<u64>, Failed, _, _>(&1, load).await.unwrap_err()
        });
    }
    for error in callers.join_all().await {
        assert_eq!(error.to_string(), "the load panicked: out of tea");
    }
}

#[tokio::test]
async fn a_load_that_panics_before_its_first_await_is_an_error_too() {
    fn load() -> std::future::Ready<Result<Option<u64>, Failed>> {
        panic!("no tea at all")
    }
    let cache = cache();
    let error = cache.get_or_load(&1, load).await.unwrap_err();
    assert_eq!(error.to_string(), "the load panicked: no tea at all");
    cache.invalidate(&1).await;
    let again = cache.get_or_load(&1, || Source::default().load(7)).await;
    assert_eq!(again.unwrap().as_deref(), Some(&7));
}

#[tokio::test]
async fn a_dropped_caller_neither_stops_nor_repeats_the_load() {
    let (cache, source, gate) = (cache(), Source::default(), Gate::new());
    let leader = tokio::spawn({
        let (cache, source, gate) = (cache.clone(), source.clone(), gate.clone());
        async move { cache.get_or_load(&1, || source.load_behind(gate, 7)).await }
    });
    gate.arrival().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());

    let waiter = cache.get_or_load(&1, || source.clone().load(8));
    let (waiter, ()) = tokio::join!(waiter, async { gate.open() });
    assert_eq!(waiter.unwrap().as_deref(), Some(&7));
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7));
    assert_eq!(source.loads(), 1);
}

#[tokio::test]
async fn a_load_fills_the_cache_when_all_callers_are_gone() {
    let (cache, source, gate) = (cache(), Source::default(), Gate::new());
    let load = cache.get_or_load(&1, || source.clone().load_behind(gate.clone(), 7));
    tokio::select! {
        _ = load => panic!("the gate is closed"),
        () = gate.arrival() => {}
    }
    gate.open();
    cache.settled().await;
    assert_eq!(cache.get(&1).await.as_deref(), Some(&7));
    assert_eq!(source.loads(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_takes_too_long_is_given_up() {
    let config = CacheConfig { load_timeout: Duration::from_secs(5), ..Default::default() };
    let cache = cache_with(config);
    let error = cache.get_or_load::<Option<u64>, Failed, _, _>(&1, pending).await.unwrap_err();
    assert!(matches!(error, LoadError::TimedOut(after) if after == Duration::from_secs(5)), "{error:?}");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(cache.get_or_load(&1, || Source::default().load(7)).await.unwrap().as_deref(), Some(&7));
}

#[tokio::test]
async fn absence_is_passed_on_and_not_kept() {
    let (cache, source) = (cache(), Source::default());
    for asked in 1..=2 {
        let source = source.clone();
        let loads = source.clone();
        let load = || async { source.load(()).await.map(|_| None) };
        assert_eq!(cache.get_or_load(&1, load).await.unwrap(), None);
        assert_eq!(loads.loads(), asked);
    }
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn callers_with_other_error_types_share_values_but_not_errors() {
    let (cache, gate) = (cache(), Gate::new());
    let leader = cache.get_or_load(&1, || {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Err::<Option<u64>, _>(Failed)
        }
    });
    let other = async {
        gate.arrival().await;
        let waiter = cache.get_or_load(&1, || async { Ok::<_, io::Error>(Some(8)) });
        tokio::join!(waiter, async { gate.open() }).0
    };
    let (leader, other) = tokio::join!(leader, other);
    assert!(matches!(leader.unwrap_err(), LoadError::Source(error) if *error == Failed));
    assert_eq!(other.unwrap().as_deref(), Some(&8), "it asked for itself");
}

#[test]
fn a_load_whose_runtime_ends_is_an_error_for_those_who_wait_elsewhere() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (cache, gate) = (cache(), Gate::new());
    let (leading, waiting) = (runtime(), runtime());
    leading.spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move { cache.get_or_load(&1, || Source::default().load_behind(gate, 7)).await }
    });
    waiting.block_on(gate.arrival());
    let waiter = waiting.spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1, || Source::default().load(8)).await }
    });
    leading.shutdown_background();
    match waiting.block_on(waiter).unwrap() {
        // It joined the load before that was cut off, or came after and loaded for itself.
        Err(error) => assert!(matches!(error, LoadError::Aborted), "{error:?}"),
        Ok(value) => assert_eq!(value.as_deref(), Some(&8)),
    }
}

#[tokio::test]
async fn a_loads_error_shows_each_message_once() {
    let error = cache().get_or_load(&1, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    assert_eq!(error.to_string(), "the load failed");
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<Failed>());
    // An error that is no std error, like anyhow's, is carried all the same.
    let error =
        cache().get_or_load(&1, || async { Err::<Option<u64>, _>("plain".to_owned()) }).await.unwrap_err();
    assert!(matches!(error, LoadError::Source(error) if *error == "plain"));
}

#[tokio::test]
async fn a_failure_that_is_kept_keeps_nothing_when_the_cache_is_gone() {
    let config = CacheConfig { error_ttl: Duration::from_secs(3600), ..Default::default() };
    let cache = Cache::<Arc<str>, u64>::builder("test").config(config).build();
    let key: Arc<str> = "key".into();
    for _ in 0..2 {
        cache.get_or_load(&key, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    }
    cache.settled().await;
    assert_eq!(cache.stats().loads, 1, "it is kept");
    drop(cache);
    let gone = async {
        while Arc::strong_count(&key) > 1 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("the key is dropped with the cache");
}
