//! What is in Redis, and what memory makes of it.
//!
//! Each test has a Redis of its own: of changes in one database, Redis tells the readers of the same names in another.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, Codec, Error, Loaded, MessagePack, Remote, RemoteConfig};
use greenwave_test_servers::Server;
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::support::{Failed, Gate, Recording, Source, admin as redis};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) id: u64,
    pub(crate) name: String,
}

pub(crate) fn ada() -> User {
    User { id: 1, name: "Ada".into() }
}

/// Patient, so that a busy machine is no outage.
pub(crate) fn patient(url: &str) -> Remote {
    let config = RemoteConfig { timeout: Duration::from_secs(10), ..Default::default() };
    Remote::connect_with(url, config).unwrap()
}

pub(crate) fn users(url: &str) -> Cache<u64, User> {
    Cache::builder("user").remote(patient(url)).build()
}

#[tokio::test]
async fn a_loaded_value_is_in_redis_under_name_and_key_as_messagepack_with_its_ttl() {
    let server = Server::redis();
    let url = server.url();
    let cache = users(&url);
    cache.get_or_load(&1, || Source::default().load(ada())).await.unwrap();
    cache.settled().await;

    let mut redis = redis(&url).await;
    let ttl = redis.pttl("user:1").await.unwrap();
    let redis::IntegerReplyOrNoOp::IntegerReply(ttl) = ttl else { panic!("{ttl:?}") };
    assert!((3_200_000..=3_600_000).contains(&ttl), "{ttl} ms");

    let bytes = redis::cmd("GET").arg("user:1").query_async::<Vec<u8>>(&mut redis).await.unwrap();
    assert!(bytes.ends_with(&rmp_serde::to_vec_named(&ada()).unwrap()), "after its times and tags");
}

#[tokio::test]
async fn a_second_instance_finds_the_value_without_a_load() {
    let server = Server::redis();
    let url = server.url();
    let first = users(&url);
    first.get_or_load(&1, || Source::default().load(ada())).await.unwrap();
    first.settled().await;

    let recording = Recording::default();
    let second = recording.of(|| users(&url));
    let source = Source::default();
    for _ in 0..2 {
        let found = second.get_or_load(&1, || source.clone().load(ada())).await;
        assert_eq!(found.unwrap().as_deref(), Some(&ada()));
    }
    assert_eq!(source.loads(), 0);
    assert_eq!(recording.count("greenwave.cache.requests{cache=user,result=remote_hit}"), 1);
    assert_eq!(second.stats().hits, 1);
}

#[tokio::test]
async fn get_looks_into_redis_and_keeps_what_it_finds() {
    let server = Server::redis();
    let url = server.url();
    users(&url).insert(1, ada()).await;
    let cache = users(&url);
    assert_eq!(cache.get(&2).await, None);
    assert_eq!(cache.get(&1).await.as_deref(), Some(&ada()));
    let mut redis = redis(&url).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut redis).await.unwrap();
    assert_eq!(cache.get(&1).await.as_deref(), Some(&ada()));
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
    assert!(!stats.contains("cmdstat_get:"), "it came from memory: {stats}");
}

#[tokio::test]
async fn an_invalidation_reaches_redis() {
    let server = Server::redis();
    let url = server.url();
    let cache = users(&url);
    cache.insert(1, ada()).await;
    cache.insert(2, ada()).await;
    cache.invalidate(&1).await;
    let mut redis = redis(&url).await;
    assert!(!redis.exists("user:1").await.unwrap());
    assert!(redis.exists("user:2").await.unwrap());
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn a_key_that_holds_no_string_is_a_miss_and_replaced() {
    let server = Server::redis();
    let url = server.url();
    redis(&url).await.rpush("user:1", "x").await.unwrap();
    let recording = Recording::default();
    let cache = recording.of(|| users(&url));
    let loaded = cache.get_or_load(&1, || Source::default().load(ada())).await;
    assert_eq!(loaded.unwrap().as_deref(), Some(&ada()));
    cache.settled().await;
    assert_eq!(recording.count("greenwave.cache.remote.failures{cache=user,operation=get}"), 1);
    assert_eq!(users(&url).get(&1).await.as_deref(), Some(&ada()), "and Redis was not given up for it");
}

#[tokio::test]
async fn a_zero_remote_ttl_writes_nothing_and_an_endless_one_is_accepted() {
    for (remote_ttl, written) in
        [(Duration::ZERO, false), (Duration::from_nanos(1), true), (Duration::MAX, true)]
    {
        let server = Server::redis();
        let url = server.url();
        let recording = Recording::default();
        let config = CacheConfig { remote_ttl, ..Default::default() };
        let cache: Cache<u64, u64> =
            recording.of(|| Cache::builder("n").config(config).remote(patient(&url)).build());
        cache.insert(1, 7).await;
        assert_eq!(recording.moved(), "", "nothing failed");
        if remote_ttl != Duration::from_nanos(1) {
            assert_eq!(redis(&url).await.exists("n:1").await.unwrap(), written);
        }
    }
}

/// Writes sevens alone.
struct Sevens(Arc<AtomicBool>);

impl Codec<u64> for Sevens {
    fn encode(&self, value: &u64) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        self.0.store(true, Ordering::SeqCst);
        if *value == 7 { Ok(vec![7]) } else { Err("not a seven".into()) }
    }

    fn decode(&self, _: &[u8]) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
        Ok(7)
    }
}

#[tokio::test]
async fn what_redis_does_not_take_is_kept_in_memory() {
    let server = Server::redis();
    let cache = |remote_ttl| {
        let config = RemoteConfig {
            timeout: Duration::from_secs(10),
            untracked_ttl: Duration::from_secs(60),
            ..Default::default()
        };
        let remote = Remote::connect_with(&server.url(), config).unwrap();
        let config = CacheConfig { remote_ttl, ..Default::default() };
        let builder = Cache::<u64, u64>::builder("n").config(config);
        builder.remote_with(remote, u64::to_string, Sevens(Arc::default())).build()
    };
    let (hour, mut redis) = (Duration::from_secs(3600), redis(&server.url()).await);
    let unwritten = cache(Duration::ZERO);
    unwritten.insert(1, 7).await;
    assert_eq!(unwritten.get(&1).await.as_deref(), Some(&7));

    let cache = cache(hour);
    cache.insert(2, 7).await;
    cache.insert(2, 8).await;
    assert_eq!(cache.get(&2).await.as_deref(), Some(&8), "it does not encode");
    cache.insert(3, 7).await;
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec_async(&mut redis).await.unwrap();
    cache.insert(3, 7).await;
    assert!(!redis.exists("n:3").await.unwrap(), "Redis is full");
    assert_eq!(cache.get(&3).await.as_deref(), Some(&7));

    // And what is changed by others since then is heard of.
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).exec_async(&mut redis).await.unwrap();
    unwritten.invalidate(&3).await;
    assert_eq!(cache.get(&9).await, None, "the news come before this answer");
    assert_eq!(cache.get(&3).await, None);
}

/// A key that clears its cache when it is hashed once more after its value was encoded.
#[derive(Clone)]
struct Clearing {
    encoded: Arc<AtomicBool>,
    cache: Arc<std::sync::OnceLock<Cache<Clearing, u64>>>,
}

impl Hash for Clearing {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u8(1);
        if self.encoded.swap(false, Ordering::SeqCst) {
            let (runtime, cache) = (Handle::current(), self.cache.get().unwrap().clone());
            thread::spawn(move || runtime.block_on(cache.clear())).join().unwrap();
        }
    }
}

impl PartialEq for Clearing {
    fn eq(&self, _: &Clearing) -> bool {
        true
    }
}

impl Eq for Clearing {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_cleared_while_it_is_inserted_does_not_come_back() {
    let encoded = Arc::<AtomicBool>::default();
    let builder = Cache::<Clearing, u64>::builder("n");
    let codec = Sevens(Arc::clone(&encoded));
    let server = Server::redis();
    let cache = builder.remote_with(patient(&server.url()), |_| "1", codec).build();
    let key = Clearing { encoded, cache: Arc::default() };
    let _ = key.cache.set(cache.clone());
    // Redis has answered, and the insertion is about to write to memory for the second time.
    cache.insert(key.clone(), 7).await;
    assert!(!key.encoded.load(Ordering::SeqCst), "it was cleared in between");
    assert_eq!(cache.get(&key).await, None);
}

#[tokio::test]
async fn an_invalidation_during_a_load_wins_in_redis_too() {
    let server = Server::redis();
    let url = server.url();
    let cache = users(&url);
    let gate = Gate::new();
    let caller = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move { cache.get_or_load(&1, || Source::default().load_behind(gate, ada())).await.unwrap() }
    });
    gate.arrival().await;
    cache.invalidate(&1).await;
    gate.open();
    assert_eq!(caller.await.unwrap().as_deref(), Some(&ada()));
    cache.settled().await;
    assert!(!redis(&url).await.exists("user:1").await.unwrap());
    assert_eq!(cache.get(&1).await, None);
}

/// What a second process does is what a second cache does: they share Redis alone.
#[tokio::test]
async fn a_change_in_another_process_wins_over_a_load_that_began_before() {
    let bob = User { id: 1, name: "Bob".into() };
    for insert in [false, true] {
        let server = Server::redis();
        let url = server.url();
        let (loading, changing) = (users(&url), users(&url));
        let gate = Gate::new();
        let caller = tokio::spawn({
            let (cache, gate) = (loading.clone(), gate.clone());
            async move { cache.get_or_load(&1, || Source::default().load_behind(gate, ada())).await.unwrap() }
        });
        gate.arrival().await;
        match insert {
            false => changing.invalidate(&1).await,
            true => changing.insert(1, bob.clone()).await,
        }
        gate.open();
        assert_eq!(caller.await.unwrap().as_deref(), Some(&ada()));
        loading.settled().await;
        assert_eq!(users(&url).get(&1).await.as_deref(), insert.then_some(&bob));

        // And the next load may fill at once.
        let after = changing.get_or_load(&1, || Source::default().load(bob.clone())).await;
        assert_eq!(after.unwrap().as_deref(), Some(&bob));
        changing.settled().await;
        assert_eq!(users(&url).get(&1).await.as_deref(), Some(&bob));
    }
}

#[tokio::test]
async fn a_load_that_brings_nothing_leaves_nothing_in_redis() {
    let server = Server::redis();
    let url = server.url();
    let recording = Recording::default();
    let cache = recording.of(|| users(&url));
    assert_eq!(cache.get_or_load(&1, || async { Ok::<_, Failed>(None) }).await.unwrap(), None);
    cache.get_or_load(&2, || async { Err::<Option<_>, _>(Failed) }).await.unwrap_err();
    cache.settled().await;
    let mut redis = redis(&url).await;
    assert!(!redis.exists(&["user:1", "user:2"]).await.unwrap());
    assert_eq!(recording.count("greenwave.cache.remote.undecodable{cache=user}"), 0);
}

/// A Redis that answers the commands of `kind` only after `resume`.
struct Stalled {
    server: Server,
    redis: MultiplexedConnection,
}

impl Stalled {
    async fn new(setup: impl AsyncFnOnce(&Cache<u64, User>)) -> (Stalled, Cache<u64, User>) {
        let server = Server::redis();
        let redis = redis(&server.url()).await;
        let cache = users(&server.url());
        setup(&cache).await;
        (Stalled { server, redis }, cache)
    }

    async fn pause(&mut self, kind: &str) {
        let pause = redis::cmd("CLIENT").arg("PAUSE").arg(60_000).arg(kind).take();
        pause.exec_async(&mut self.redis).await.unwrap();
    }

    /// Waits until a client's `command` stands before the barrier.
    async fn waits(&mut self, command: &str) {
        let list = redis::cmd("CLIENT").arg("LIST").take();
        loop {
            let clients: String = list.query_async(&mut self.redis).await.unwrap();
            let is_blocked = |client: &str| {
                let mut fields = client.split(' ');
                fields.any(|field| field.strip_prefix("flags=").is_some_and(|flags| flags.contains('b')))
            };
            let stands = |client: &str| client.contains(&format!("cmd={command} ")) && is_blocked(client);
            if clients.lines().any(stands) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn resume(&mut self) {
        redis::cmd("CLIENT").arg("UNPAUSE").exec_async(&mut self.redis).await.unwrap();
    }
}

/// On a test's one thread: until all other tasks wait for something.
async fn let_others_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_invalidation_that_meets_a_write_on_its_way_to_redis_removes_it() {
    let (mut stalled, cache) = Stalled::new(async |cache| assert_eq!(cache.get(&1).await, None)).await;
    let gate = Gate::new();
    let caller = tokio::spawn({
        let (cache, gate) = (cache.clone(), gate.clone());
        async move { cache.get_or_load(&1, || Source::default().load_behind(gate, ada())).await.unwrap() }
    });
    gate.arrival().await;
    stalled.pause("WRITE").await;
    gate.open();
    caller.await.unwrap();
    stalled.waits("evalsha").await;
    let invalidation = tokio::spawn({
        let cache = cache.clone();
        async move { cache.invalidate(&1).await }
    });
    let_others_run().await;
    stalled.resume().await;
    invalidation.await.unwrap();
    cache.settled().await;
    assert!(!redis(&stalled.server.url()).await.exists("user:1").await.unwrap());
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn a_value_read_from_redis_before_an_invalidation_is_not_kept_after_it() {
    let old = User { id: 1, name: "old".into() };
    // A second cache put it there, so that the first must look into Redis.
    let (mut stalled, cache) = Stalled::new(async |cache| assert_eq!(cache.get(&1).await, None)).await;
    users(&stalled.server.url()).insert(1, old.clone()).await;

    let pause = redis::cmd("CLIENT").arg("PAUSE").arg(500).arg("ALL").take();
    pause.exec_async(&mut stalled.redis).await.unwrap();
    let reads = [1, 2].map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_or_load(&1, || Source::default().load(ada())).await.unwrap() })
    });
    let look = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&1).await }
    });
    let_others_run().await;
    cache.invalidate(&1).await;
    for read in reads {
        assert_eq!(read.await.unwrap().as_deref(), Some(&old));
    }
    assert_eq!(look.await.unwrap().as_deref(), Some(&old));
    cache.settled().await;
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn a_dropped_invalidation_is_carried_to_its_end() {
    let (mut stalled, cache) = Stalled::new(async |cache| cache.insert(1, ada()).await).await;
    stalled.pause("WRITE").await;
    tokio::select! {
        biased;
        () = cache.invalidate(&1) => panic!("Redis answers no write"),
        () = stalled.waits("del") => {}
    }
    stalled.resume().await;
    cache.settled().await;
    assert!(!redis(&stalled.server.url()).await.exists("user:1").await.unwrap());
}

#[test]
fn a_url_that_is_none_is_refused() {
    let error = Remote::connect("http://example.org").unwrap_err();
    assert!(matches!(error, Error::RemoteUrl(_)));
    assert_eq!(error.to_string(), "the cache's remote needs a URL like redis://host:6379/0");
}

#[test]
fn a_remote_shows_its_address_and_not_its_password() {
    let remote = Remote::connect("redis://:secret@127.0.0.1:7/0").unwrap();
    assert_eq!(format!("{remote:?}"), r#"Remote { address: "127.0.0.1:7", .. }"#);
}

#[tokio::test]
async fn keys_of_any_bytes_are_kept_apart() {
    let server = Server::redis();
    let url = server.url();
    let named = |name| {
        Cache::<Vec<u8>, String>::builder(name).remote_with(patient(&url), Vec::clone, MessagePack).build()
    };
    let (one, other) = (named("a"), named("b"));
    let mut keys: Vec<Vec<u8>> = vec![b"".into(), b":".into(), b"a:".into(), b"\0".into(), b"\r\n".into()];
    keys.extend(["seq", "all", "tag\0t", "{a}\0seq", "*", "{", "}"].map(|key| key.as_bytes().to_vec()));
    keys.extend((128..=255).map(|byte| vec![byte, 0, byte]));
    keys.push(vec![0xc1; 100_000]);
    for cache in [&one, &other] {
        for key in &keys {
            let loaded = Loaded::value(format!("{key:?}")).tags(["t", "", "seq", "\0"]);
            cache.get_or_load(key, || async { Ok::<_, Failed>(loaded) }).await.unwrap();
        }
        cache.settled().await;
    }
    one.clear().await;
    let (one, other) = (named("a"), named("b"));
    for key in &keys {
        assert_eq!(one.get(key).await, None);
        assert_eq!(*other.get(key).await.unwrap(), format!("{key:?}"));
    }
}
