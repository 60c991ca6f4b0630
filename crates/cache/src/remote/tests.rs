//! What tiers promise each other. Each has a remote of its own, as in processes of their own.
//!
//! Each test has a server of its own, too: Redis tells of a key's changes in any of its databases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use greenwave_test_servers::Server;
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};
use tokio::{task::JoinSet, time::Instant};

use super::{
    Filled, Lease, MessagePack, Outgoing, Remote, Standing, Tier, Turn, display, remote_tags::Verdict,
};
use crate::{CacheConfig, RemoteConfig, tags::Tags};

const LIFE: Duration = Duration::from_secs(60);

struct Process {
    tier: Tier<u64, String>,
    local: Arc<Tags>,
}

impl std::ops::Deref for Process {
    type Target = Tier<u64, String>;

    fn deref(&self) -> &Tier<u64, String> {
        &self.tier
    }
}

async fn process(url: &str) -> Process {
    process_with(url, CacheConfig::default()).await
}

/// Patient, so that a busy machine is no outage; and by now it hears.
async fn process_with(url: &str, config: CacheConfig) -> Process {
    let patient = RemoteConfig { timeout: Duration::from_secs(10), ..Default::default() };
    let remote = Remote::connect_with(url, patient).unwrap();
    let local = Arc::new(Tags::default());
    let tags = Arc::clone(&local);
    let tier = Tier::new(remote, "name", &config, tags, Box::new(display), Box::new(MessagePack));
    assert!(tier.get(&u64::MAX).await.is_none());
    assert!(tier.coherence().hears());
    Process { tier, local }
}

async fn redis(url: &str) -> MultiplexedConnection {
    let patient = redis::AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection_with_config(&patient).await.unwrap()
}

fn tags<const N: usize>(names: [&str; N]) -> [Arc<str>; N] {
    names.map(Arc::from)
}

impl Process {
    async fn lease(&self, key: u64) -> Lease {
        match self.turn(&key).await {
            Turn::Lead(lease) => lease.expect("Redis is there"),
            Turn::Found(kept) => panic!("{:?}", kept.value),
        }
    }

    async fn fill_with(&self, key: u64, lease: Lease, value: &str, tags: &[Arc<str>]) -> Filled {
        let value = &value.to_owned();
        self.fill(&key, lease, Outgoing { value: Some(value), fresh_for: LIFE, stale_for: LIFE, tags }).await
    }

    /// As a miss does.
    async fn load(&self, key: u64, value: &str, tags: &[Arc<str>]) -> Filled {
        let lease = self.lease(key).await;
        self.fill_with(key, lease, value, tags).await
    }

    async fn put(&self, key: u64, value: &str, fresh_for: Duration, tags: &[Arc<str>]) -> Filled {
        self.set(&key, Outgoing { value: Some(&value.to_owned()), fresh_for, stale_for: LIFE, tags }).await
    }

    async fn has(&self, key: u64) -> Option<String> {
        Some((*self.get(&key).await?.value?).clone())
    }
}

/// Waits for what another connection was told.
async fn until(mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn of_what_was_written_here_a_change_elsewhere_is_heard() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let Filled::Yes(filled) = here.load(1, "a", &[]).await else { panic!() };
    let Filled::Yes(set) = here.put(2, "b", LIFE, &[]).await else { panic!() };
    // A refresh that fails leaves what was there, and whoever has it in memory goes on hearing of it.
    here.put(3, "c", Duration::ZERO, &[]).await;
    let stale = here.get(&3).await.unwrap().seal;
    let lease = here.lease(3).await;
    here.give_back(&3, lease).await;
    for seal in [filled, set, stale] {
        assert_eq!(here.coherence().standing(seal), Standing::Current);
    }
    there.delete(&[1, 2, 3]).await;
    for seal in [filled, set, stale] {
        until(|| here.coherence().standing(seal) == Standing::Changed).await;
    }
}

#[tokio::test]
async fn who_finds_a_lease_waits_for_what_it_brings() {
    let server = Server::redis();
    let url = server.url();
    let (holder, waiter) = (process(&url).await, process(&url).await);
    let lease = holder.lease(1).await;
    let begun = Instant::now();
    let fill = async {
        until(|| waiter.listener.waits.waiting() > 0).await;
        assert!(matches!(holder.fill_with(1, lease, "a", &[]).await, Filled::Yes(_)));
    };
    let (turn, ()) = tokio::join!(waiter.turn(&1), fill);
    let Turn::Found(kept) = turn else { panic!("it was loaded twice") };
    assert_eq!(kept.value.unwrap().as_str(), "a");
    assert!(begun.elapsed() < Duration::from_secs(2), "woken, and not by the lease's end");
}

#[tokio::test]
async fn who_has_nothing_to_fill_lets_the_next_one_try() {
    let server = Server::redis();
    let url = server.url();
    let (first, second) = (process(&url).await, process(&url).await);
    let lease = first.lease(1).await;
    first.give_back(&1, lease).await;
    let lease = second.lease(1).await;
    let nothing = Outgoing { value: None, fresh_for: Duration::ZERO, stale_for: Duration::ZERO, tags: &[] };
    assert!(matches!(second.fill(&1, lease, nothing).await, Filled::Unavailable(_)));
    assert_eq!(redis(&url).await.exists("name:1").await, Ok(false));
    let lease = first.lease(1).await;
    let absent = Outgoing { value: None, fresh_for: LIFE, stale_for: LIFE, tags: &[] };
    assert!(matches!(first.fill(&1, lease, absent).await, Filled::Yes(_)));
    let kept = second.get(&1).await.unwrap();
    assert!(kept.value.is_none() && !kept.fresh_for.is_zero(), "that there is nothing is kept too");
}

#[tokio::test]
async fn the_lease_of_the_dead_runs_out_and_that_of_the_living_does_not() {
    let server = Server::redis();
    let url = server.url();
    let (holder, other) = (process(&url).await, process(&url).await);
    other.put(2, "old", Duration::ZERO, &[]).await;
    let (living, dead, dead_before_stale) =
        (holder.lease(1).await, holder.lease(3).await, holder.lease(2).await);
    let (dead_id, begun) = (dead.id, Instant::now());
    drop((dead, dead_before_stale));
    assert_eq!(other.has(2).await.as_deref(), Some("old"), "readable meanwhile");
    for key in [3, 2] {
        let lease = other.lease(key).await;
        assert!(matches!(other.fill_with(key, lease, "new", &[]).await, Filled::Yes(_)));
    }
    assert!((2..6).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // Who has lost his lease fills nothing.
    let renewal = tokio::spawn(async {}).abort_handle();
    let late = Lease { id: dead_id, seq: u64::MAX, renewal };
    assert!(matches!(holder.fill_with(3, late, "late", &[]).await, Filled::Outdated));
    assert_eq!(other.has(3).await.as_deref(), Some("new"));

    tokio::time::sleep_until(begun + Duration::from_millis(4_500)).await;
    assert!(matches!(holder.fill_with(1, living, "slow", &[]).await, Filled::Yes(_)));
}

#[tokio::test]
async fn a_stale_value_stays_readable_while_a_lease_stands_before_it() {
    let server = Server::redis();
    let url = server.url();
    let (holder, reader) = (process(&url).await, process(&url).await);
    holder.put(1, "old", Duration::ZERO, &[]).await;
    let lease = holder.lease(1).await;
    let kept = reader.get(&1).await.unwrap();
    assert_eq!((kept.value.unwrap().as_str(), kept.fresh_for), ("old", Duration::ZERO));
    assert!(kept.stale_for > LIFE / 2);
    assert!(matches!(holder.fill_with(1, lease, "new", &[]).await, Filled::Yes(_)));
    assert_eq!(reader.has(1).await.as_deref(), Some("new"));
    // Where a refresh is due, a fresh one too may be loaded anew.
    let config = CacheConfig { refresh_after: 1e-9, ..Default::default() };
    let eager = process_with(&url, config).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let lease = eager.lease(1).await;
    assert!(!reader.get(&1).await.unwrap().fresh_for.is_zero());
    eager.give_back(&1, lease).await;
    assert_eq!(reader.has(1).await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_that_want_the_same_keys_load_each_once_and_never_wait_for_each_other() {
    const KEYS: u64 = 20;
    let server = Server::redis();
    let url = server.url();
    let loads: Arc<Vec<AtomicUsize>> = Arc::new((0..KEYS).map(|_| AtomicUsize::new(0)).collect());
    let mut callers = JoinSet::new();
    for process_number in 0..4 {
        let process = Arc::new(process(&url).await);
        for caller in 0..4 {
            let (process, loads) = (Arc::clone(&process), Arc::clone(&loads));
            callers.spawn(async move {
                let mut keys: Vec<u64> = (0..KEYS).skip(caller).collect();
                if process_number % 2 == 0 {
                    keys.reverse();
                }
                let turns = process.turns(&keys).await;
                for (key, turn) in keys.into_iter().zip(turns) {
                    if let Turn::Lead(lease) = turn {
                        loads[key as usize].fetch_add(1, Ordering::SeqCst);
                        process.fill_with(key, lease.unwrap(), "a", &[]).await;
                    }
                }
            });
        }
    }
    let begun = Instant::now();
    callers.join_all().await;
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}: somebody waited for a lease's end",
        begun.elapsed()
    );
    assert!(loads.iter().all(|loads| loads.load(Ordering::SeqCst) == 1), "{loads:?}");
}

#[tokio::test]
async fn a_tag_takes_its_entries_along_everywhere() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let [red, blue] = tags(["red", "b:l\0ue"]);
    here.load(1, "both", &[red.clone(), blue.clone()]).await;
    here.load(2, "blue", std::slice::from_ref(&blue)).await;
    here.put(3, "none", LIFE, &[]).await;
    let held = there.get(&1).await.unwrap().tags.unwrap();
    assert!(held.is_current());

    here.invalidate_tag(&red).await;
    for process in [&here, &there] {
        assert_eq!(process.has(1).await, None);
        assert_eq!(process.has(2).await.as_deref(), Some("blue"));
        assert_eq!(process.has(3).await.as_deref(), Some("none"));
    }
    until(|| !held.is_current()).await;
    // What is loaded or put afterwards is good.
    assert!(matches!(there.load(1, "new", std::slice::from_ref(&red)).await, Filled::Yes(_)));
    assert_eq!(here.has(1).await.as_deref(), Some("new"));
    there.invalidate_tag(&red).await;
    assert!(matches!(here.put(1, "newer", LIFE, std::slice::from_ref(&red)).await, Filled::Yes(_)));
    assert_eq!(there.has(1).await.as_deref(), Some("newer"));
}

#[tokio::test]
async fn a_tag_invalidated_during_a_load_wins() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let red = tags(["red"]);
    for known_before in [false, true] {
        let lease = here.lease(1).await;
        there.invalidate_tag(&red[0]).await;
        until(|| here.listener.tags.verdict(lease.seq, ["red"]) != Verdict::Good).await;
        assert!(matches!(here.fill_with(1, lease, "old", &red).await, Filled::Outdated), "{known_before}");
        assert_eq!(here.has(1).await, None);
        here.load(2, "makes the tag known", &red).await;
    }
    let lease = here.lease(1).await;
    there.clear().await;
    until(|| here.listener.tags.verdict(lease.seq, []) != Verdict::Good).await;
    assert!(matches!(here.fill_with(1, lease, "old", &[]).await, Filled::Outdated));
}

// As with a tag for each entity, of which some are invalidated all the time.
#[tokio::test]
async fn a_load_is_kept_though_other_tags_are_invalidated_during_it() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let [red, blue] = tags(["red", "blue"]);
    here.load(1, "old", std::slice::from_ref(&red)).await;
    there.invalidate_tag(&red).await;
    assert_eq!(here.has(1).await, None);
    let lease = here.lease(1).await;
    there.invalidate_tag(&blue).await;
    assert!(matches!(here.fill_with(1, lease, "new", std::slice::from_ref(&red)).await, Filled::Yes(_)));
    assert_eq!(there.has(1).await.as_deref(), Some("new"));
}

#[tokio::test]
async fn a_full_redis_still_forgets_tags() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let red = tags(["red"]);
    let mut redis = redis(&url).await;
    for (tagged, other, invalidate) in [(1, 2, true), (3, 4, false)] {
        here.load(tagged, "a", &red).await;
        here.load(other, "b", &[]).await;
        let memory = async |redis: &mut MultiplexedConnection, limit: &str| {
            redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(limit).exec_async(redis).await.unwrap();
        };
        memory(&mut redis, "1").await;
        match invalidate {
            true => here.invalidate_tag(&red[0]).await,
            false => here.clear().await,
        }
        assert_eq!(here.has(tagged).await, None);
        assert_eq!(there.has(tagged).await, None);
        assert_eq!(here.has(other).await.is_some(), invalidate, "it is still asked");
        memory(&mut redis, "0").await;
        assert!(matches!(there.load(tagged, "new", &red).await, Filled::Yes(_)));
        assert_eq!(here.has(tagged).await.as_deref(), Some("new"));
    }
}

#[tokio::test]
async fn an_older_answer_lowers_no_counter() {
    let server = Server::redis();
    let here = process(&server.url()).await;
    let tags = &here.listener.tags;
    let seals = ["{name}\0seq", "{name}\0all"].map(|key| here.coherence().seal(key.as_bytes()));
    let answers = |number: u64| {
        let number = number.to_string().into_bytes();
        [redis::Value::BulkString(number.clone()), redis::Value::BulkString(number)]
    };
    tags.learn(&[], &seals, &answers(7), None);
    tags.learn(&[], &seals, &answers(6), None);
    assert_eq!(tags.count().await, Some(7));
    // What is on its way while a tag changes elsewhere is not taken for the news.
    tags.changed(Some(b"{name}\0tag\0red"));
    tags.learn(&[], &seals, &answers(7), None);
    assert_ne!(tags.count().await, Some(7));
}

#[tokio::test]
async fn a_clear_is_heard_and_spares_other_caches() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let clears = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&clears);
    there.on_clear(Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    here.put(1, "a", LIFE, &[]).await;
    assert!(there.has(1).await.is_some());
    here.clear().await;
    until(|| clears.load(Ordering::SeqCst) == 1).await;
    assert_eq!(there.has(1).await, None);
    assert_eq!(here.has(1).await, None);
    here.put(1, "b", LIFE, &[]).await;
    assert_eq!(there.has(1).await.as_deref(), Some("b"));
    assert_eq!(clears.load(Ordering::SeqCst), 1, "its beginning anew is no clearing");
}

#[tokio::test]
async fn what_redis_forgot_of_tags_brings_nothing_back() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let red = tags(["red"]);
    let (count, tag) = ("{name}\0seq", "{name}\0tag\0red");
    let mut redis = redis(&url).await;
    here.load(1, "old", &red).await;
    here.invalidate_tag(&red[0]).await;
    // The tag comes back with another entry, is evicted, and comes back once more.
    for _ in 0..2 {
        there.load(2, "new", &red).await;
        assert_eq!((there.has(1).await, here.has(1).await), (None, None));
        redis.del(tag).await.unwrap();
    }
    assert_eq!(here.has(2).await, None);
    for garbage in ["", "nan", "-1", "1e9", "99999999999999999999"] {
        redis.set(count, garbage).await.unwrap();
        redis.set(tag, garbage).await.unwrap();
        assert!(matches!(there.load(2, "new", &red).await, Filled::Yes(_)), "{garbage}");
        assert_eq!(here.has(2).await.as_deref(), Some("new"));
        assert_eq!(here.has(1).await, None);
        here.invalidate_tag(&red[0]).await;
        assert_eq!(there.has(2).await, None);
    }
    redis.del(&[count, tag]).await.unwrap();
    redis.rpush(count, "x").await.unwrap();
    redis.rpush(tag, "x").await.unwrap();
    assert!(matches!(there.load(2, "new", &red).await, Filled::Yes(_)));
}

#[tokio::test]
async fn a_tag_outlives_its_entries() {
    let server = Server::redis();
    let url = server.url();
    let here = process(&url).await;
    let red = tags(["red"]);
    here.load(1, "a", &red).await;
    let mut redis = redis(&url).await;
    let ends = async |redis: &mut MultiplexedConnection| {
        redis::cmd("PTTL").arg("{name}\0tag\0red").query_async::<u64>(redis).await.unwrap()
    };
    assert!(ends(&mut redis).await >= 2 * LIFE.as_millis() as u64);
    let value = &"b".to_owned();
    let long = Outgoing { value: Some(value), fresh_for: 10 * LIFE, stale_for: Duration::MAX, tags: &red };
    here.set(&2, long).await;
    assert!(ends(&mut redis).await > 10 * LIFE.as_millis() as u64);
}

#[tokio::test]
async fn a_read_costs_one_get() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (process(&url).await, process(&url).await);
    let both = tags(["red", "blue"]);
    for key in 0..3 {
        here.load(key, "a", &both).await;
    }
    there.get(&0).await.unwrap();
    let mut redis = redis(&url).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut redis).await.unwrap();
    for key in [0, 1, 2, 9] {
        assert_eq!(there.get(&key).await.is_some(), key != 9);
    }
    assert_eq!(
        there.get_many(&[0, 9, 2]).await.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false, true]
    );
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
    let calls = |command: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    assert_eq!((calls("get"), calls("mget"), calls("evalsha"), calls("eval")), (4, 1, 0, 0), "{stats}");
}

#[tokio::test]
async fn local_tags_are_sampled_before_the_read() {
    let server = Server::redis();
    let url = server.url();
    let here = process(&url).await;
    let red = tags(["red"]);
    here.load(1, "a", &red).await;
    let before = here.before(b"name:1");
    here.local.invalidate(&red[0]);
    let bytes: Vec<u8> = redis::cmd("GET").arg("name:1").query_async(&mut redis(&url).await).await.unwrap();
    match here.judge(here.open(b"name:1", &bytes), before) {
        super::tier::Found::Good(kept) => assert!(!kept.tags.unwrap().is_current()),
        _ => panic!("it is there"),
    }
}
