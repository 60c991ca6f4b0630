//! What is in Redis is not what was put there, and what comes in is at the end of what can be.
//!
//! Each test has a Redis of its own: of changes in one database, Redis tells the readers of the same names in another.

use std::{
    collections::HashMap,
    time::{Duration, Instant, UNIX_EPOCH},
};

use greenwave_cache::{Cache, CacheConfig, Loaded, Remote, RemoteConfig};
use greenwave_test_servers::Server;
use redis::{AsyncCommands, aio::MultiplexedConnection};

use crate::support::{Failed, Random, admin};

const PATIENCE: Duration = Duration::from_secs(10);

fn remote(url: &str) -> Remote {
    let config = RemoteConfig { timeout: PATIENCE, ..Default::default() };
    Remote::connect_with(url, config).unwrap()
}

fn cache(url: &str, config: CacheConfig) -> Cache<String, String> {
    Cache::builder("n").config(config).remote(remote(url)).build()
}

/// Every read of it shows what Redis has.
fn without_memory(url: &str) -> Cache<String, String> {
    cache(url, CacheConfig { ttl: Duration::ZERO, ..Default::default() })
}

async fn load(cache: &Cache<String, String>, key: &str, answer: Loaded<String>) -> Option<String> {
    let load = || async move { Ok::<_, Failed>(answer) };
    let loaded = cache.get_or_load(&key.to_owned(), load).await.unwrap();
    cache.settled().await;
    loaded.as_deref().cloned()
}

async fn look(cache: &Cache<String, String>, key: &str) -> Option<String> {
    cache.get(&key.to_owned()).await.as_deref().cloned()
}

fn value(value: &str) -> Loaded<String> {
    Loaded::value(value.to_owned())
}

const NAME: &str = "Ada Lovelace, Countess";

/// Of a length that is compressed.
fn long() -> String {
    "all work and no play ".repeat(300)
}

/// A Redis in which there is an entry, as it is there.
async fn an_entry(text: &str) -> (Server, Cache<String, String>, MultiplexedConnection, Vec<u8>) {
    let server = Server::redis();
    let url = server.url();
    let cache = without_memory(&url);
    load(&cache, "k", value(text).tags(["people", "counts"])).await;
    let mut redis = admin(&url).await;
    let entry: Vec<u8> = redis.get("n:k").await.unwrap();
    assert!(entry.len() < 1_000);
    assert_eq!(look(&cache, "k").await.as_deref(), Some(text));
    (server, cache, redis, entry)
}

async fn put(redis: &mut MultiplexedConnection, bytes: &[u8]) {
    redis.pset_ex::<_, _, ()>("n:k", bytes, 60_000).await.unwrap();
}

#[tokio::test]
async fn an_entry_that_is_cut_off_anywhere_is_a_miss() {
    for text in [NAME, &long()] {
        let (_server, cache, mut redis, entry) = an_entry(text).await;
        for end in 0..entry.len() {
            put(&mut redis, &entry[..end]).await;
            assert_eq!(look(&cache, "k").await, None, "the first {end} bytes of {entry:02x?}");
        }
        let longer = [&entry[..], b"more"].concat();
        put(&mut redis, &longer).await;
        assert!(look(&cache, "k").await.is_none_or(|found| found == text));
        assert_eq!(load(&cache, "k", value(text)).await.as_deref(), Some(text));
        assert_eq!(look(&cache, "k").await.as_deref(), Some(text), "it was replaced");
    }
}

#[tokio::test]
async fn an_entry_of_another_version_is_a_miss() {
    let (_server, cache, mut redis, mut entry) = an_entry(NAME).await;
    let version = entry[0];
    for other in (0..=255).filter(|&other| other != version) {
        entry[0] = other;
        put(&mut redis, &entry).await;
        assert_eq!(look(&cache, "k").await, None, "version {other}");
    }
}

// As after a RENAME, or a restore of the wrong file.
#[tokio::test]
async fn an_entry_under_another_key_is_a_miss() {
    let (_server, cache, mut redis, entry) = an_entry(NAME).await;
    for elsewhere in ["n:other", "n:K", "n:"] {
        redis.set::<_, _, ()>(elsewhere, &entry).await.unwrap();
        assert_eq!(look(&cache, &elsewhere[2..]).await, None, "{elsewhere}");
    }
}

#[tokio::test]
async fn an_entry_with_random_bytes_breaks_nothing() {
    let seed = Random::seed();
    println!("SEED={seed}");
    let mut random = Random::seeded(seed);
    for text in [NAME, &long()] {
        let (_server, cache, mut redis, entry) = an_entry(text).await;
        for _ in 0..1_000 {
            let mut broken = entry.clone();
            for _ in 0..1 + random.below(4) {
                let place = random.below(broken.len() as u64) as usize;
                broken[place] = random.below(256) as u8;
            }
            put(&mut redis, &broken).await;
            // Wrong letters are what nobody can see. But nothing small becomes huge.
            assert!(look(&cache, "k").await.is_none_or(|found| found.len() <= 2 * text.len() + 255));
        }
        redis.del::<_, ()>("n:k").await.unwrap();
        assert_eq!(load(&cache, "k", value(text)).await.as_deref(), Some(text));
    }
}

// A process that died before it could say how long its lease lasts, or bytes that happen to look like one.
#[tokio::test]
async fn a_lease_that_never_ends_does_not_delay_for_ever() {
    let server = Server::redis();
    let url = server.url();
    let mut redis = admin(&url).await;
    for lease in [&b"\xc1"[..], b"\xc1cut", &[0xc1; 17], &[0xc1; 40]] {
        let cache = without_memory(&url);
        redis.set::<_, _, ()>("n:k", lease).await.unwrap();
        assert_eq!(look(&cache, "k").await, None);
        let started = Instant::now();
        assert_eq!(load(&cache, "k", value(NAME)).await.as_deref(), Some(NAME));
        assert!(started.elapsed() < Duration::from_secs(5), "{lease:02x?}: {:?}", started.elapsed());
    }
}

// The clocks of machines differ, and jump: what an entry says of its time may be anything.
#[tokio::test]
async fn an_entry_from_another_time_is_right_or_a_miss() {
    let (_server, cache, mut redis, entry) = an_entry(NAME).await;
    let now = UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let day = 24 * 60 * 60 * 1000;
    let near = |bytes: [u8; 8]| {
        [u64::from_le_bytes(bytes), u64::from_be_bytes(bytes)].map(|at| at.abs_diff(now) < day)
    };
    let times: Vec<_> = (0..entry.len() - 8)
        .filter_map(|place| {
            let [little, big] = near(entry[place..place + 8].try_into().unwrap());
            (little || big).then_some((place, little))
        })
        .collect();
    assert!(!times.is_empty(), "an entry says when it ends, in milliseconds of eight bytes: {entry:02x?}");
    for &(place, little) in &times {
        for at in [0, 1, now - 365 * day, now - 1, now + 365 * day, i64::MAX as u64, u64::MAX] {
            let mut moved = entry.clone();
            let bytes = if little { at.to_le_bytes() } else { at.to_be_bytes() };
            moved[place..place + 8].copy_from_slice(&bytes);
            put(&mut redis, &moved).await;
            assert!(look(&cache, "k").await.is_none_or(|found| found == NAME), "{at}");
            let loaded = load(&cache, "k", value("newer")).await.unwrap();
            assert!(loaded == NAME || loaded == "newer", "{at}: {loaded}");
        }
    }
}

/// Names that may meet with what the cache itself uses, or with each other.
fn names() -> Vec<String> {
    let parts = [
        "",
        ":",
        "n",
        "k",
        "tag",
        "tags",
        "seq",
        "all",
        "lease",
        "{",
        "}",
        "*",
        "\0",
        "\n",
        "é",
        "\u{10ffff}",
        " ",
    ];
    let pairs = parts.iter().flat_map(|first| parts.iter().map(move |second| format!("{first}{second}")));
    let mut names: Vec<_> = pairs.chain((0..=127).map(|byte| char::from(byte).to_string())).collect();
    names.extend(parts.map(|part| format!(":{part}:{part}")));
    names.push("x".repeat(100_000));
    names.sort();
    names.dedup();
    names
}

#[tokio::test]
async fn keys_of_any_text_have_each_their_own_value() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (without_memory(&url), without_memory(&url));
    let names = names();
    let answers = |missing: Vec<String>| async move {
        let own = |name: String| (name.clone(), Loaded::value(name).tags(["all", "seq", ""]));
        Ok::<_, Failed>(missing.into_iter().map(own).collect::<Vec<_>>())
    };
    here.get_many(&names, answers).await.unwrap();
    here.settled().await;
    for name in &names {
        assert_eq!(look(&there, name).await.as_deref(), Some(&**name));
    }
    let all = there.get_many(&names, |missing: Vec<String>| async move {
        Err::<Vec<(String, Option<String>)>, _>(format!("{missing:?} are missing"))
    });
    let all: HashMap<_, _> = all.await.unwrap();
    assert!(all.len() == names.len() && all.iter().all(|(name, value)| *name == **value));

    here.invalidate(&names[7]).await;
    for name in &names {
        assert_eq!(look(&there, name).await.is_some(), *name != names[7], "{name:?}");
    }
}

#[tokio::test]
async fn tags_of_any_text_take_their_own_entries_along_and_no_other() {
    let server = Server::redis();
    let url = server.url();
    let (here, there) = (without_memory(&url), without_memory(&url));
    let names = names();
    for name in &names {
        load(&here, name, value(name).tags([name.as_str()])).await;
    }
    for gone in (0..names.len()).step_by(40) {
        here.invalidate_tag(names[gone].as_str()).await;
        assert_eq!(look(&here, &names[gone]).await, None, "{:?}", names[gone]);
        assert_eq!(look(&there, &names[gone]).await, None, "{:?}", names[gone]);
        let next = &names[gone + 1];
        assert_eq!(look(&there, next).await.as_ref(), Some(next), "{:?} took it along", names[gone]);
    }
}

#[tokio::test]
async fn a_config_without_sense_breaks_nothing() {
    let server = Server::redis();
    let url = server.url();
    let parts = [f64::NAN, f64::NEG_INFINITY, -1.0, 0.0, 0.5, 1.0, 2.0, f64::INFINITY];
    let times = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
    for (part, time) in parts.into_iter().flat_map(|part| times.map(|time| (part, time))) {
        for own in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
            let config = CacheConfig {
                max_entries: 10,
                ttl: time,
                ttl_jitter: part,
                refresh_after: part,
                absent_ttl: time,
                error_ttl: time,
                stale_while_revalidate: time,
                stale_if_error: time,
                retry_after: time,
                soft_timeout: time,
                remote_ttl: time,
                load_timeout: Duration::MAX,
                ..Default::default()
            };
            let namespace = format!("{part} {time:?} {own:?}");
            let remote_config = RemoteConfig {
                untracked_ttl: time,
                retry_after: time,
                namespace,
                timeout: PATIENCE,
                ..Default::default()
            };
            let remote = Remote::connect_with(&url, remote_config).unwrap();
            let cache: Cache<String, String> = Cache::builder("n").config(config).remote(remote).build();
            let answer = |answer: Loaded<String>| match own {
                Some(ttl) => answer.ttl(ttl),
                None => answer,
            };
            for _ in 0..2 {
                assert_eq!(load(&cache, "k", answer(value(NAME))).await.as_deref(), Some(NAME));
                assert_eq!(load(&cache, "none", answer(Loaded::absent())).await, None);
            }
            cache
                .get_or_load(&"bad".to_owned(), || async { Err::<Option<String>, _>(Failed) })
                .await
                .unwrap_err();
            let keys = ["k", "none", "other"].map(str::to_owned);
            let nothing = |_| async { Ok::<_, Failed>(Vec::<(String, Option<String>)>::new()) };
            cache.get_many(&keys, nothing).await.unwrap();
            cache.insert("k".to_owned(), "new".to_owned()).await;
            let found = look(&cache, "k").await;
            assert!(
                found.as_deref() == Some("new") || (found.is_none() && time < Duration::MAX),
                "{part} {time:?}"
            );
            cache.invalidate(&"k".to_owned()).await;
            assert_eq!(look(&cache, "k").await, None);
        }
    }
    for timeout in [Duration::ZERO, Duration::MAX] {
        let config = RemoteConfig { timeout, ..Default::default() };
        let remote = Remote::connect_with(&url, config).unwrap();
        let cache: Cache<String, String> = Cache::builder("m").remote(remote).build();
        assert_eq!(load(&cache, "k", value(NAME)).await.as_deref(), Some(NAME));
    }
}

/// Removes all keys but those of entries, as Redis may when it is full.
async fn evict_counters(redis: &mut MultiplexedConnection, entries: &[&str]) -> usize {
    let keys: Vec<Vec<u8>> = redis.keys("*").await.unwrap();
    let counters: Vec<_> =
        keys.into_iter().filter(|key| !entries.iter().any(|entry| entry.as_bytes() == key)).collect();
    if !counters.is_empty() {
        redis.del::<_, ()>(&counters).await.unwrap();
    }
    counters.len()
}

#[tokio::test]
async fn an_eviction_of_what_tags_are_counted_by_revives_nothing() {
    let server = Server::redis();
    let url = server.url();
    let mut redis = admin(&url).await;
    let here = without_memory(&url);
    let tagged = |text| value(text).tags(["people"]);
    // Evicted before, after, or on both sides of the invalidation.
    for (number, (before, after)) in [(true, false), (false, true), (true, true)].into_iter().enumerate() {
        let key = format!("k{number}");
        load(&here, &key, tagged("old")).await;
        let entry = format!("n:{key}");
        if before {
            assert!(evict_counters(&mut redis, &[&entry]).await > 0, "tags are counted somewhere");
        }
        here.invalidate_tag("people").await;
        if after {
            evict_counters(&mut redis, &[&entry]).await;
        }
        for cache in [&here, &without_memory(&url)] {
            assert_eq!(look(cache, &key).await, None, "before: {before}, after: {after}");
        }
        // And life goes on.
        assert_eq!(load(&here, &key, tagged("new")).await.as_deref(), Some("new"));
        for cache in [&here, &without_memory(&url)] {
            assert_eq!(look(cache, &key).await.as_deref(), Some("new"), "before: {before}, after: {after}");
        }
        here.invalidate_tag("people").await;
        assert_eq!(look(&without_memory(&url), &key).await, None);
    }
}

#[tokio::test]
async fn an_eviction_during_a_clear_revives_nothing() {
    let server = Server::redis();
    let url = server.url();
    let mut redis = admin(&url).await;
    let here = without_memory(&url);
    load(&here, "k", value("old")).await;
    here.clear().await;
    evict_counters(&mut redis, &["n:k"]).await;
    for cache in [&here, &without_memory(&url)] {
        assert_eq!(look(cache, "k").await, None);
    }
    assert_eq!(load(&here, "k", value("new")).await.as_deref(), Some("new"));
    assert_eq!(look(&without_memory(&url), "k").await.as_deref(), Some("new"));
}

// Redis does not tell a client with NOLOOP of what is evicted for its own commands, and nobody of the removal of what is
// not there: the one who evicted a key would never hear of it again.
#[tokio::test]
async fn a_process_hears_of_a_change_of_what_redis_evicted_for_it() {
    let server = Server::redis_with(&["maxmemory 8mb", "maxmemory-policy allkeys-random"]);
    let mut redis = admin(&server.url()).await;
    let [here, there] = [(); 2].map(|()| cache(&server.url(), CacheConfig::default()));
    load(&here, "k", value("old").tags(["people"])).await;
    load(&here, "tagged", value("old").tags(["people"])).await;
    let since = Instant::now();
    for number in 0.. {
        let evicted = redis.exists::<_, u64>("n:k").await.unwrap() == 0;
        if evicted && redis.keys::<_, Vec<Vec<u8>>>("*people*").await.unwrap().is_empty() {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "they are never evicted");
        here.insert(format!("more {number}"), "x".repeat(3_000)).await;
    }
    there.invalidate(&"k".to_owned()).await;
    there.invalidate_tag("people").await;
    let since = Instant::now();
    while look(&here, "k").await.is_some() || look(&here, "tagged").await.is_some() {
        assert!(since.elapsed() < Duration::from_secs(1), "it was not told");
    }
}

// Entries, leases and counters go at any moment.
#[tokio::test]
async fn a_redis_that_evicts_what_it_likes_serves_nothing_old() {
    const KEYS: u64 = 2_000;
    let server = Server::redis_with(&["maxmemory 8mb", "maxmemory-policy allkeys-random"]);
    let seed = Random::seed();
    println!("SEED={seed}");
    let mut random = Random::seeded(seed);
    let processes = [(); 2].map(|()| cache(&server.url(), CacheConfig::default()));
    let mut versions = [1_u64; 20];
    let mut floors = [[1; 20]; 2];
    let group = |key: u64| key as usize % 20;
    let version = |text: &String| text.split(' ').next().unwrap().parse::<u64>().unwrap();
    for _ in 0..2_500 {
        let (process, key) = (random.below(2) as usize, random.below(KEYS));
        let (cache, group) = (&processes[process], group(key));
        let tag = format!("group {group}");
        if random.below(50) == 0 {
            versions[group] += 1;
            cache.invalidate_tag(tag.as_str()).await;
            floors[process][group] = versions[group];
        }
        let answer = value(&format!("{} {}", versions[group], "x".repeat(4_000))).tags([tag]);
        let load = || async move { Ok::<_, Failed>(answer) };
        let seen = version(&cache.get_or_load(&key.to_string(), load).await.unwrap().unwrap());
        assert!(seen >= floors[process][group], "SEED={seed}: key {key} is at version {seen}");
    }
    let evicted: String =
        redis::cmd("INFO").arg("stats").query_async(&mut admin(&server.url()).await).await.unwrap();
    assert!(!evicted.contains("evicted_keys:0\r"), "Redis was never full");
    let deadline = Instant::now() + Duration::from_secs(1);
    for (cache, key) in processes.iter().flat_map(|cache| (0..KEYS).map(move |key| (cache, key))) {
        while let Some(seen) = look(cache, &key.to_string()).await
            && version(&seen) < versions[group(key)]
        {
            assert!(Instant::now() < deadline, "SEED={seed}: key {key} is at version {}", version(&seen));
        }
    }
}
