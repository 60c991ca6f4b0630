use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use expect_test::expect;
use greenwave_cache::{Held, LoadError, WeakCache, WeakStats};
use tokio::task::JoinSet;

use crate::support::{Failed, Gate, Recording};

fn cache<V>() -> WeakCache<u64, V> {
    WeakCache::builder("test").build()
}

fn in_use<V>(cache: &WeakCache<u64, V>) -> (u64, u64) {
    let WeakStats { entries, bytes, .. } = cache.stats();
    (entries, bytes)
}

#[test]
fn an_entry_lives_as_long_as_somebody_holds_it_and_counts_once() {
    let cache = WeakCache::<u64, Vec<u8>>::builder("test").weigher(|_, bytes| bytes.len() as u64).build();
    assert!(cache.get(&1).is_none());
    let first = cache.get_or_insert_with(&1, || vec![0; 100]);
    let second = cache.get_or_insert_with(&1, || unreachable!("it is there"));
    let third = cache.get(&1).unwrap();
    let other = cache.get_or_insert_with(&2, || vec![0; 10]);
    assert!(std::ptr::eq(&*first, &*second) && std::ptr::eq(&*first, &*third), "all hold the same");
    assert_eq!((Held::key(&first), Held::key(&other)), (&1, &2));
    assert_eq!(in_use(&cache), (2, 110));
    drop((first, third));
    assert_eq!(in_use(&cache), (2, 110));
    drop(second);
    assert_eq!(in_use(&cache), (1, 10));
    assert!(cache.get(&1).is_none());
    let anew = cache.get_or_insert_with(&1, Vec::new);
    assert!(anew.is_empty(), "a new life begins anew");
}

#[test]
fn what_is_held_outlives_the_cache() {
    let cache = cache();
    let held = cache.get_or_insert_with(&1, || 7);
    drop(cache);
    assert_eq!(*held, 7);
}

#[test]
fn requests_and_what_is_alive_are_counted() {
    let recording = Recording::default();
    let cache = recording.of(|| WeakCache::<u64, u64>::builder("test").weigher(|_, _| 8).build());
    assert!(cache.get(&1).is_none());
    let held = cache.get_or_insert_with(&1, || 7);
    let _same = cache.get(&1).unwrap();
    let _other = cache.get_or_insert_with(&2, || 7);
    drop(cache.get_or_insert_with(&3, || 7));
    drop(held);
    expect![[r#"
        greenwave.cache.bytes{cache=test} 16
        greenwave.cache.entries{cache=test} 2
        greenwave.cache.requests{cache=test,result=hit} 1
        greenwave.cache.requests{cache=test,result=miss} 4
    "#]]
    .assert_eq(&recording.moved());
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.coalesced, stats.errors), (1, 4, 0, 0));
}

/// A value that knows how many values its key has.
struct Life(Arc<AtomicUsize>);

impl Life {
    fn begin(alive: &Arc<AtomicUsize>) -> Life {
        assert_eq!(alive.fetch_add(1, Ordering::SeqCst), 0, "two values of one key");
        Life(Arc::clone(alive))
    }

    fn check(&self) {
        assert_eq!(self.0.load(Ordering::SeqCst), 1);
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // A destructor takes its time.
        thread::yield_now();
        assert_eq!(self.0.fetch_sub(1, Ordering::SeqCst), 1);
    }
}

#[test]
fn threads_that_come_and_go_never_meet_two_values_of_a_key() {
    let (cache, alive) = (cache(), [(); 3].map(|()| Arc::new(AtomicUsize::new(0))));
    let made = AtomicUsize::new(0);
    thread::scope(|scope| {
        for offset in 0..4_u64 {
            let (cache, alive, made) = (&cache, &alive, &made);
            scope.spawn(move || {
                for number in 0..20_000 {
                    let key = (number + offset) % 3;
                    if number % 5 == 0 {
                        cache.get(&key).inspect(|life: &Held<u64, Life>| life.check());
                        continue;
                    }
                    let life = cache.get_or_insert_with(&key, || {
                        made.fetch_add(1, Ordering::Relaxed);
                        Life::begin(&alive[key as usize])
                    });
                    life.check();
                }
            });
        }
    });
    assert!(made.into_inner() > 3, "nobody let go");
    assert_eq!(in_use(&cache), (0, 0));
    assert!(alive.iter().all(|alive| alive.load(Ordering::SeqCst) == 0));
}

#[test]
fn threads_that_ask_at_once_make_one_value() {
    let (cache, made, barrier) = (cache(), AtomicUsize::new(0), Barrier::new(8));
    let held: Vec<_> = thread::scope(|scope| {
        let ask = || {
            barrier.wait();
            cache.get_or_insert_with(&1, || {
                thread::sleep(Duration::from_millis(20));
                made.fetch_add(1, Ordering::SeqCst)
            })
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.into_inner(), 1);
    assert!(held.iter().all(|one| std::ptr::eq(&**one, &*held[0])));
}

#[test]
fn a_newcomer_waits_for_the_destructor_of_the_last_value() {
    struct Slow(Mutex<mpsc::Receiver<()>>, Arc<AtomicUsize>);
    impl Drop for Slow {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.lock().unwrap().recv().unwrap();
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (cache, stage) = (cache(), Arc::new(AtomicUsize::new(0)));
    let (go_on, may_end) = mpsc::channel();
    let old = cache.get_or_insert_with(&1, || Slow(Mutex::new(may_end), Arc::clone(&stage)));
    thread::scope(|scope| {
        scope.spawn(|| drop(old));
        while stage.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert!(cache.get(&1).is_none(), "what is going is not shown");
        let newcomer = scope.spawn(|| {
            let anew = cache.get_or_insert_with(&1, || {
                assert_eq!(stage.load(Ordering::SeqCst), 2, "the old value's destructor has returned");
                let (go_on, may_end) = mpsc::channel();
                go_on.send(()).unwrap();
                Slow(Mutex::new(may_end), Arc::default())
            });
            drop(anew);
        });
        go_on.send(()).unwrap();
        newcomer.join().unwrap();
    });
}

#[test]
fn a_maker_that_panics_leaves_the_key_to_the_next() {
    let cache = cache();
    let panicked = catch_unwind(AssertUnwindSafe(|| cache.get_or_insert_with(&1, || panic!("out of tea"))));
    assert!(panicked.is_err());
    assert_eq!(*cache.get_or_insert_with(&1, || 7), 7);
    assert_eq!(in_use(&cache), (0, 0));
}

#[test]
fn a_destructor_that_panics_leaves_the_key_to_the_next() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("a bad end");
        }
    }
    let cache = cache();
    let held = cache.get_or_insert_with(&1, || Some(Bad));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(held))).is_err());
    assert!(cache.get_or_insert_with(&1, || None).is_none());
    assert_eq!(in_use(&cache), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_callers_share_one_load() {
    let (cache, loads) = (cache(), Arc::new(AtomicUsize::new(0)));
    let everybody = Arc::new(tokio::sync::Barrier::new(1_000));
    let mut callers = JoinSet::new();
    for _ in 0..1_000 {
        let (cache, loads, everybody) = (cache.clone(), Arc::clone(&loads), Arc::clone(&everybody));
        callers.spawn(async move {
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, Failed>(7)
            };
            let held = cache.get_or_load(&1, load).await.unwrap();
            everybody.wait().await;
            *held
        });
    }
    assert!(callers.join_all().await.iter().all(|value| *value == 7));
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(in_use(&cache), (0, 0), "all have let go");
}

// On one thread, all callers are there before the first load begins.
#[tokio::test]
async fn a_failure_is_shared_by_those_who_wait_and_not_kept() {
    let (cache, loads) = (cache::<u64>(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let (cache, loads) = (cache.clone(), Arc::clone(&loads));
        callers.spawn(async move {
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                Err(Failed)
            };
            cache.get_or_load(&1, load).await.unwrap_err()
        });
    }
    let errors = callers.join_all().await;
    assert!(errors.iter().all(|error| matches!(error, LoadError::Source(error) if **error == Failed)));
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let again = cache.get_or_load(&1, || async { Ok::<_, Failed>(7) }).await;
    assert_eq!(*again.unwrap(), 7);
}

#[tokio::test]
async fn callers_with_other_error_types_share_values_but_not_errors() {
    let (cache, gate) = (cache::<u64>(), Gate::new());
    let leader = cache.get_or_load(&1, || {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Err(Failed)
        }
    });
    let other = async {
        gate.arrival().await;
        let waiter = cache.get_or_load(&1, || async { Ok::<_, io::Error>(8) });
        tokio::join!(waiter, async { gate.open() }).0
    };
    let (leader, other) = tokio::join!(leader, other);
    assert!(matches!(leader.unwrap_err(), LoadError::Source(error) if *error == Failed));
    assert_eq!(*other.unwrap(), 8, "it asked for itself");
}

#[tokio::test]
async fn a_load_that_panics_is_an_error_for_all_who_wait() {
    let cache = cache::<u64>();
    let load = || async { panic!("out of {}", "tea") };
    let (one, other) = tokio::join!(
        cache.get_or_load::<Failed, _, _>(&1, load),
        cache.get_or_load::<Failed, _, _>(&1, load)
    );
    for error in [one.unwrap_err(), other.unwrap_err()] {
        assert_eq!(error.to_string(), "the load panicked: out of tea");
    }
}

#[tokio::test]
async fn a_dropped_caller_neither_stops_nor_repeats_the_load() {
    let (cache, gate) = (cache::<u64>(), Gate::new());
    let leader = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = || async move {
                gate.pass().await;
                Ok::<_, Failed>(7)
            };
            cache.get_or_load(&1, load).await
        }
    });
    gate.arrival().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    let waiter = cache.get_or_load(&1, || async { Ok::<_, Failed>(8) });
    let (waiter, ()) = tokio::join!(waiter, async { gate.open() });
    assert_eq!(*waiter.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_takes_too_long_is_given_up() {
    let limit = Duration::from_secs(5);
    let cache = WeakCache::<u64, u64>::builder("test").load_timeout(limit).build();
    let error = cache.get_or_load::<Failed, _, _>(&1, std::future::pending).await.unwrap_err();
    assert!(matches!(error, LoadError::TimedOut(after) if after == limit), "{error:?}");
    assert_eq!(*cache.get_or_load(&1, || async { Ok::<_, Failed>(7) }).await.unwrap(), 7);
}

#[test]
fn a_load_whose_runtime_ends_leaves_the_key_to_the_next() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (cache, gate) = (cache::<u64>(), Gate::new());
    let (leading, waiting) = (runtime(), runtime());
    leading.spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move {
            let load = || async move {
                gate.pass().await;
                Ok::<_, Failed>(7)
            };
            cache.get_or_load(&1, load).await
        }
    });
    waiting.block_on(gate.arrival());
    let waiter = waiting.spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&1, || async { Ok::<_, Failed>(8) }).await }
    });
    leading.shutdown_background();
    assert_eq!(*waiting.block_on(waiter).unwrap().unwrap(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_come_go_fail_and_are_dropped_never_meet_two_values_of_a_key() {
    let cache = cache::<Life>();
    let alive: HashMap<u64, Arc<AtomicUsize>> = (0..3).map(|key| (key, Arc::default())).collect();
    let mut tasks = JoinSet::new();
    for offset in 0..16 {
        let (cache, alive) = (cache.clone(), alive.clone());
        tasks.spawn(async move {
            for number in offset..offset + 2_000 {
                let key = number % 3;
                let load = || {
                    let alive = Arc::clone(&alive[&key]);
                    async move {
                        tokio::task::yield_now().await;
                        match number % 7 {
                            0 => Err(Failed),
                            _ => Ok(Life::begin(&alive)),
                        }
                    }
                };
                let asked = cache.get_or_load(&key, load);
                if number % 4 == 0 {
                    // Begun and dropped.
                    tokio::select! { biased; _ = asked => {}, () = tokio::task::yield_now() => {} }
                } else if let Ok(life) = asked.await {
                    life.check();
                    tokio::task::yield_now().await;
                    life.check();
                }
            }
        });
    }
    tasks.join_all().await;
    // Loads whose callers are gone are still at work.
    while in_use(&cache) != (0, 0) || (0..3).any(|key| cache.get(&key).is_some()) {
        tokio::task::yield_now().await;
    }
}
