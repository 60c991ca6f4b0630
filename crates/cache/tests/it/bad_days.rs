//! Redis fails in every way that it can, while processes read and write.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use greenwave_cache::{Cache, CacheConfig, CoherenceMode, Remote, RemoteConfig};
use greenwave_test_servers::{RedisCluster, RedisSentinel, Server};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    remote::patient,
    support::{Failed, Gate, Random, Recording, Source, admin, tell},
};

const SECOND: Duration = Duration::from_secs(1);
/// How long one operation on Redis may take: the default.
const TIMEOUT: Duration = Duration::from_millis(250);
/// What a busy machine may add at worst.
const SLACK: Duration = Duration::from_secs(3);

/// A Redis that can go down and come back, in one of the ways in which they do.
enum Place {
    Killed(Server),
    Frozen(Server),
    /// Another takes its place.
    Replaced(RedisSentinel),
    /// All of a cluster.
    Cluster(RedisCluster),
}

impl Place {
    fn url(&self) -> String {
        match self {
            Place::Killed(server) | Place::Frozen(server) => server.url(),
            Place::Replaced(group) => group.url(),
            Place::Cluster(cluster) => cluster.url(),
        }
    }

    fn down(&mut self) {
        match self {
            Place::Killed(server) => server.kill(),
            Place::Frozen(server) => server.pause(),
            Place::Replaced(group) => group.primary().kill(),
            Place::Cluster(cluster) => cluster.nodes().iter_mut().for_each(Server::kill),
        }
    }

    fn up(&mut self) {
        match self {
            Place::Killed(server) => server.start(),
            Place::Frozen(server) => server.resume(),
            Place::Replaced(group) => group.failed_over(),
            Place::Cluster(cluster) => {
                cluster.nodes().iter_mut().for_each(Server::start);
                cluster.well();
            }
        }
    }
}

fn process(url: &str, coherence: CoherenceMode) -> Cache<usize, u64> {
    let config = RemoteConfig { timeout: TIMEOUT, coherence, ..Default::default() };
    Cache::builder("n").remote(Remote::connect_with(url, config).unwrap()).build()
}

async fn load(cache: &Cache<usize, u64>, key: usize, version: u64) -> u64 {
    *cache.get_or_load(&key, || async move { Ok::<_, Failed>(Some(version)) }).await.unwrap().unwrap()
}

/// Waits until `cache` has nothing older than `version`, which it must within a second.
async fn never_older(what: &str, cache: &Cache<usize, u64>, key: usize, version: u64) {
    let since = Instant::now();
    while let Some(seen) = cache.get(&key).await
        && *seen < version
    {
        assert!(
            since.elapsed() < SECOND,
            "{what}: after a second version {seen} of key {key}, now {version}"
        );
        sleep(Duration::from_millis(2)).await;
    }
}

/// Has one process insert a version until the other finds it in Redis: a busy machine may take longer to connect than
/// either waits.
async fn are_joined(
    what: &str,
    one: &Cache<usize, u64>,
    other: &Cache<usize, u64>,
    key: usize,
    version: u64,
) {
    let since = Instant::now();
    while other.get(&key).await.as_deref() != Some(&version) {
        assert!(since.elapsed() < 20 * SECOND, "{what}: Redis is not used");
        one.insert(key, version).await;
        sleep(Duration::from_millis(5)).await;
    }
}

/// Two processes that have the first version of a key, the second one by way of Redis.
async fn two_with(what: &str, url: &str, coherence: CoherenceMode, key: usize) -> [Cache<usize, u64>; 2] {
    let caches = [(); 2].map(|()| process(url, coherence));
    are_joined(what, &caches[0], &caches[1], key, 1).await;
    caches
}

async fn an_invalidation_during_an_outage(what: &str, mut place: Place, coherence: CoherenceMode) {
    let [here, there] = two_with(what, &place.url(), coherence, 1).await;
    place.down();
    let started = Instant::now();
    here.invalidate(&1).await;
    assert!(started.elapsed() < TIMEOUT + SLACK, "{what}: it took {:?}", started.elapsed());
    assert_eq!(here.get(&1).await, None, "{what}");
    place.up();
    // What has returned holds at every moment, whatever Redis still has.
    let looks = async {
        let since = Instant::now();
        while since.elapsed() < SECOND {
            assert_eq!(here.get(&1).await, None, "{what}: its own invalidation is undone");
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(looks, never_older(what, &there, 1, 2));
    assert_eq!(load(&there, 1, 2).await, 2, "{what}");
    are_joined(what, &there, &here, 1, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_while_redis_is_dead_is_made_good_when_it_is_back() {
    for coherence in [CoherenceMode::Tracking, CoherenceMode::Published] {
        let what = format!("killed, {coherence:?}");
        an_invalidation_during_an_outage(&what, Place::Killed(Server::redis()), coherence).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_while_redis_is_frozen_is_made_good_when_it_goes_on() {
    for coherence in [CoherenceMode::Tracking, CoherenceMode::Published] {
        let what = format!("frozen, {coherence:?}");
        an_invalidation_during_an_outage(&what, Place::Frozen(Server::redis()), coherence).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_during_a_failover_reaches_the_new_primary() {
    let place = Place::Replaced(RedisSentinel::start());
    an_invalidation_during_an_outage("failover", place, CoherenceMode::Tracking).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_while_a_cluster_is_dead_is_made_good_when_it_is_back() {
    let place = Place::Cluster(RedisCluster::start());
    an_invalidation_during_an_outage("cluster", place, CoherenceMode::Published).await;
}

// The connection stands, and Redis answers: it says no.
#[tokio::test]
async fn an_invalidation_that_redis_refuses_is_made_good_when_it_takes_writes_again() {
    let server = Server::redis();
    let mut redis = admin(&server.url()).await;
    let refusals = [
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ];
    for (number, (refuse, accept)) in refusals.into_iter().enumerate() {
        let [here, there] = two_with(refuse, &server.url(), CoherenceMode::Tracking, number).await;
        tell::<()>(&mut redis, refuse).await;
        here.invalidate(&number).await;
        for _ in 0..100 {
            assert_eq!(here.get(&number).await, None, "after {refuse} its own invalidation is undone");
        }
        assert_eq!(load(&here, number, 2).await, 2, "{refuse}");
        tell::<()>(&mut redis, accept).await;
        never_older(accept, &there, number, 2).await;
        never_older(accept, &here, number, 2).await;
    }
}

/// What readers and a writer saw while Redis had its troubles.
struct Traffic {
    caches: [Cache<usize, u64>; 2],
    source: [AtomicU64; 100],
    done: AtomicBool,
    /// How long each read took.
    took: Mutex<Vec<Duration>>,
}

impl Traffic {
    fn now(&self, key: usize) -> u64 {
        self.source[key].load(Ordering::SeqCst)
    }

    async fn read(self: Arc<Traffic>, seed: u64) {
        let mut random = Random::seeded(seed);
        while !self.done.load(Ordering::SeqCst) {
            let key = random.below(100) as usize;
            let cache = &self.caches[random.below(2) as usize];
            let (version, started) = (self.now(key), Instant::now());
            let world = Arc::clone(&self);
            let load = || async move { Ok::<_, Failed>(Some(world.now(key))) };
            cache.get_or_load(&key, load).await.expect("the source could answer").expect("and has it");
            let took = started.elapsed();
            assert!(took < TIMEOUT + SLACK, "SEED={seed}: key {key}, version {version}: {took:?}");
            self.took.lock().unwrap().push(took);
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn write(self: Arc<Traffic>, seed: u64) {
        let mut random = Random::seeded(seed);
        while !self.done.load(Ordering::SeqCst) {
            let key = random.below(100) as usize;
            self.source[key].fetch_add(1, Ordering::SeqCst);
            let started = Instant::now();
            self.caches[random.below(2) as usize].invalidate(&key).await;
            let took = started.elapsed();
            assert!(took < TIMEOUT + SLACK, "SEED={seed}: an invalidation took {took:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }
}

const READERS: u64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_that_dies_and_hangs_under_load_fails_no_read_and_costs_its_timeout_once() {
    let seed = Random::seed();
    println!("SEED={seed}");
    for mut place in [Place::Killed(Server::redis()), Place::Frozen(Server::redis())] {
        let frozen = matches!(place, Place::Frozen(_));
        // Short in memory, so that much of the load comes to Redis.
        let config = CacheConfig { ttl: Duration::from_millis(20), ..Default::default() };
        let remote = || Remote::connect(&place.url()).unwrap();
        let traffic = Arc::new(Traffic {
            caches: [(); 2].map(|()| Cache::builder("n").config(config.clone()).remote(remote()).build()),
            source: [const { AtomicU64::new(1) }; 100],
            done: AtomicBool::new(false),
            took: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for reader in 0..READERS {
            tasks.spawn(Arc::clone(&traffic).read(seed + reader));
        }
        for writer in 0..2 {
            tasks.spawn(Arc::clone(&traffic).write(seed + READERS + writer));
        }
        sleep(SECOND / 2).await;
        traffic.took.lock().unwrap().clear();
        place.down();
        sleep(2 * SECOND).await;
        let mut took = std::mem::take(&mut *traffic.took.lock().unwrap());
        took.sort();
        let waited = took.iter().filter(|took| **took > TIMEOUT * 9 / 10).count();
        let (reads, p99) = (took.len(), took[took.len() * 99 / 100]);
        println!("{reads} reads while it was away, {waited} waited for it, p99 {p99:?}; frozen: {frozen}");
        // Each cache has a breaker of its own, and each reader waits but in one at a time.
        assert!(waited <= 2 * READERS as usize, "{waited} of {reads} reads waited; frozen: {frozen}");
        assert!(p99 < TIMEOUT / 2, "p99 of {reads} reads: {p99:?}; frozen: {frozen}");
        place.up();
        sleep(SECOND / 2).await;
        traffic.done.store(true, Ordering::SeqCst);
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        for (cache, key) in traffic.caches.iter().flat_map(|cache| (0..100).map(move |key| (cache, key))) {
            never_older("after the outage", cache, key, traffic.now(key)).await;
        }
    }
}

// What was on its way when Redis froze is carried out when it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_redis_takes_late_does_not_undo_an_invalidation_after_it() {
    let server = Server::redis();
    let caches = [(); 3].map(|()| process(&server.url(), CoherenceMode::Tracking));
    for cache in &caches {
        assert_eq!(load(cache, 0, 1).await, 1);
        cache.settled().await;
    }
    server.pause();
    for (key, cache) in caches.iter().enumerate() {
        cache.insert(key, 1).await;
        cache.invalidate(&key).await;
    }
    server.resume();
    for cache in &caches {
        for key in 0..caches.len() {
            never_older("invalidated", cache, key, 2).await;
        }
    }
}

/// Reads a key that a load in another process left behind, one way or another.
async fn is_read_at_once(what: &str, url: &str, key: usize) {
    let config = RemoteConfig { timeout: 20 * SECOND, ..Default::default() };
    let cache: Cache<usize, u64> =
        Cache::builder("n").remote(Remote::connect_with(url, config).unwrap()).build();
    assert_eq!(cache.get(&99).await.as_deref(), Some(&1), "{what}: Redis is there");
    let started = Instant::now();
    load(&cache, key, 2).await;
    assert!(started.elapsed() < SECOND, "{what}: it waited {:?} for nobody", started.elapsed());
}

// Else the readers of a popular key wait until its lease ends, right when all is well again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_ended_while_redis_was_away_keeps_nobody_waiting() {
    for mut place in [Place::Killed(Server::redis()), Place::Frozen(Server::redis())] {
        let what = if matches!(place, Place::Frozen(_)) { "frozen" } else { "killed" };
        let [here, _] = two_with(what, &place.url(), CoherenceMode::Tracking, 99).await;
        let gate = Gate::new();
        let caller = tokio::spawn({
            let (cache, gate) = (here.clone(), gate.clone());
            async move { cache.get_or_load(&1, || Source::default().load_behind(gate, 1)).await.unwrap() }
        });
        gate.arrival().await;
        // Redis appends to its file every second: the lease is to be there when it comes back.
        if let Place::Killed(server) = &mut place {
            server.stop();
        }
        place.down();
        gate.open();
        caller.await.unwrap();
        here.settled().await;
        place.up();
        is_read_at_once(what, &place.url(), 1).await;
    }
}

#[tokio::test]
async fn a_lease_that_redis_gave_too_late_keeps_nobody_waiting() {
    let server = Server::redis();
    let mut redis = admin(&server.url()).await;
    let [here, _] = two_with("paused", &server.url(), CoherenceMode::Tracking, 99).await;
    // It reads, and writes nothing.
    tell::<()>(&mut redis, "CLIENT PAUSE 60000 WRITE").await;
    assert_eq!(load(&here, 1, 1).await, 1);
    here.settled().await;
    tell::<()>(&mut redis, "CLIENT UNPAUSE").await;
    is_read_at_once("paused", &server.url(), 1).await;
}

#[tokio::test]
async fn what_changes_by_flushall_is_seen() {
    let server = Server::redis();
    let mut redis = admin(&server.url()).await;
    let caches = [(); 2].map(|()| process(&server.url(), CoherenceMode::Tracking));
    for version in 1..=3 {
        for cache in &caches {
            assert_eq!(load(cache, 1, version).await, version);
            cache.settled().await;
        }
        tell::<()>(&mut redis, "FLUSHALL").await;
        for cache in &caches {
            never_older("flushed", cache, 1, version + 1).await;
        }
    }
}

#[tokio::test]
async fn a_full_redis_serves_nothing_old_and_takes_invalidations() {
    let server = Server::redis_with(&["maxmemory 8mb"]);
    let mut redis = admin(&server.url()).await;
    let recording = Recording::default();
    let process = || Cache::<usize, u64>::builder("n").remote(patient(&server.url())).build();
    let (here, there) = (recording.of(process), process());
    for (cache, key) in [(&here, 1), (&there, 1), (&here, 2), (&there, 2)] {
        assert_eq!(load(cache, key, 1).await, 1);
        cache.settled().await;
    }
    let block = "x".repeat(10_000);
    for number in 0.. {
        let set = redis::cmd("SET").arg(format!("block {number}")).arg(&block).take();
        if set.exec_async(&mut redis).await.is_err() {
            break;
        }
    }
    here.invalidate(&1).await;
    never_older("invalidated", &there, 1, 2).await;
    here.insert(2, 2).await;
    assert_eq!(recording.count("greenwave.cache.remote.failures{cache=n,operation=set}"), 1);
    assert!(here.get(&2).await.is_none_or(|seen| *seen == 2));
    never_older("inserted", &there, 2, 2).await;
    assert!(!tell::<bool>(&mut redis, "EXISTS n:2").await, "what an insert cannot replace it removes");
    assert_eq!(load(&there, 1, 2).await, 2);
    assert_eq!(load(&there, 3, 1).await, 1, "and what Redis does not take is loaded");
}

static DROPPED_ON: Mutex<Vec<ThreadId>> = Mutex::new(Vec::new());

/// Tells by whom it is dropped.
#[derive(serde::Serialize, serde::Deserialize)]
struct Tells(u8);

impl Drop for Tells {
    fn drop(&mut self) {
        DROPPED_ON.lock().unwrap().push(thread::current().id());
    }
}

// The one thread of this runtime drives the connection, too.
#[tokio::test]
async fn a_clear_from_elsewhere_runs_no_destructors_where_the_connection_is_driven() {
    let server = Server::redis();
    let cache = || {
        let remote = Remote::connect(&server.url()).unwrap();
        Cache::<u64, Tells>::builder("n").remote(remote).build()
    };
    let (here, there) = (cache(), cache());
    here.insert(1, Tells(1)).await;
    assert!(here.get(&1).await.is_some());
    DROPPED_ON.lock().unwrap().clear();
    there.clear().await;
    let deadline = Instant::now() + 30 * SECOND;
    while DROPPED_ON.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it is not dropped");
        sleep(Duration::from_millis(1)).await;
    }
    assert!(!DROPPED_ON.lock().unwrap().contains(&thread::current().id()));
}
