use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use expect_test::expect;
use futures_util::{FutureExt, future::join_all};
use greenwave_db::{BatchConfig, BatchError, BatchLoader};
use tokio::{
    sync::Semaphore,
    task::yield_now,
    time::{Instant, sleep, timeout},
};

type Loader = BatchLoader<u32, String, io::Error>;

/// A loader of `"v{key}"` whose calls are recorded, and each waits for a permit.
struct Rig {
    loader: Loader,
    calls: Arc<Mutex<Vec<Vec<u32>>>>,
    permits: Arc<Semaphore>,
}

impl Rig {
    fn new(config: BatchConfig) -> Self {
        Self::loading(config, |keys| Ok(keys.into_iter().map(|key| (key, format!("v{key}"))).collect()))
    }

    fn loading(
        config: BatchConfig,
        load: impl Fn(Vec<u32>) -> io::Result<HashMap<u32, String>> + Send + Sync + 'static,
    ) -> Self {
        let calls: Arc<Mutex<Vec<Vec<u32>>>> = Arc::default();
        let permits = Arc::new(Semaphore::new(0));
        let load = Arc::new(load);
        let (recorded, gate) = (Arc::clone(&calls), Arc::clone(&permits));
        let loader = BatchLoader::new("test", config, move |keys: Vec<u32>| {
            recorded.lock().unwrap().push(keys.clone());
            let (gate, load) = (Arc::clone(&gate), Arc::clone(&load));
            async move {
                gate.acquire().await.unwrap().forget();
                load(keys)
            }
        });
        Self { loader, calls, permits }
    }

    fn open(self) -> Self {
        self.permits.add_permits(Semaphore::MAX_PERMITS / 2);
        self
    }

    fn calls(&self) -> Vec<Vec<u32>> {
        self.calls.lock().unwrap().clone()
    }

    /// Starts a load that goes on by itself.
    fn spawn(&self, key: u32) -> tokio::task::JoinHandle<Result<Option<String>, BatchError<io::Error>>> {
        let loader = self.loader.clone();
        tokio::spawn(async move { loader.load(key).await })
    }

    /// Waits until so many calls have begun.
    async fn calls_begun(&self, calls: usize) {
        while self.calls().len() < calls {
            yield_now().await;
        }
    }

    /// Lets spawned loads reach the queue.
    async fn settle(&self) {
        for _ in 0..100 {
            yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_loads_need_few_calls() {
    let rig = Rig::new(BatchConfig::default()).open();
    let answers = join_all((0..1000).map(|key| rig.loader.load(key))).await;
    for (key, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), Some(format!("v{key}")));
    }
    let calls = rig.calls();
    assert!(calls.len() < 100, "{} calls", calls.len());
    assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 1000);
}

#[tokio::test]
async fn a_lone_caller_goes_at_once_and_alone() {
    let rig = Rig::new(BatchConfig::default()).open();
    for key in 0..3 {
        assert_eq!(rig.loader.load(key).await.unwrap(), Some(format!("v{key}")));
    }
    assert_eq!(rig.calls(), [[0], [1], [2]]);
}

#[tokio::test]
async fn while_two_batches_run_the_rest_queue_and_go_together() {
    let rig = Rig::new(BatchConfig::default());
    let loads: Vec<_> = (0..10).map(|key| rig.spawn(key)).collect();
    rig.settle().await;
    assert_eq!(rig.calls(), [[0], [1]], "two slots, and no more");
    rig.permits.add_permits(1);
    rig.calls_begun(3).await;
    assert_eq!(rig.calls()[2], (2..10).collect::<Vec<_>>());
    rig.permits.add_permits(2);
    for load in loads {
        load.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_batch_has_a_limit() {
    let rig = Rig::new(BatchConfig { max_batch: 3, max_in_flight: 1, ..Default::default() });
    let loads: Vec<_> = (0..8).map(|key| rig.spawn(key)).collect();
    rig.settle().await;
    rig.permits.add_permits(4);
    for load in loads {
        load.await.unwrap().unwrap();
    }
    assert_eq!(rig.calls(), [vec![0], vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
}

#[tokio::test]
async fn a_key_asked_for_twice_is_loaded_once_until_it_is_sent() {
    let rig = Rig::new(BatchConfig { max_in_flight: 1, ..Default::default() });
    let first = rig.spawn(7);
    rig.calls_begun(1).await;
    // Key 7 is under way: whoever asks now may have written since.
    let later: Vec<_> = [7, 7, 8, 7].into_iter().map(|key| rig.spawn(key)).collect();
    rig.settle().await;
    rig.permits.add_permits(2);
    assert_eq!(first.await.unwrap().unwrap().as_deref(), Some("v7"));
    for load in later {
        assert!(load.await.unwrap().unwrap().is_some());
    }
    assert_eq!(rig.calls(), [vec![7], vec![7, 8]]);
}

#[tokio::test]
async fn an_absent_key_is_none() {
    let rig = Rig::loading(BatchConfig::default(), |_| Ok(HashMap::new())).open();
    assert_eq!(rig.loader.load(1).await.unwrap(), None);
}

#[tokio::test]
async fn many_keys_of_one_caller_go_in_one_call_and_come_back_in_order() {
    let rig = Rig::loading(BatchConfig::default(), |keys| {
        Ok(keys.into_iter().filter(|key| *key != 5).map(|key| (key, format!("v{key}"))).collect())
    })
    .open();
    let values = rig.loader.load_many([3, 1, 5, 3, 2]).await.unwrap();
    assert_eq!(values, [Some("v3"), Some("v1"), None, Some("v3"), Some("v2")].map(|v| v.map(str::to_owned)));
    assert_eq!(rig.calls(), [[3, 1, 5, 2]]);
    assert_eq!(rig.loader.load_many([]).await.unwrap(), [] as [Option<String>; 0]);
    assert_eq!(rig.calls().len(), 1, "no keys, no call");
}

#[tokio::test]
async fn more_keys_than_a_batch_holds_take_every_free_slot_and_the_rest_waits() {
    let rig = Rig::new(BatchConfig { max_batch: 3, ..Default::default() });
    let loader = rig.loader.clone();
    let load = tokio::spawn(async move { loader.load_many(0..8).await });
    rig.settle().await;
    assert_eq!(rig.calls(), [[0, 1, 2], [3, 4, 5]]);
    rig.permits.add_permits(3);
    assert_eq!(load.await.unwrap().unwrap().len(), 8);
    assert_eq!(rig.calls()[2], [6, 7]);
}

#[tokio::test]
async fn many_keys_find_room_together_or_not_at_all() {
    let rig = Rig::new(BatchConfig { max_batch: 2, max_in_flight: 2, max_queued: 3, ..Default::default() });
    let refused = rig.loader.load_many(0..8).await.unwrap_err();
    assert!(matches!(refused, BatchError::QueueFull { limit: 3, .. }), "{refused}");
    assert!(rig.calls().is_empty(), "none of the eight began");
    let rig = rig.open();
    assert_eq!(rig.loader.load_many(0..7).await.unwrap().len(), 7, "four at once, three wait");
}

#[tokio::test]
async fn many_keys_fail_with_the_error_of_the_first_bad_one() {
    let rig =
        Rig::loading(BatchConfig::default(), |keys| match keys.iter().find(|key| [4, 6].contains(*key)) {
            Some(bad) => Err(io::Error::other(format!("key {bad}"))),
            None => Ok(HashMap::new()),
        })
        .open();
    let error = rig.loader.load_many([1, 6, 2, 4]).await.unwrap_err();
    assert!(matches!(&error, BatchError::Load { source, .. } if source.to_string() == "key 6"), "{error:?}");
}

/// Runs keys 1 to 64 in one batch, after key 0 has occupied the only slot.
async fn one_batch(rig: &Rig) -> Vec<Result<Option<String>, BatchError<io::Error>>> {
    let first = rig.spawn(0);
    rig.calls_begun(1).await;
    let loads: Vec<_> = (1..=64).map(|key| rig.spawn(key)).collect();
    rig.settle().await;
    rig.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    let _ = first.await.unwrap();
    let mut answers = Vec::new();
    for load in loads {
        answers.push(load.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn a_bad_key_fails_alone() {
    let config = BatchConfig { max_in_flight: 1, ..Default::default() };
    let rig = Rig::loading(config, |keys| {
        if keys.contains(&13) {
            return Err(io::Error::other("key 13"));
        }
        Ok(keys.into_iter().map(|key| (key, format!("v{key}"))).collect())
    });
    for (key, answer) in (1..).zip(one_batch(&rig).await) {
        match answer {
            Err(BatchError::Load { source, .. }) => {
                assert_eq!((key, source.to_string().as_str()), (13, "key 13"))
            }
            answer => assert_eq!(answer.unwrap(), Some(format!("v{key}"))),
        }
    }
    assert_eq!(rig.calls().len(), 1 + 1 + 2 * 6, "the first, the batch, and six halvings");
}

#[tokio::test]
async fn a_key_that_panics_the_load_fails_alone_too() {
    let config = BatchConfig { max_in_flight: 1, ..Default::default() };
    let rig = Rig::loading(config, |keys| {
        assert!(!keys.contains(&64), "key 64 on purpose");
        Ok(HashMap::new())
    });
    let mut answers = one_batch(&rig).await;
    let last = answers.pop().unwrap().unwrap_err();
    expect!["batch loader `test` panicked: key 64 on purpose"].assert_eq(&last.to_string());
    assert!(answers.into_iter().all(|answer| matches!(answer, Ok(None))));
}

#[tokio::test]
async fn when_no_key_loads_it_gives_up_early() {
    let config = BatchConfig { max_in_flight: 1, ..Default::default() };
    let rig = Rig::loading(config, |_| Err(io::Error::other("the database is down")));
    let answers = one_batch(&rig).await;
    assert!(answers.iter().all(|answer| matches!(answer, Err(BatchError::Load { .. }))));
    assert!(rig.calls().len() <= 30, "{} calls for 64 keys", rig.calls().len());
}

#[tokio::test]
async fn four_bad_keys_fail_nobody_else_wherever_they_are() {
    for bad in [[1, 2, 3, 4], [61, 62, 63, 64], [1, 17, 33, 49], [8, 9, 40, 41]] {
        let config = BatchConfig { max_in_flight: 1, ..Default::default() };
        let rig = Rig::loading(config, move |keys| {
            if keys.iter().any(|key| bad.contains(key)) {
                return Err(io::Error::other("a bad key"));
            }
            Ok(keys.into_iter().map(|key| (key, format!("v{key}"))).collect())
        });
        let answers = one_batch(&rig).await;
        let failed: Vec<_> =
            (1..).zip(answers).filter(|(_, answer)| answer.is_err()).map(|(n, _)| n).collect();
        assert_eq!(failed, bad);
    }
}

/// The answers to keys 1 to 64 from one batch, the calls that it took, and for how long; `load` is what a call does.
async fn timed_batch<F>(
    load: impl Fn(usize) -> F + Send + Sync + 'static,
) -> (Vec<Result<Option<String>, BatchError<io::Error>>>, usize, Duration)
where
    F: Future<Output = io::Result<HashMap<u32, String>>> + Send + 'static,
{
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let config = BatchConfig { max_in_flight: 1, ..Default::default() };
    let loader = BatchLoader::new("test", config, move |keys: Vec<u32>| {
        if keys != [0] {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        let answer = (keys != [0]).then(|| load(keys.len()));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(HashMap::new()),
            }
        }
    });
    let start = Instant::now();
    let (_, answers) = tokio::join!(loader.load(0), join_all((1..=64).map(|key| loader.load(key))));
    (answers, calls.load(Ordering::Relaxed), start.elapsed())
}

fn all_failed_with(answers: &[Result<Option<String>, BatchError<io::Error>>], text: &str) -> bool {
    answers.iter().all(|answer| match answer {
        Err(BatchError::Load { source, .. }) => source.to_string() == text,
        _ => false,
    })
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_callers_wait_once_and_hear_what_it_is() {
    let (answers, calls, took) = timed_batch(|_| async {
        sleep(Duration::from_secs(2)).await;
        Err(io::Error::other("the database is away"))
    })
    .await;
    assert!(all_failed_with(&answers, "the database is away"), "{answers:?}");
    assert_eq!(calls, 1, "asked again in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_ends_the_search_does_not_hide_what_began_it() {
    let (answers, _, took) = timed_batch(|keys| async move {
        if keys < 64 {
            std::future::pending::<()>().await;
        }
        Err(io::Error::other("a deadlock"))
    })
    .await;
    assert!(all_failed_with(&answers, "a deadlock"), "{answers:?}");
    assert!(took < Duration::from_secs(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_hangs_ends_at_its_timeout_and_frees_its_slot() {
    let rig = Rig::new(BatchConfig { max_in_flight: 1, ..Default::default() });
    let (hung, queued) = (rig.spawn(1), rig.spawn(2));
    rig.settle().await;
    assert!(matches!(hung.await.unwrap(), Err(BatchError::TimedOut { .. })));
    rig.permits.add_permits(1);
    assert_eq!(queued.await.unwrap().unwrap().as_deref(), Some("v2"));
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_what_to_do() {
    let rig = Rig::new(BatchConfig { max_in_flight: 1, max_queued: 2, ..Default::default() });
    let loads: Vec<_> = (0..3).map(|key| rig.spawn(key)).collect();
    rig.settle().await;
    let refused = rig.loader.load(9).await.unwrap_err();
    expect!["batch loader `test` lets 2 callers wait and has no room for more: its load function is too slow for this load, make it faster or raise `max_batch` or `max_queued`"]
        .assert_eq(&refused.to_string());
    rig.permits.add_permits(2);
    for load in loads {
        load.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_dropped_caller_harms_nobody() {
    let rig = Rig::new(BatchConfig { max_in_flight: 1, ..Default::default() });
    let first = rig.spawn(0);
    rig.calls_begun(1).await;
    let (leaves, shares, stays) = (rig.spawn(1), rig.spawn(2), rig.spawn(2));
    rig.settle().await;
    for dropped in [first, leaves, shares] {
        dropped.abort();
        assert!(dropped.await.unwrap_err().is_cancelled());
    }
    rig.permits.add_permits(2);
    assert_eq!(stays.await.unwrap().unwrap().as_deref(), Some("v2"));
    assert_eq!(rig.calls(), [[0], [2]], "key 1 had nobody left");
}

#[tokio::test(start_paused = true)]
async fn keys_asked_for_outside_a_runtime_cost_no_slot() {
    let both = Arc::new(tokio::sync::Barrier::new(2));
    let config = BatchConfig { max_batch: 1, max_in_flight: 2, ..Default::default() };
    let loader = BatchLoader::new("numbers", config, move |keys: Vec<u32>| {
        let both = Arc::clone(&both);
        async move {
            both.wait().await;
            Ok::<_, io::Error>(keys.into_iter().map(|key| (key, key)).collect())
        }
    });
    let outside = loader.clone();
    let panicked = std::thread::spawn(move || outside.load_many([1, 2]).now_or_never()).join();
    assert!(panicked.is_err());
    assert_eq!(loader.load_many([1, 2]).await.unwrap(), [Some(1), Some(2)], "both slots are there");
}

#[test]
fn a_runtime_that_ends_lets_go_of_those_who_wait_elsewhere() {
    let rig = Rig::new(BatchConfig { max_in_flight: 1, ..Default::default() });
    let [ends, stays] =
        [(); 2].map(|()| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let loader = rig.loader.clone();
    let under_way = ends.spawn(async move { loader.load(1).await });
    ends.block_on(rig.calls_begun(1));
    let mut waiting = Box::pin(rig.loader.load(2));
    assert!(stays.block_on(async { (&mut waiting).now_or_never() }).is_none(), "it queues");
    drop((under_way, ends));
    let waiting = stays.block_on(async { timeout(Duration::from_secs(10), waiting).await.unwrap() });
    assert!(matches!(waiting, Err(BatchError::Cancelled { .. })));

    rig.permits.add_permits(1);
    let next = stays.block_on(rig.loader.load(3));
    assert_eq!(next.unwrap().as_deref(), Some("v3"), "and the loader works on");
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
#[tokio::test]
async fn a_batch_runs_in_the_span_of_its_first_caller() {
    use tracing::Instrument;
    let signals = crate::signals::signals();
    let loader = BatchLoader::new("spanned", BatchConfig::default(), |keys: Vec<u32>| async move {
        tracing::info!(db.query.text = "batch-span");
        Ok::<_, io::Error>(keys.into_iter().map(|key| (key, ())).collect())
    });
    loader.load(1).instrument(tracing::info_span!("request")).await.unwrap();
    let events = signals.mentioning("batch-span");
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].spans, ["request"]);
}
