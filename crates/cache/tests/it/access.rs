//! What a server's user must be allowed, as the README says.

use std::time::{Duration, Instant};

use greenwave_cache::{Cache, Loaded, Remote, RemoteConfig};
use greenwave_test_servers::{RedisCluster, Server};

use crate::support::{Failed, Gate, Source, admin, tell};

const README: &str = include_str!("../../README.md");

/// The rules of the README's user, who is called `cache` and has the password `secret`.
fn rules() -> &'static str {
    let (_, rest) = README.split_once("ACL SETUSER ").unwrap();
    rest.split("```").next().unwrap()
}

/// As a line of the server's configuration, which a restart does not lose.
fn user(more: &str) -> String {
    format!("user {} {more}", rules().split_whitespace().collect::<Vec<_>>().join(" "))
}

fn cache(url: &str) -> Cache<u64, u64> {
    let config = RemoteConfig {
        timeout: Duration::from_secs(10),
        retry_after: Duration::from_millis(20),
        namespace: "shop".into(),
        ..Default::default()
    };
    Cache::builder("n").remote(Remote::connect_with(url, config).unwrap()).build()
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within half a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn use_all(one: &Cache<u64, u64>, other: &Cache<u64, u64>) {
    let source = Source::default();
    one.get_or_load(&1, || source.clone().load(1)).await.unwrap();
    one.get_or_load(&2, || async { Err::<Option<u64>, _>(Failed) }).await.unwrap_err();
    other
        .get_many(
            &[1, 2, 3],
            |keys| async move { Ok::<_, Failed>(keys.into_iter().map(|key| (key, Some(7)))) },
        )
        .await
        .unwrap();
    one.insert_loaded(4, Loaded::value(4).tags(["list"])).await;
    eventually("the other reads it", async || other.get(&4).await.as_deref() == Some(&4)).await;
    one.invalidate_tag("list").await;
    eventually("the other hears of the tag", async || other.get(&4).await.is_none()).await;
    one.insert(5, 5).await;
    eventually("the other reads it", async || other.get(&5).await.as_deref() == Some(&5)).await;
    one.invalidate(&5).await;
    eventually("the other hears of the key", async || other.get(&5).await.is_none()).await;
    one.clear().await;
    eventually("the other hears of the clearing", async || other.get(&1).await.is_none()).await;
}

/// What the server has refused.
async fn refused(url: &str) -> String {
    let entries: Vec<redis::Value> = tell(&mut admin(url).await, "ACL LOG").await;
    let entries = entries.iter().map(|entry| format!("{entry:?}\n"));
    // The client does without it, and older servers don't know it.
    entries.filter(|entry| !entry.contains("client|setinfo")).collect()
}

#[tokio::test]
async fn a_user_needs_no_more_than_the_readme_says() {
    let mut server = Server::redis_with(&[&user("")]);
    let url = server.url().replace("redis://", "redis://cache:secret@") + "/3";
    let (one, other) = (cache(&url), cache(&url));
    use_all(&one, &other).await;
    let (gate, mut redis) = (Gate::new(), admin(&server.url()).await);
    let renewed = async {
        let is_renewed = async || tell::<String>(&mut redis, "INFO commandstats").await.contains("setrange");
        eventually("the lease is renewed", is_renewed).await;
        gate.open();
    };
    let load = || Source::default().load_behind(gate.clone(), 6);
    let (loaded, ()) = tokio::join!(one.get_or_load(&6, load), renewed);
    loaded.unwrap();
    assert_eq!(refused(&server.url()).await, "");

    // So that there is something to repeat, for which the old connection is ended.
    server.kill();
    one.invalidate(&6).await;
    server.start();
    eventually("they work together again", async || {
        one.insert(7, 7).await;
        other.get(&7).await.is_some() && one.stats().remote_unconfirmed == 0
    })
    .await;
    assert_eq!(refused(&server.url()).await, "");
    assert_eq!((one.stats().undecodable, one.get(&6).await), (0, None));
}

#[tokio::test]
async fn in_a_cluster_the_user_needs_to_know_its_slots() {
    let mut cluster = RedisCluster::with(&[&user("+cluster|slots")]);
    let url = cluster.url().replace("redis+cluster://", "redis+cluster://cache:secret@");
    use_all(&cache(&url), &cache(&url)).await;
    for node in cluster.nodes() {
        assert_eq!(refused(&node.url()).await, "");
    }
}
