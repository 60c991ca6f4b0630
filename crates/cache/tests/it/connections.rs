//! Where a remote may be, and how it is found there.

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use greenwave_cache::{Cache, CacheConfig, Error, Remote, RemoteConfig};
use greenwave_test_servers::{RedisCluster, RedisSentinel, Server};

fn config() -> RemoteConfig {
    RemoteConfig {
        timeout: Duration::from_secs(2),
        retry_after: Duration::from_millis(20),
        ..Default::default()
    }
}

/// Without memory, so that every read shows what the remote does.
fn cache(url: &str, remote: RemoteConfig) -> Cache<u64, u64> {
    let config = CacheConfig { ttl: Duration::ZERO, ..Default::default() };
    Cache::builder("n").config(config).remote(Remote::connect_with(url, remote).unwrap()).build()
}

/// Until what one process inserts another reads.
async fn work_together(one: &Cache<u64, u64>, other: &Cache<u64, u64>, value: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while other.get(&1).await.as_deref() != Some(&value) {
        assert!(Instant::now() < deadline, "nothing is shared within half a minute");
        one.insert(1, value).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_primary_is_found_through_its_sentinel_and_found_again_after_a_failover() {
    let mut group = RedisSentinel::start();
    let (one, other) = (cache(&group.url(), config()), cache(&group.url(), config()));
    work_together(&one, &other, 1).await;
    group.failover();
    work_together(&one, &other, 2).await;
    work_together(&other, &one, 3).await;

    group.primary().kill();
    one.invalidate(&1).await;
    group.failed_over();
    // The replica had it; before anybody is answered by the new primary it learns of the invalidation.
    for _ in 0..100 {
        assert_eq!(one.get(&1).await, None);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    work_together(&one, &other, 4).await;
}

#[tokio::test]
async fn a_cluster_has_each_key_on_its_node() {
    let mut cluster = RedisCluster::start();
    let (one, other) = (cache(&cluster.url(), config()), cache(&cluster.url(), config()));
    work_together(&one, &other, 1).await;
    for key in 0..100 {
        one.insert(key, key + 1).await;
    }
    for key in 0..100 {
        assert_eq!(other.get(&key).await.as_deref(), Some(&(key + 1)));
        other.invalidate(&key).await;
        assert_eq!(one.get(&key).await, None);
    }

    cluster.nodes()[0].kill();
    for key in 0..100 {
        let load = move || async move { Ok::<_, io::Error>(Some(key + 2)) };
        assert_eq!(one.get_or_load(&key, load).await.unwrap().as_deref(), Some(&(key + 2)));
        one.invalidate(&key).await;
    }
    cluster.nodes()[0].start();
    cluster.well();
    for value in 3..6 {
        work_together(&one, &other, value).await;
    }
}

#[tokio::test]
async fn a_server_with_tls_is_believed_if_who_vouches_for_it_is_known() {
    let server = Server::redis_tls();
    let known = RemoteConfig { tls_ca: Some(server.certificate_authority()), ..config() };
    work_together(&cache(&server.url(), known.clone()), &cache(&server.url(), known), 1).await;

    let stranger = cache(&server.url(), config());
    stranger.insert(1, 2).await;
    assert_eq!(stranger.get(&1).await, None);
}

#[tokio::test]
async fn a_remote_asks_for_its_user_and_database() {
    let server = Server::redis_with(&["requirepass s%cret"]);
    let url = |user: &str| server.url().replace("redis://", &format!("redis://{user}")) + "/7";
    let right = || cache(&url(":s%25cret@"), config());
    work_together(&right(), &right(), 1).await;
    let wrong = cache(&url(":wrong@"), config());
    assert_eq!(wrong.get(&1).await, None);
}

fn refusal(url: &str) -> String {
    let error = Remote::connect(url).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn a_url_that_is_not_understood_says_what_to_do() {
    let cases = [
        ("http://example.org", "it must begin with one of redis:, rediss:"),
        ("", "it must begin with one of redis:, rediss:"),
        ("redis+sentinel:h1", "`//` must follow its scheme"),
        ("redis+sentinel://:hunter2@h1,h2", "after the sentinels it must name the primary"),
        ("redis+sentinel://h1/name/0/1", "after the sentinels it must name the primary"),
        ("redis+sentinel://h1/name/zero", "Invalid database number"),
        ("redis+sentinel://h1,,h2/name", "it must name its hosts, separated by commas"),
        ("redis+cluster://:hunter2@h1/3", "a cluster has one database"),
        ("redis+cluster://", "it must name its hosts"),
        ("redis+cluster://h1:port", "did not parse"),
        ("redis://:hunter2@", "did not parse"),
    ];
    for (url, what) in cases {
        let said = refusal(url);
        assert!(said.contains(what), "{url}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn addresses_are_shown_and_passwords_are_not() {
    let shown = |url: &str| format!("{:?}", Remote::connect(url).unwrap());
    let cases = [
        ("redis+sentinel://me:hunter2@h1,[::1]:7/name/3?sentinel_password=hunter3", "name by h1:26379,::1:7"),
        ("rediss+sentinel://:hunter2@h1:5/name", "name by h1:5"),
        ("redis+cluster://me:hunter2@h1,h2:7001", "h1:6379,h2:7001"),
        ("rediss://me:hunter2@h1", "h1:6379"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
    ];
    for (url, address) in cases {
        assert_eq!(shown(url), format!("Remote {{ address: {address:?}, .. }}"));
    }
}

#[test]
fn a_certificate_that_cannot_be_read_is_named() {
    let missing = RemoteConfig { tls_ca: Some("/nowhere/ca.pem".into()), ..config() };
    let error = Remote::connect_with("rediss://h1", missing).unwrap_err();
    assert!(matches!(error, Error::RemoteCertificate { .. }));
    assert_eq!(error.to_string(), "the cache's remote needs the file /nowhere/ca.pem");
    let half = RemoteConfig { tls_key: Some("/nowhere/key.pem".into()), ..config() };
    let no_pem = RemoteConfig {
        tls_certificate: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()),
        tls_key: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into()),
        ..config()
    };
    for config in [half, no_pem] {
        let error = Remote::connect_with("rediss://h1", config).unwrap_err();
        assert!(matches!(error, Error::RemoteTls(_)), "{error}");
    }
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_outage_is_told_once_with_its_end_and_without_the_password() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // While there is one subscriber only, tracing takes each event's first thread for the only one it may come from.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _logging = tracing::subscriber::set_default(subscriber);
    let mut server = Server::redis_with(&["requirepass hunter2"]);
    let cache = cache(&server.url().replace("redis://", "redis://:hunter2@"), config());
    work_together(&cache, &cache, 1).await;
    server.kill();
    for _ in 0..20 {
        assert_eq!(cache.get(&1).await, None);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.start();
    work_together(&cache, &cache, 2).await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches(" WARN ").count(), 1, "{log}");
    assert_eq!(log.matches("answers again").count(), 1, "{log}");
    assert!(!log.contains("hunter2"), "{log}");
}
