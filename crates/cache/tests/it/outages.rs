use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_cache::{Cache, CacheConfig, Remote, RemoteConfig};
use greenwave_test_servers::Server;

use crate::support::{Recording, Source, admin};

/// Without memory, so that every read shows what the remote does.
fn without_memory(url: &str, remote: RemoteConfig) -> (Cache<u64, u64>, Recording) {
    let recording = Recording::default();
    let config = CacheConfig { ttl: Duration::ZERO, ..Default::default() };
    let remote = Remote::connect_with(url, remote).unwrap();
    let cache = recording.of(|| Cache::builder("n").config(config).remote(remote).build());
    (cache, recording)
}

async fn read(cache: &Cache<u64, u64>, source: &Source) -> u64 {
    let value = cache.get_or_load(&1, || source.clone().load(7)).await.unwrap().unwrap();
    cache.settled().await;
    *value
}

#[tokio::test]
async fn reads_go_on_without_a_killed_redis_and_use_it_again_when_it_is_back() {
    let mut server = Server::redis();
    let retry_after = Duration::from_millis(20);
    let config = RemoteConfig { timeout: Duration::from_secs(10), retry_after, ..Default::default() };
    let (cache, recording) = without_memory(&server.url(), config);
    let source = Source::default();
    read(&cache, &source).await;
    read(&cache, &source).await;
    assert_eq!(source.loads(), 1, "the second was answered by Redis");

    server.kill();
    for down in 1..=3 {
        assert_eq!(read(&cache, &source).await, 7);
        assert_eq!(source.loads(), 1 + down);
    }
    assert!(recording.count("greenwave.cache.remote.failures{cache=n,operation=get}") > 0);
    cache.invalidate(&1).await;
    assert_eq!(recording.count("greenwave.cache.remote.skipped{cache=n,operation=delete}"), 1);
    let stats = cache.stats();
    assert!(stats.remote_failures > 0 && stats.remote_skipped > 0 && stats.remote_unconfirmed > 0);

    server.start();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut loads = source.loads() - 1;
    while loads != source.loads() {
        assert!(Instant::now() < deadline, "Redis is back, and not used");
        loads = source.loads();
        tokio::time::sleep(retry_after).await;
        read(&cache, &source).await;
    }
    assert_eq!(cache.stats().remote_unconfirmed, 0);
}

#[tokio::test]
async fn a_redis_that_hangs_costs_its_timeout_once() {
    let server = Server::redis();
    let config = RemoteConfig {
        timeout: Duration::from_millis(250),
        retry_after: Duration::from_secs(600),
        ..Default::default()
    };
    let (cache, recording) = without_memory(&server.url(), config);
    let source = Source::default();
    read(&cache, &source).await;

    server.pause();
    let started = Instant::now();
    read(&cache, &source).await;
    let took = started.elapsed();
    assert!(took < Duration::from_millis(2_500), "the first read took {took:?}");
    for _ in 1..100 {
        assert_eq!(read(&cache, &source).await, 7);
    }
    assert_eq!(source.loads(), 101);
    assert_eq!(recording.count("greenwave.cache.remote.failures{cache=n,operation=get}"), 1);
    assert_eq!(recording.count("greenwave.cache.remote.skipped{cache=n,operation=get}"), 99);
    assert_eq!(recording.count("greenwave.cache.remote.skipped{cache=n,operation=set}"), 100);
    server.resume();
}

#[tokio::test]
async fn a_redis_that_never_was_there_fails_no_read() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (cache, _) = without_memory(&format!("redis://127.0.0.1:{port}"), RemoteConfig::default());
    let source = Source::default();
    for _ in 0..10 {
        assert_eq!(read(&cache, &source).await, 7);
    }
    cache.insert(1, 8).await;
    cache.invalidate(&1).await;
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_costs_its_timeout_once() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for scheme in ["redis", "rediss"] {
        let config = RemoteConfig { timeout: Duration::from_millis(500), ..Default::default() };
        let (cache, _) = without_memory(&format!("{scheme}://127.0.0.1:{port}"), config);
        let source = Source::default();
        let started = Instant::now();
        for _ in 0..10 {
            assert_eq!(read(&cache, &source).await, 7);
        }
        let took = started.elapsed();
        assert!((500..2_500).contains(&took.as_millis()), "ten reads took {took:?}");
    }
}

#[tokio::test]
async fn a_connection_that_redis_closed_is_opened_again_at_once() {
    let server = Server::redis();
    let url = server.url();
    let config = RemoteConfig {
        timeout: Duration::from_secs(10),
        retry_after: Duration::from_secs(600),
        ..Default::default()
    };
    let (cache, recording) = without_memory(&url, config);
    let source = Source::default();
    read(&cache, &source).await;

    let mut admin = admin(&url).await;
    let kill = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes").take();
    assert!(kill.query_async::<u64>(&mut admin).await.unwrap() > 0);

    // Another connection takes its place, though nobody asks for it, and long before `retry_after`.
    let deadline = Instant::now() + Duration::from_secs(30);
    while recording.count("greenwave.cache.requests{cache=n,result=remote_hit}") == 0 {
        assert!(Instant::now() < deadline, "there is no new connection");
        assert_eq!(cache.get(&1).await.unwrap_or(Arc::new(7)), Arc::new(7));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Forwards to a Redis. While `hung`, it takes what comes on connections that it has, and passes nothing on.
async fn proxy(listener: tokio::net::TcpListener, redis: String, hung: tokio::sync::watch::Receiver<bool>) {
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(&redis).await.unwrap();
        let mut hung = hung.clone();
        hung.mark_unchanged();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = hung.changed() => std::future::pending().await,
            }
        });
    }
}

// What a firewall does that forgets a connection: no answer, and no end of it either.
#[tokio::test]
async fn a_connection_that_hangs_is_replaced() {
    let server = Server::redis();
    let url = server.url();
    let redis = url.strip_prefix("redis://").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (hang, hung) = tokio::sync::watch::channel(false);
    tokio::spawn(proxy(listener, redis.to_owned(), hung));

    let config = RemoteConfig {
        timeout: Duration::from_millis(500),
        retry_after: Duration::from_millis(1),
        ..Default::default()
    };
    let (cache, recording) = without_memory(&format!("redis://127.0.0.1:{port}"), config);
    let source = Source::default();
    while recording.count("greenwave.cache.requests{cache=n,result=remote_hit}") == 0 {
        read(&cache, &source).await;
    }
    hang.send_replace(true);
    let before = recording.count("greenwave.cache.requests{cache=n,result=remote_hit}");
    let deadline = Instant::now() + Duration::from_secs(30);
    while recording.count("greenwave.cache.requests{cache=n,result=remote_hit}") == before {
        assert!(Instant::now() < deadline, "it stays with a connection that hangs");
        read(&cache, &source).await;
    }
    assert!(recording.count("greenwave.cache.remote.failures{cache=n,operation=get}") > 0);
}

// One late answer, and reads leave Redis alone for a while; what changes meanwhile must not stay there.
#[tokio::test]
async fn invalidations_and_inserts_reach_a_redis_that_has_just_failed() {
    for insert in [false, true] {
        let server = Server::redis();
        let config = RemoteConfig {
            timeout: Duration::from_secs(1),
            retry_after: Duration::from_secs(600),
            ..Default::default()
        };
        let (cache, recording) = without_memory(&server.url(), config.clone());
        cache.insert(1, 7).await;
        server.pause();
        assert_eq!(cache.get(&2).await, None);
        assert_eq!(cache.get(&1).await, None);
        assert!(recording.count("greenwave.cache.remote.skipped{cache=n,operation=get}") > 0);
        server.resume();
        match insert {
            false => cache.invalidate(&1).await,
            true => cache.insert(1, 8).await,
        }
        let (other, _) = without_memory(&server.url(), config);
        assert_eq!(other.get(&1).await, None, "the old value is still there");
    }
}

#[tokio::test]
async fn many_invalidations_of_one_key_do_not_queue_up_before_a_redis_that_hangs() {
    let server = Server::redis();
    let config = RemoteConfig {
        timeout: Duration::from_millis(200),
        retry_after: Duration::from_secs(600),
        ..Default::default()
    };
    let (cache, _) = without_memory(&server.url(), config);
    cache.insert(1, 7).await;
    server.pause();
    let started = Instant::now();
    let mut invalidations = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let cache = cache.clone();
        invalidations.spawn(async move { cache.invalidate(&1).await });
    }
    invalidations.join_all().await;
    assert!(started.elapsed() < Duration::from_secs(10), "one after the other, this takes 40 s");
    server.resume();
}

// What a failover leaves behind: the connection stands, to a server that takes no writes any more.
#[tokio::test]
async fn a_primary_that_became_a_replica_is_left_for_the_new_one() {
    let (old, new) = (Server::redis(), Server::redis());
    let address =
        |server: &Server| server.url().trim_start_matches("redis://").split('/').next().unwrap().to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (primary, lookup) = tokio::sync::watch::channel(address(&old));
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let address = lookup.borrow().clone();
            let mut server = tokio::net::TcpStream::connect(address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    // That it is a replica costs a timeout.
    let config = RemoteConfig {
        timeout: Duration::from_secs(2),
        retry_after: Duration::from_millis(10),
        ..Default::default()
    };
    let (cache, _) = without_memory(&format!("redis://127.0.0.1:{port}"), config.clone());
    cache.insert(1, 7).await;

    let mut admin = admin(&old.url()).await;
    let demote = redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).take();
    demote.exec_async(&mut admin).await.unwrap();
    cache.insert(1, 8).await;
    assert_eq!(cache.get(&1).await, None, "a replica that takes no invalidations is not read");

    primary.send_replace(address(&new));
    let (other, _) = without_memory(&new.url(), config);
    let deadline = Instant::now() + Duration::from_secs(30);
    while other.get(&1).await.as_deref() != Some(&9) {
        assert!(Instant::now() < deadline, "the new primary is not found");
        cache.insert(1, 9).await;
    }
}

/// Forwards to a Redis, whose answers take so long.
async fn slow_proxy(listener: tokio::net::TcpListener, redis: String, slow: Arc<AtomicU64>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let server = tokio::net::TcpStream::connect(&redis).await.unwrap();
        let ((mut asks, mut hears), (mut answers, mut asked)) = (client.into_split(), server.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut asks, &mut asked).await });
        let slow = Arc::clone(&slow);
        tokio::spawn(async move {
            let mut bytes = [0; 65536];
            while let Ok(read @ 1..) = answers.read(&mut bytes).await {
                tokio::time::sleep(Duration::from_millis(slow.load(Ordering::SeqCst))).await;
                if hears.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
        });
    }
}

// Each answer comes in time; a miss, which needs several, must not wait for all of them.
#[tokio::test]
async fn a_slow_redis_costs_a_read_its_timeout_at_most() {
    let server = Server::redis();
    let url = server.url();
    let redis = url.strip_prefix("redis://").unwrap().trim_end_matches('/');
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let slow = Arc::new(AtomicU64::new(0));
    tokio::spawn(slow_proxy(listener, redis.to_owned(), Arc::clone(&slow)));
    let timeout = Duration::from_millis(1_000);
    let config = RemoteConfig { timeout, ..Default::default() };
    let (cache, _) = without_memory(&format!("redis://127.0.0.1:{port}"), config);
    let source = Source::default();
    assert_eq!(cache.get(&1).await, None);

    slow.store(600, Ordering::SeqCst);
    let began = Instant::now();
    assert_eq!(read(&cache, &source).await, 7);
    let waited = began.elapsed();
    assert!(waited < timeout * 7 / 4, "the read took {waited:?}");
}
