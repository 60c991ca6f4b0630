//! Readers and writers that race for the same keys: when they rest, nothing stale may be left, neither in the memory of
//! a process nor in Redis.
//!
//! Each has a Redis of its own: what others do in one that is shared makes it tell of changes that are none here.
//!
//! Each run prints its seeds; `SEED=7` repeats one, `RACE_SEEDS=1000` runs as many. `--release` makes some 5,000 writes
//! a second on a busy machine, and more on a quiet one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_cache::{Cache, CacheConfig, CoherenceMode, Loaded, Remote, RemoteConfig};
use greenwave_test_servers::{RedisCluster, Server};
use tokio::{
    sync::Mutex,
    task::{JoinSet, yield_now},
    time::sleep,
};

use crate::support::{Failed, Random, admin};

const KEYS: usize = 50;
const READERS: u64 = 64;
const WRITERS: u64 = 48;
/// What the writers aim at. The rate that is told counts the end of a round too, where nobody writes any more.
const WRITES_PER_SECOND: u64 = 9_000;
/// How long a round writes before all rest.
const ROUND: Duration = Duration::from_millis(120);
const ROUNDS: usize = 3;
/// How many of a hundred places must have a value to look at when all rest.
const FILLED: usize = 90;
/// How often a load yields before it answers; one that is to do so this often sleeps instead.
const DAWDLE: u64 = 8;
/// How long news of the last change may be on its way.
const NEWS: Duration = Duration::from_secs(1);

/// What races, and how its processes hear of each other.
#[derive(Clone, Copy)]
struct Race {
    processes: usize,
    coherence: CoherenceMode,
    /// Other programs write in Redis too.
    foreign: bool,
    /// Changes are told by tag: one for every ten keys.
    tags: bool,
    seeds: u64,
}

const TRACKING: Race =
    Race { processes: 3, coherence: CoherenceMode::Tracking, foreign: true, tags: false, seeds: 20 };

/// A source whose versions only grow: what is older than it should be is stale.
struct World {
    race: Race,
    seed: u64,
    namespace: String,
    caches: Vec<Cache<usize, u64>>,
    foreigner: Option<redis::aio::MultiplexedConnection>,
    source: [AtomicU64; KEYS],
    /// For each process and key the version whose invalidation has returned there: no older one may be seen.
    floors: Vec<[AtomicU64; KEYS]>,
    /// Held by who writes a key that is also inserted: the last to change the source must be the last to insert.
    turns: [Mutex<()>; KEYS],
    writing: AtomicBool,
    writes: AtomicUsize,
    reads: AtomicUsize,
}

impl World {
    fn now(&self, key: usize) -> u64 {
        self.source[key].load(Ordering::SeqCst)
    }

    fn floor(&self, process: usize, key: usize) -> u64 {
        self.floors[process][key].load(Ordering::SeqCst)
    }

    fn check(&self, process: usize, key: usize, floor: u64, seen: u64) {
        let seed = self.seed;
        assert!(
            seen >= floor,
            "SEED={seed}: process {process} invalidated {floor} of key {key}, read {seen}"
        );
        assert!(seen <= self.now(key), "SEED={seed}: key {key} has a value that never was");
    }

    async fn answer(self: Arc<World>, key: usize, dawdle: u64) -> Loaded<u64> {
        let version = self.now(key);
        // Between reading and answering is where an invalidation hurts.
        match dawdle {
            DAWDLE.. => sleep(Duration::from_millis(1)).await,
            _ => {
                for _ in 0..dawdle {
                    yield_now().await;
                }
            }
        }
        let answer = Loaded::value(version);
        if self.race.tags { answer.tags([tag(key)]) } else { answer }
    }

    /// One read of one kind or another.
    async fn read(self: &Arc<World>, process: usize, key: usize, random: &mut Random) {
        let (cache, dawdle) = (&self.caches[process], random.below(DAWDLE + 1));
        let floor = self.floor(process, key);
        match random.below(4) {
            0 => {
                if let Some(seen) = cache.get(&key).await {
                    self.check(process, key, floor, *seen);
                }
            }
            1 | 2 => {
                let world = Arc::clone(self);
                let load = || async move { Ok::<_, Failed>(world.answer(key, dawdle).await) };
                let seen = cache.get_or_load(&key, load).await.unwrap().unwrap();
                self.check(process, key, floor, *seen);
            }
            _ => self.read_many(process, key, random).await,
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    async fn read_many(self: &Arc<World>, process: usize, key: usize, random: &mut Random) {
        let step = 1 + random.below(7) as usize;
        let keys: Vec<_> = (0..4).map(|number| (key + number * step) % KEYS).collect();
        let dawdle = random.below(DAWDLE + 1);
        let floors: Vec<_> = keys.iter().map(|&key| self.floor(process, key)).collect();
        let world = Arc::clone(self);
        let load = move |missing: Vec<usize>| {
            let world = Arc::clone(&world);
            async move {
                let mut answers = Vec::new();
                for key in missing {
                    answers.push((key, Arc::clone(&world).answer(key, dawdle).await));
                }
                Ok::<_, Failed>(answers)
            }
        };
        let seen = self.caches[process].get_many(&keys, load).await.unwrap();
        for (key, floor) in keys.iter().zip(floors) {
            self.check(process, *key, floor, *seen[key]);
        }
    }

    async fn readers(self: Arc<World>, reader: u64) {
        let mut random = Random::seeded(self.seed * 1000 + reader);
        let process = reader as usize % self.caches.len();
        while self.writing.load(Ordering::SeqCst) {
            self.read(process, random.below(KEYS as u64) as usize, &mut random).await;
            // Nobody thinks of nothing: this leaves the writers their part of the machine.
            sleep(Duration::from_millis(random.below(3))).await;
        }
    }

    async fn writers(self: Arc<World>, writer: u64) {
        let mut random = Random::seeded(self.seed * 1000 + READERS + writer);
        let process = writer as usize % self.caches.len();
        let started = Instant::now();
        let pace = Duration::from_micros(1_000_000 * WRITERS / WRITES_PER_SECOND);
        for written in 0.. {
            let due = started + pace * written;
            sleep(due.saturating_duration_since(Instant::now())).await;
            if started.elapsed() >= ROUND {
                return;
            }
            self.write(process, random.below(KEYS as u64) as usize, &mut random).await;
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn write(self: &Arc<World>, process: usize, key: usize, random: &mut Random) {
        let cache = &self.caches[process];
        // Every fifth key is inserted at times, by one writer at a time.
        let is_inserted = key.is_multiple_of(5);
        let _turn = if is_inserted { Some(self.turns[key].lock().await) } else { None };
        let version = self.source[key].fetch_add(1, Ordering::SeqCst) + 1;
        match (random.below(4), &self.foreigner) {
            (0, Some(redis)) => return self.write_by_hand(redis.clone(), key, random).await,
            (1, _) if is_inserted && !self.race.tags => cache.insert(key, version).await,
            _ if self.race.tags => cache.invalidate_tag(tag(key)).await,
            _ => cache.invalidate(&key).await,
        }
        self.floors[process][key].fetch_max(version, Ordering::SeqCst);
        if random.below(3) == 0 {
            self.read(process, key, random).await;
        }
    }

    /// As a program does that knows nothing of this crate.
    async fn write_by_hand(
        &self,
        mut redis: redis::aio::MultiplexedConnection,
        key: usize,
        random: &mut Random,
    ) {
        let name = format!("{}:race:{key}", self.namespace);
        let command = match random.below(2) {
            0 => redis::cmd("DEL").arg(name).take(),
            _ => redis::cmd("SET").arg(name).arg("not an entry").take(),
        };
        command.exec_async(&mut redis).await.unwrap();
    }

    async fn round(self: &Arc<World>) {
        self.writing.store(true, Ordering::SeqCst);
        let mut readers = JoinSet::new();
        for reader in 0..READERS {
            readers.spawn(Arc::clone(self).readers(reader));
        }
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(Arc::clone(self).writers(writer));
        }
        writers.join_all().await;
        self.writing.store(false, Ordering::SeqCst);
        readers.join_all().await;
        for cache in &self.caches {
            cache.settled().await;
        }
    }

    /// Looks at each key in each of `caches`; returns how many values there were, and were the newest.
    async fn rest(&self, what: &str, caches: &[Cache<usize, u64>]) -> usize {
        let (deadline, mut good) = (Instant::now() + NEWS, 0);
        for (process, cache) in caches.iter().enumerate() {
            for key in 0..KEYS {
                while let Some(kept) = cache.get(&key).await {
                    if *kept == self.now(key) {
                        good += 1;
                        break;
                    }
                    assert!(
                        Instant::now() < deadline,
                        "SEED={}: at rest {what} {process} has version {kept} of key {key}, now {}",
                        self.seed,
                        self.now(key)
                    );
                    yield_now().await;
                }
            }
        }
        good
    }
}

fn tag(key: usize) -> String {
    format!("tens:{}", key / 10)
}

fn remote(url: &str, coherence: CoherenceMode, namespace: &str) -> Remote {
    // Where changes are heard, nothing is to be hidden by an early end of what is kept.
    let untracked_ttl = Duration::from_millis(if coherence == CoherenceMode::Off { 50 } else { 60_000 });
    let timeout = Duration::from_secs(10);
    let namespace = namespace.to_owned();
    let config = RemoteConfig { timeout, coherence, untracked_ttl, namespace, ..Default::default() };
    Remote::connect_with(url, config).unwrap()
}

async fn world(race: Race, url: Option<&str>, seed: u64) -> Arc<World> {
    let namespace = format!("seed {seed}");
    let cache = |_| {
        let builder = Cache::builder("race");
        match url {
            Some(url) => builder.remote(remote(url, race.coherence, &namespace)).build(),
            None => builder.build(),
        }
    };
    let foreigner = match url {
        Some(url) if race.foreign => Some(admin(url).await),
        _ => None,
    };
    Arc::new(World {
        race,
        seed,
        caches: (0..race.processes).map(cache).collect(),
        namespace,
        foreigner,
        source: [const { AtomicU64::new(1) }; KEYS],
        floors: (0..race.processes).map(|_| [const { AtomicU64::new(0) }; KEYS]).collect(),
        turns: [const { Mutex::const_new(()) }; KEYS],
        writing: AtomicBool::new(false),
        writes: AtomicUsize::new(0),
        reads: AtomicUsize::new(0),
    })
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let first = Random::seed();
    first..first + if number("SEED").is_some() { 1 } else { number("RACE_SEEDS").unwrap_or(count) }
}

/// Says how many values it looked at.
async fn run(race: Race, url: Option<String>) -> usize {
    let (mut checks, mut looks, mut writes, mut reads, mut raced) = (0, 0, 0, 0, Duration::ZERO);
    for seed in seeds(race.seeds) {
        println!("SEED={seed}");
        let world = world(race, url.as_deref(), seed).await;
        for _ in 0..ROUNDS {
            let started = Instant::now();
            world.round().await;
            raced += started.elapsed();
            checks += world.rest("the memory of process", &world.caches).await;
            looks += KEYS * race.processes;
            if let Some(url) = &url {
                // Without memory, what is stale is stale in Redis.
                let config = CacheConfig { ttl: Duration::ZERO, ..Default::default() };
                let bare = Cache::builder("race")
                    .config(config)
                    .remote(remote(url, race.coherence, &world.namespace))
                    .build();
                checks += world.rest("Redis, seen by process", &[bare]).await;
                looks += KEYS;
            }
        }
        writes += world.writes.load(Ordering::Relaxed);
        reads += world.reads.load(Ordering::Relaxed);
    }
    assert!(checks * 100 >= looks * FILLED, "only {checks} of {looks} places had a value to look at");
    let per_second = |count: usize| count as f64 / raced.as_secs_f64();
    println!(
        "{checks} values in {looks} places, none stale; {writes} writes, {:.0} a second; {reads} reads, {:.0} a second",
        per_second(writes),
        per_second(reads),
    );
    checks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_readers_and_writers_leave_nothing_stale_in_memory() {
    run(Race { processes: 1, seeds: 5, ..TRACKING }, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_of_processes_and_foreign_writers_leave_nothing_stale() {
    let server = Server::redis();
    let checks = run(TRACKING, Some(server.url())).await;
    assert!(seeds(TRACKING.seeds).count() < 20 || checks >= 10_000, "{checks}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_of_invalidations_by_tag_leave_nothing_stale() {
    let server = Server::redis();
    run(Race { foreign: false, tags: true, seeds: 3, ..TRACKING }, Some(server.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_leave_nothing_stale_where_caches_tell_each_other() {
    let race = Race { coherence: CoherenceMode::Published, foreign: false, seeds: 3, ..TRACKING };
    let server = Server::redis();
    run(race, Some(server.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_leave_nothing_stale_in_a_cluster() {
    let cluster = RedisCluster::start();
    run(Race { foreign: false, seeds: 3, ..TRACKING }, Some(cluster.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn races_leave_nothing_stale_for_long_where_nobody_tells() {
    let race = Race { coherence: CoherenceMode::Off, seeds: 3, ..TRACKING };
    let server = Server::redis();
    run(race, Some(server.url())).await;
}
