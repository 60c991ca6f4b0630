use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, LoadError, Loaded};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};

use crate::support::{Failed, Gate, Source};

type Answers = Result<Vec<(u64, Option<u64>)>, Failed>;

/// A source of squares that notes what it is asked for.
#[derive(Clone, Default)]
struct Squares {
    asked: Arc<Mutex<Vec<Vec<u64>>>>,
}

impl Squares {
    fn load(&self) -> impl Fn(Vec<u64>) -> std::future::Ready<Answers> + Send + Sync + 'static {
        let asked = Arc::clone(&self.asked);
        move |mut keys| {
            keys.sort_unstable();
            asked.lock().unwrap().push(keys.clone());
            std::future::ready(Ok(keys.into_iter().map(|key| (key, Some(key * key))).collect()))
        }
    }

    /// What it was asked for since the last time.
    fn asked(&self) -> Vec<Vec<u64>> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn cache() -> Cache<u64, u64> {
    Cache::builder("test").build()
}

fn values(found: HashMap<u64, Arc<u64>>) -> Vec<(u64, u64)> {
    let mut values: Vec<_> = found.into_iter().map(|(key, value)| (key, *value)).collect();
    values.sort_unstable();
    values
}

#[tokio::test]
async fn one_load_brings_all_that_is_missing() {
    let (cache, squares) = (cache(), Squares::default());
    cache.insert(2, 4).await;
    let found = cache.get_many(&[1, 2, 3, 3, 1], squares.load()).await.unwrap();
    assert_eq!(values(found), [(1, 1), (2, 4), (3, 9)]);
    assert_eq!(squares.asked(), [[1, 3]]);
    let found = cache.get_many(&[1, 2, 3], squares.load()).await.unwrap();
    assert_eq!(values(found), [(1, 1), (2, 4), (3, 9)]);
    assert!(cache.get_many(&[], squares.load()).await.unwrap().is_empty());
    assert_eq!(squares.asked(), [[0; 0]; 0], "what is there is not asked for");
}

#[tokio::test]
async fn a_key_that_is_not_answered_is_absent_and_one_not_asked_for_ignored() {
    let config = CacheConfig { absent_ttl: Duration::from_secs(60), ..Default::default() };
    let cache = Cache::<u64, u64>::builder("test").config(config).build();
    let load = |_| async { Ok::<_, Failed>([(1, Some(1)), (3, None), (9, Some(81))]) };
    let found = cache.get_many(&[1, 2, 3], load).await.unwrap();
    assert_eq!(values(found), [(1, 1)]);
    assert_eq!(cache.get(&9).await, None);
    let squares = Squares::default();
    assert_eq!(values(cache.get_many(&[1, 2, 3], squares.load()).await.unwrap()), [(1, 1)]);
    assert_eq!(squares.asked(), [[0; 0]; 0], "absence is kept");
}

#[tokio::test]
async fn what_others_load_is_waited_for() {
    let (cache, source, gate, squares) = (cache(), Source::default(), Gate::new(), Squares::default());
    let single = tokio::spawn({
        let (cache, source, gate) = (cache.clone(), source.clone(), gate.clone());
        async move { cache.get_or_load(&1, || source.load_behind(gate, 7)).await }
    });
    gate.arrival().await;
    let many = cache.get_many(&[1, 2], squares.load());
    let (found, ()) = tokio::join!(many, async { gate.open() });
    assert_eq!(values(found.unwrap()), [(1, 7), (2, 4)]);
    assert_eq!(squares.asked(), [[2]]);
    single.await.unwrap().unwrap();

    // And the other way round.
    let load = {
        let gate = gate.clone();
        move |keys: Vec<u64>| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Ok::<_, Failed>(keys.into_iter().map(|key| (key, Some(8))))
            }
        }
    };
    let many = cache.get_many(&[3, 4], load);
    let single = async {
        gate.arrival().await;
        tokio::join!(cache.get_or_load(&4, || source.clone().load(9)), async { gate.open() }).0
    };
    let (found, single) = tokio::join!(many, single);
    assert_eq!(values(found.unwrap()), [(3, 8), (4, 8)]);
    assert_eq!(single.unwrap().as_deref(), Some(&8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_whose_keys_overlap_in_any_order_wait_for_each_other_without_end_never() {
    let (cache, loads) = (cache(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for caller in 0..64_u64 {
        let (cache, loads) = (cache.clone(), Arc::clone(&loads));
        callers.spawn(async move {
            for round in 0..20 {
                let mut keys: Vec<u64> = (0..10).map(|key| round * 10 + key).collect();
                keys.rotate_left(caller as usize % 10);
                keys.truncate(7);
                let loads = Arc::clone(&loads);
                let load = move |keys: Vec<u64>| {
                    loads.fetch_add(keys.len(), Ordering::SeqCst);
                    async move {
                        yield_now().await;
                        Ok::<_, Failed>(keys.into_iter().map(|key| (key, Some(key * key))))
                    }
                };
                let found = cache.get_many(&keys, load).await.unwrap();
                assert_eq!(found.len(), 7);
                assert!(found.iter().all(|(key, value)| **value == key * key));
            }
        });
    }
    callers.join_all().await;
    assert_eq!(loads.load(Ordering::SeqCst), 200, "each key once");
}

#[tokio::test]
async fn a_failure_is_shared_and_what_others_brought_is_kept() {
    let (cache, squares) = (cache(), Squares::default());
    let fail = |_| async { Err::<Vec<(u64, Option<u64>)>, _>(Failed) };
    cache.get_many(&[1, 2], squares.load()).await.unwrap();
    let error = cache.get_many(&[1, 2, 3, 4], fail).await.unwrap_err();
    assert!(matches!(error, LoadError::Source(error) if *error == Failed));
    cache.get_or_load(&4, || Source::default().load(7)).await.expect_err("it has just failed");
    assert_eq!(values(cache.get_many(&[1, 2], fail).await.unwrap()), [(1, 1), (2, 4)]);

    let panic = |_| async { panic!("no tea") };
    let error = cache.get_many::<Option<u64>, Failed, [(u64, Option<u64>); 0], _, _>(&[5], panic).await;
    assert_eq!(error.unwrap_err().to_string(), "the load panicked: no tea");
}

#[tokio::test]
async fn callers_with_other_error_types_share_values_but_not_errors() {
    let (cache, squares) = (cache(), Squares::default());
    cache.get_or_load(&1, || async { Err::<Option<u64>, _>(io::Error::other("no")) }).await.unwrap_err();
    assert_eq!(values(cache.get_many(&[1, 2], squares.load()).await.unwrap()), [(1, 1), (2, 4)]);
    assert_eq!(squares.asked(), [vec![2], vec![1]]);
}

#[tokio::test]
async fn a_dropped_call_neither_stops_nor_repeats_its_load() {
    let (cache, gate, squares) = (cache(), Gate::new(), Squares::default());
    let load = {
        let (gate, squares) = (gate.clone(), squares.load());
        move |keys| {
            let (gate, answer) = (gate.clone(), squares(keys));
            async move {
                gate.pass().await;
                answer.await
            }
        }
    };
    tokio::select! {
        _ = cache.get_many(&[1, 2], load) => panic!("the gate is closed"),
        () = gate.arrival() => {}
    }
    gate.open();
    cache.settled().await;
    assert_eq!(cache.get(&2).await.as_deref(), Some(&4));
    assert_eq!(squares.asked(), [[1, 2]]);
}

#[tokio::test]
async fn an_invalidation_during_the_load_wins_for_its_key_alone() {
    let (cache, gate) = (cache(), Gate::new());
    let load = {
        let gate = gate.clone();
        move |keys: Vec<u64>| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                let tagged = |key: u64| (key, Loaded::value(key).tags([format!("tag {key}")]));
                Ok::<_, Failed>(keys.into_iter().map(tagged))
            }
        }
    };
    let change = async {
        gate.arrival().await;
        cache.invalidate(&1).await;
        cache.invalidate_tag("tag 2").await;
        gate.open();
    };
    let (found, ()) = tokio::join!(cache.get_many(&[1, 2, 3], load), change);
    assert_eq!(found.unwrap().len(), 3, "who waited gets what was loaded");
    for (key, kept) in [(1, false), (2, false), (3, true)] {
        assert_eq!(cache.get(&key).await.is_some(), kept, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn stale_entries_are_served_and_refreshed_by_a_load_of_their_own() {
    let minute = Duration::from_secs(60);
    let config = CacheConfig {
        ttl: minute,
        ttl_jitter: 0.0,
        stale_while_revalidate: minute,
        stale_if_error: 60 * minute,
        ..Default::default()
    };
    let cache = Cache::<u64, u64>::builder("test").config(config).build();
    let squares = Squares::default();
    cache.insert(1, 0).await;
    cache.insert(2, 0).await;
    sleep(minute + minute / 2).await;
    let found = cache.get_many(&[1, 2, 3], squares.load()).await.unwrap();
    assert_eq!(values(found), [(1, 0), (2, 0), (3, 9)]);
    cache.settled().await;
    let mut asked = squares.asked();
    asked.sort();
    assert_eq!(asked, [vec![1, 2], vec![3]]);
    assert_eq!(values(cache.get_many(&[1, 2], squares.load()).await.unwrap()), [(1, 1), (2, 4)]);

    sleep(3 * minute).await;
    let fail = |_| async { Err::<Vec<(u64, Option<u64>)>, _>(Failed) };
    assert_eq!(values(cache.get_many(&[1, 2], fail).await.unwrap()), [(1, 1), (2, 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_costs_the_soft_timeout_once_however_many_keys_are_stale() {
    let (minute, soft_timeout) = (Duration::from_secs(60), Duration::from_millis(100));
    let config = CacheConfig { ttl: minute, stale_if_error: 60 * minute, soft_timeout, ..Default::default() };
    let cache = Cache::<u64, u64>::builder("test").config(config).build();
    let keys: Vec<u64> = (0..100).collect();
    for key in &keys {
        cache.insert(*key, *key).await;
    }
    sleep(2 * minute).await;
    let begun = Instant::now();
    let found = cache.get_many(&keys, |_| std::future::pending::<Answers>()).await.unwrap();
    assert_eq!(found.len(), 100);
    assert!(begun.elapsed() < 2 * soft_timeout, "{:?}", begun.elapsed());
}

type Request = (Vec<u64>, oneshot::Sender<HashMap<u64, u64>>);

/// Brings together what is asked for within a moment, as loaders for databases do; notes its queries.
fn coalescing(queries: Arc<Mutex<Vec<Vec<u64>>>>) -> mpsc::UnboundedSender<Request> {
    let (ask, mut asked) = mpsc::unbounded_channel::<Request>();
    tokio::spawn(async move {
        while let Some(first) = asked.recv().await {
            sleep(Duration::from_millis(1)).await;
            let mut batch = vec![first];
            batch.extend(std::iter::from_fn(|| asked.try_recv().ok()));
            let mut query: Vec<u64> = batch.iter().flat_map(|(keys, _)| keys.clone()).collect();
            query.sort_unstable();
            queries.lock().unwrap().push(query);
            sleep(Duration::from_millis(5)).await;
            for (keys, answer) in batch {
                answer.send(keys.into_iter().map(|key| (key, key * key)).collect()).unwrap();
            }
        }
    });
    ask
}

#[tokio::test(start_paused = true)]
async fn callers_with_other_keys_come_to_one_query_of_a_loader_that_coalesces_and_no_key_to_two() {
    let (cache, queries) = (cache(), Arc::<Mutex<Vec<Vec<u64>>>>::default());
    let ask = coalescing(Arc::clone(&queries));
    for expected in [(0..32).collect::<Vec<_>>(), vec![3, 20]] {
        let mut callers = JoinSet::new();
        for first in 0..30 {
            let (cache, ask) = (cache.clone(), ask.clone());
            let load = move |keys: Vec<u64>| {
                let (answer, answered) = oneshot::channel();
                ask.send((keys, answer)).unwrap();
                async move {
                    let found = answered.await.map_err(|_| Failed)?;
                    let squares = found.into_iter().map(|(key, square)| (key, Some(square)));
                    Ok::<_, Failed>(squares.collect::<Vec<_>>())
                }
            };
            callers.spawn(async move {
                let found = values(cache.get_many(&[first, first + 1, first + 2], load).await.unwrap());
                assert!(found.len() == 3 && found.iter().all(|(key, square)| *square == key * key));
            });
        }
        callers.join_all().await;
        assert_eq!(std::mem::take(&mut *queries.lock().unwrap()), [expected]);
        cache.invalidate_many(&[3, 20]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_key_of_a_call_is_one_read_and_its_part_of_the_load() {
    let (cache, keys) = (cache(), Vec::from_iter(0..100));
    let load = |keys: Vec<u64>| async move {
        sleep(Duration::from_secs(1)).await;
        Ok::<_, Failed>(keys.into_iter().map(|key| (key, Some(key))))
    };
    cache.get_many(&keys, load).await.unwrap();
    cache.get_many(&keys, load).await.unwrap();
    let (stats, would_be) = (cache.stats(), cache.would_be());
    assert_eq!((stats.misses, stats.hits), (100, 100));
    assert!((would_be.load_seconds - 2.0).abs() < 0.1, "{}", would_be.load_seconds);

    let fail = |_| async { Err::<Vec<(u64, Option<u64>)>, _>(Failed) };
    cache.get_many(&[98, 99, 100, 101, 102], fail).await.unwrap_err();
    let stats = cache.stats();
    assert_eq!((stats.errors, stats.requests()), (3, 205));
}
