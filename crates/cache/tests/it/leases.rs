//! One load per key in all processes. Caches with a remote each, on one Redis, stand for as many processes.
//!
//! Each test has a server of its own: Redis tells of a key's changes in any of its databases.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, Codec, MessagePack};
use greenwave_test_servers::Server;
use redis::AsyncTypedCommands;
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    remote::{User, ada, patient, users},
    support::{Failed, Gate, Source, admin as redis},
};

const LOAD: Duration = Duration::from_millis(50);

fn users_with(url: &str, config: CacheConfig) -> Cache<u64, User> {
    Cache::builder("user").config(config).remote(patient(url)).build()
}

#[tokio::test]
async fn a_cold_key_that_all_processes_want_is_loaded_once() {
    let server = Server::redis();
    let url = server.url();
    let source = Source::default();
    let mut callers = JoinSet::new();
    for cache in [users(&url), users(&url), users(&url)] {
        for _ in 0..100 {
            let (cache, source) = (cache.clone(), source.clone());
            callers.spawn(async move {
                let load = || async {
                    sleep(LOAD).await;
                    source.load(ada()).await
                };
                cache.get_or_load(&1, load).await.unwrap()
            });
        }
    }
    for user in callers.join_all().await {
        assert_eq!(user.as_deref(), Some(&ada()));
    }
    assert_eq!(source.loads(), 1);
}

#[tokio::test]
async fn keys_that_processes_want_in_any_order_are_loaded_once_each() {
    let server = Server::redis();
    let url = server.url();
    let loads: Arc<Mutex<HashMap<u64, usize>>> = Arc::default();
    let mut callers = JoinSet::new();
    for process in 0..4_u64 {
        let (cache, loads) = (users(&url), Arc::clone(&loads));
        callers.spawn(async move {
            let mut keys: Vec<u64> = (process..process + 30).collect();
            if process % 2 == 0 {
                keys.reverse();
            }
            let load = move |missing: Vec<u64>| {
                let loads = Arc::clone(&loads);
                async move {
                    sleep(LOAD).await;
                    missing.iter().for_each(|key| *loads.lock().unwrap().entry(*key).or_default() += 1);
                    Ok::<_, Failed>(
                        missing.into_iter().map(|id| (id, Some(User { id, ..ada() }))).collect::<Vec<_>>(),
                    )
                }
            };
            let found = cache.get_many(&keys, load).await.unwrap();
            assert!(keys.iter().all(|key| found[key].id == *key));
        });
    }
    let begun = Instant::now();
    callers.join_all().await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}: a lease had to run out", begun.elapsed());
    let loads = loads.lock().unwrap();
    assert!(loads.len() == 33 && loads.values().all(|loads| *loads == 1), "{loads:?}");
}

/// By hand, or by a program in whatever language.
#[tokio::test]
async fn a_change_by_a_foreign_program_during_a_load_wins() {
    let server = Server::redis();
    let url = server.url();
    let cache = users(&url);
    let gate = Gate::new();
    let caller = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move { cache.get_or_load(&1, || Source::default().load_behind(gate, ada())).await.unwrap() }
    });
    gate.arrival().await;
    let mut redis = redis(&url).await;
    redis.del("user:1").await.unwrap();
    gate.open();
    assert_eq!(caller.await.unwrap().as_deref(), Some(&ada()));
    cache.settled().await;
    assert!(!redis.exists("user:1").await.unwrap());
    assert_eq!(cache.get(&1).await, None, "nor is it in memory");
}

#[tokio::test]
async fn a_stale_value_is_served_by_all_while_one_loads() {
    let server = Server::redis();
    let url = server.url();
    let config = CacheConfig {
        ttl: Duration::from_millis(50),
        remote_ttl: Duration::from_millis(50),
        ttl_jitter: 0.0,
        stale_while_revalidate: Duration::from_secs(60),
        ..Default::default()
    };
    let process = || users_with(&url, config.clone());
    let (one, other) = (process(), process());
    one.insert(1, ada()).await;
    sleep(Duration::from_millis(100)).await;
    let (gate, source) = (Gate::new(), Source::default());
    let load = |cache: Cache<u64, User>| {
        let (gate, source) = (gate.clone(), source.clone());
        let bob = User { id: 1, name: "Bob".into() };
        async move { cache.get_or_load(&1, || source.load_behind(gate, bob)).await.unwrap().unwrap() }
    };
    assert_eq!(load(one.clone()).await.name, "Ada");
    gate.arrival().await;
    // The other finds the lease, and behind it the stale value.
    assert_eq!(load(other.clone()).await.name, "Ada");
    assert_eq!(source.loads(), 1);
    gate.open();
    one.settled().await;
    assert_eq!(redis(&url).await.exists("user:1").await, Ok(true));
    let third = process();
    let newest = third.get_or_load(&1, || async { Ok::<_, Failed>(None) }).await.unwrap().unwrap();
    assert_eq!(newest.name, "Bob");
}

/// As by each lease of another process, and each renewal.
async fn touch(redis: &mut redis::aio::MultiplexedConnection, cache: &Cache<u64, User>) {
    let touched: u8 = redis::cmd("PEXPIRE").arg("user:1").arg(10_000).query_async(redis).await.unwrap();
    assert_eq!(touched, 1);
    // On the way of this answer, the news of it come first.
    assert_eq!(cache.get(&2).await, None);
}

#[tokio::test]
async fn who_comes_after_another_process_s_lease_joins_who_waits_for_it() {
    let server = Server::redis();
    let url = server.url();
    let (one, other) = (users(&url), users(&url));
    let (gate, source) = (Gate::new(), Source::default());
    let leader = tokio::spawn({
        let (one, gate) = (one.clone(), gate.clone());
        let load = async move {
            gate.pass().await;
            Err::<Option<User>, _>(Failed)
        };
        async move { one.get_or_load(&1, || load).await }
    });
    gate.arrival().await;
    let mut redis = redis(&url).await;
    let mut callers = JoinSet::new();
    for _ in 0..5 {
        let (process, source) = (other.clone(), source.clone());
        let load = async move {
            sleep(LOAD).await;
            let _ = source.load(ada()).await;
            Ok::<Option<User>, Failed>(None)
        };
        callers.spawn(async move { process.get_or_load(&1, || load).await.unwrap() });
        // It has looked and waits; then the other's lease is renewed.
        sleep(LOAD).await;
        touch(&mut redis, &other).await;
    }
    gate.open();
    leader.await.unwrap().unwrap_err();
    assert_eq!(callers.join_all().await, vec![None; 5]);
    assert_eq!(source.loads(), 1);
}

#[tokio::test]
async fn what_was_stale_before_another_process_changed_it_is_not_offered_to_who_comes_later() {
    let server = Server::redis();
    let url = server.url();
    let config = CacheConfig {
        ttl: Duration::from_millis(50),
        remote_ttl: Duration::from_millis(50),
        ttl_jitter: 0.0,
        stale_while_revalidate: Duration::from_secs(60),
        ..Default::default()
    };
    let (one, other) = (users_with(&url, config.clone()), users_with(&url, config));
    one.insert(1, ada()).await;
    sleep(Duration::from_millis(100)).await;
    let load = |cache: &Cache<u64, User>, name: &str, gate: &Gate| {
        let (cache, gate, user) = (cache.clone(), gate.clone(), User { id: 1, name: name.into() });
        async move { cache.get_or_load(&1, || Source::default().load_behind(gate, user)).await.unwrap().unwrap() }
    };
    let (first, second, third) = (Gate::new(), Gate::new(), Gate::new());
    assert_eq!(load(&one, "Bob", &first).await.name, "Ada");
    first.arrival().await;
    assert_eq!(load(&other, "Cleo", &second).await.name, "Ada");
    // The lease goes too, and who waited for it asks the source.
    redis(&url).await.del("user:1").await.unwrap();
    second.arrival().await;
    third.open();
    second.open();
    assert_ne!(load(&other, "Dora", &third).await.name, "Ada");
    first.open();
    one.settled().await;
    other.settled().await;
}

/// Holds whoever decodes, once it is armed.
#[derive(Clone, Default)]
struct Held {
    armed: Arc<AtomicBool>,
    arrived: Arc<Notify>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Codec<u64> for Held {
    fn encode(&self, value: &u64) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Codec::encode(&MessagePack, value)
    }

    fn decode(&self, bytes: &[u8]) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.arrived.notify_one();
            let open = self.open.0.lock().unwrap();
            drop(self.open.1.wait_while(open, |open| !*open).unwrap());
        }
        Codec::decode(&MessagePack, bytes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_read_before_another_process_changed_it_is_not_given_to_who_comes_later() {
    let server = Server::redis();
    let held = Held::default();
    let cache = |held: &Held| {
        Cache::<u64, u64>::builder("n")
            .remote_with(patient(&server.url()), u64::to_string, held.clone())
            .build()
    };
    let (one, other) = (cache(&held), cache(&Held::default()));
    other.insert(1, 1).await;
    held.armed.store(true, Ordering::SeqCst);
    let read = |cache: Cache<u64, u64>| async move {
        *cache.get_or_load(&1, || Source::default().load(3)).await.unwrap().unwrap()
    };
    let early = tokio::spawn(read(one.clone()));
    held.arrived.notified().await;
    other.insert(1, 2).await;
    assert_eq!(one.get(&9).await, None, "the news come before this answer");
    let late = tokio::spawn(read(one.clone()));
    // It waits for the early one.
    sleep(LOAD).await;
    *held.open.0.lock().unwrap() = true;
    held.open.1.notify_all();
    assert_eq!(early.await.unwrap(), 1);
    assert_eq!(late.await.unwrap(), 2);
}
