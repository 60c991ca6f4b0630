//! What a remote promises to the tier above it, against real servers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_test_servers::Server;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, aio::MultiplexedConnection, cmd};

use crate::{
    CoherenceMode, RemoteConfig,
    remote::{Failure, Remote, Repeat, Seal, coherence::Standing},
};

/// Patient, so that a busy machine is no outage.
fn patient() -> RemoteConfig {
    RemoteConfig {
        timeout: Duration::from_secs(10),
        retry_after: Duration::from_millis(10),
        ..Default::default()
    }
}

/// Impatient, where there is an outage.
fn hasty() -> RemoteConfig {
    RemoteConfig { timeout: Duration::from_millis(150), ..patient() }
}

fn published() -> RemoteConfig {
    RemoteConfig {
        coherence: CoherenceMode::Published,
        untracked_ttl: Duration::from_millis(200),
        ..patient()
    }
}

fn remote(url: &str, config: RemoteConfig) -> Remote {
    Remote::connect_with(url, config).unwrap()
}

fn get(key: &str) -> Cmd {
    cmd("GET").arg(key).take()
}

async fn admin(url: &str) -> MultiplexedConnection {
    let patient = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    Client::open(url).unwrap().get_multiplexed_async_connection_with_config(&patient).await.unwrap()
}

async fn run<T: FromRedisValue>(admin: &mut MultiplexedConnection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>()).query_async(admin).await.unwrap()
}

/// Reads as memory does: with a seal from before.
async fn read(remote: &Remote, key: &str) -> Result<(Option<String>, Seal), Failure> {
    let seal = remote.coherence().seal(key.as_bytes());
    Ok((remote.ask(&get(key)).await?, seal))
}

fn standing(remote: &Remote, seal: Seal) -> Standing {
    remote.coherence().standing(seal)
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within half a minute: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn answers(remote: &Remote) {
    eventually("it answers", async || remote.ask::<String>(&cmd("PING")).await.is_ok()).await;
}

#[tokio::test]
async fn whoever_changes_a_key_is_heard_of() {
    let server = Server::redis();
    let (remote, mut foreign) = (remote(&server.url(), patient()), admin(&server.url()).await);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let _hearing = remote.on_change({
        let heard = Arc::clone(&heard);
        Arc::new(move |key| heard.lock().unwrap().push(key.map(<[u8]>::to_vec)))
    });
    let changes = ["SET a 1", "DEL a", "SET a 2 PX 1", "FLUSHALL"];
    for change in changes {
        run::<()>(&mut foreign, "SET a 0").await;
        answers(&remote).await;
        let (_, seal) = read(&remote, "a").await.unwrap();
        assert_eq!(remote.coherence().bound(seal, Duration::MAX), Duration::MAX, "changes are heard");
        run::<redis::Value>(&mut foreign, change).await;
        eventually(change, async || standing(&remote, seal) == Standing::Changed).await;
    }
    let heard = heard.lock().unwrap();
    assert!(heard.contains(&Some(b"a".to_vec())) && heard.contains(&None));
}

#[tokio::test]
async fn what_this_process_changes_is_outdated_for_its_readers_and_good_for_the_writer() {
    let server = Server::redis();
    let remote = remote(&server.url(), patient());
    answers(&remote).await;
    let reader = read(&remote, "a").await.unwrap().1;
    let set = cmd("SET").arg("a").arg("1").take();
    let writer = remote.change(b"a", &set, Repeat::Delete).await.unwrap();
    assert_eq!(
        (standing(&remote, reader), standing(&remote, writer)),
        (Standing::Changed, Standing::Current)
    );

    remote.forget(vec![b"a".to_vec(), b"b".to_vec()]).await;
    assert_eq!(standing(&remote, writer), Standing::Changed);
    assert_eq!(read(&remote, "a").await.unwrap().0, None);
}

#[tokio::test]
async fn what_redis_cannot_remember_to_tell_of_it_tells_of_at_once() {
    let server = Server::redis_with(&["tracking-table-max-keys 1"]);
    let remote = remote(&server.url(), patient());
    answers(&remote).await;
    let mut foreign = admin(&server.url()).await;
    let mut seals = Vec::new();
    // What it forgets for a command of this process, as it may for a beat, it does not tell this process of. So there
    // are several attempts.
    eventually("one is tracked", async || {
        let kept = seals.iter().filter(|seal| standing(&remote, **seal) == Standing::Current).count();
        let is_told = !seals.is_empty() && kept <= 1;
        seals.clear();
        for key in ["a", "b", "c", "d"] {
            seals.push(read(&remote, key).await.unwrap().1);
            run::<()>(&mut foreign, "PING").await;
        }
        is_told
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_an_epoch() {
    let server = Server::redis();
    let remote = remote(&server.url(), RemoteConfig { untracked_ttl: Duration::ZERO, ..patient() });
    answers(&remote).await;
    let (_, seal) = read(&remote, "a").await.unwrap();
    assert_eq!(standing(&remote, seal), Standing::Current);
    let id: u64 = remote.ask(cmd("CLIENT").arg("ID")).await.unwrap();
    run::<u64>(&mut admin(&server.url()).await, &format!("CLIENT KILL ID {id}")).await;
    eventually("the loss is noticed", async || standing(&remote, seal) == Standing::Unheard).await;
    answers(&remote).await;
    assert_eq!(standing(&remote, seal), Standing::Unheard);
    let (_, seal) = read(&remote, "a").await.unwrap();
    assert_eq!(standing(&remote, seal), Standing::Current);
}

/// Without end, keys change and connections break; what a reader holds for current at rest must be so.
async fn race(config: RemoteConfig, seed: u64) {
    println!("SEED={seed}");
    let server = Server::redis();
    let url = server.url();
    let remotes = [remote(&url, config.clone()), remote(&url, config)];
    let stop = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..8)
        .map(|number| {
            let (remote, stop) = (remotes[number % 2].clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut held: [Option<(Option<String>, Seal)>; 4] = Default::default();
                while stop.load(Ordering::SeqCst) == 0 {
                    for (key, held) in held.iter_mut().enumerate() {
                        let is_good = held
                            .as_ref()
                            .is_some_and(|(_, seal)| standing(&remote, *seal) == Standing::Current);
                        if !is_good {
                            *held = read(&remote, &format!("k{key}")).await.ok();
                        }
                    }
                    tokio::task::yield_now().await;
                }
                (remote, held)
            })
        })
        .collect();
    let mut killer = admin(&url).await;
    for round in 0..300_u64 {
        let key = format!("k{}", (seed + round) % 4);
        let set = cmd("SET").arg(&key).arg(round).take();
        match round % 3 {
            0 => drop(remotes[round as usize % 2].forget(vec![key.clone().into_bytes()]).await),
            _ => drop(remotes[round as usize % 2].change(key.as_bytes(), &set, Repeat::Delete).await),
        }
        if (seed + round).is_multiple_of(7) {
            run::<u64>(&mut killer, "CLIENT KILL TYPE normal SKIPME yes").await;
        }
        if (seed + round).is_multiple_of(50) {
            run::<u64>(&mut killer, "CLIENT KILL TYPE pubsub").await;
        }
    }
    for remote in &remotes {
        answers(remote).await;
    }
    // A change that was interrupted is repeated; and what was sent before has come when a second message has.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(1, Ordering::SeqCst);
    let mut current = 0;
    for reader in readers {
        let (remote, held) = reader.await.unwrap();
        for (key, held) in held.into_iter().enumerate() {
            let Some((value, seal)) = held else { continue };
            if standing(&remote, seal) == Standing::Current {
                current += 1;
                let now: Option<String> = get(&format!("k{key}")).query_async(&mut killer).await.unwrap();
                assert_eq!(value, now, "seed {seed}: k{key} is stale at rest");
            }
        }
    }
    assert!(current > 0, "nobody holds anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_race_of_changes_with_broken_connections_leaves_a_stale_value_current() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    race(patient(), seed).await;
    race(published(), seed).await;
}

#[tokio::test]
async fn what_a_dead_redis_missed_it_is_told_before_it_is_read() {
    let mut server = Server::redis();
    let remote = remote(&server.url(), patient());
    answers(&remote).await;
    run::<()>(&mut admin(&server.url()).await, "MSET a old b old c old").await;
    run::<()>(&mut admin(&server.url()).await, "BGREWRITEAOF").await;
    server.stop();
    eventually("the loss is noticed", async || remote.ask::<()>(&get("a")).await.is_err()).await;
    let started = Instant::now();
    remote.forget(vec![b"a".to_vec()]).await;
    let set = cmd("SET").arg("b").arg("new").take();
    remote.change(b"b", &set, Repeat::Delete).await.unwrap_err();
    let again = cmd("SET").arg("c").arg("again").take();
    remote.change(b"c", &set, Repeat::Run(again)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "nobody waits for a Redis that is known to be away");

    server.start();
    answers(&remote).await;
    let read = async |key| read(&remote, key).await.unwrap().0;
    assert_eq!((read("a").await, read("b").await, read("c").await.as_deref()), (None, None, Some("again")));
}

// As a failover does that loses what the replica had not yet got.
#[tokio::test]
async fn what_a_server_confirmed_last_is_repeated_to_the_one_that_takes_its_place() {
    let servers = [Server::redis(), Server::redis()];
    let turn = Arc::new(AtomicUsize::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let urls = servers.each_ref().map(Server::url);
    tokio::spawn({
        let (turn, addresses) = (Arc::clone(&turn), urls.clone().map(|url| url.replace("redis://", "")));
        async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let address = &addresses[turn.load(Ordering::SeqCst)];
                let mut server = tokio::net::TcpStream::connect(address).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            }
        }
    });
    for url in &urls {
        run::<()>(&mut admin(url).await, "SET a old").await;
    }
    let remote = remote(&format!("redis://127.0.0.1:{port}"), patient());
    answers(&remote).await;
    remote.forget(vec![b"a".to_vec()]).await;
    turn.store(1, Ordering::SeqCst);
    run::<redis::Value>(&mut admin(&urls[0]).await, "CLIENT KILL TYPE normal").await;
    eventually("the new one is there", async || {
        let info = remote.ask::<String>(cmd("INFO").arg("server")).await.unwrap_or_default();
        info.contains(&format!("tcp_port:{}", urls[1].rsplit(':').next().unwrap()))
    })
    .await;
    assert_eq!(read(&remote, "a").await.unwrap().0, None);
}

#[tokio::test]
async fn a_redis_that_pauses_is_not_read_until_it_has_done_what_was_late() {
    for pause in [Duration::from_millis(200), Duration::from_millis(1_500)] {
        let server = Server::redis();
        let remote = remote(&server.url(), hasty());
        answers(&remote).await;
        run::<()>(&mut admin(&server.url()).await, "SET a old").await;
        server.pause();
        remote.forget(vec![b"a".to_vec()]).await;
        let started = Instant::now();
        for _ in 0..100 {
            remote.ask::<()>(&get("a")).await.unwrap_err();
        }
        assert!(started.elapsed() < Duration::from_secs(5), "it was asked again: 100 times its timeout");
        tokio::time::sleep(pause).await;
        server.resume();
        answers(&remote).await;
        assert_eq!(read(&remote, "a").await.unwrap().0, None);
    }
}

#[tokio::test]
async fn patience_with_a_silent_redis_is_not_patience_with_memory() {
    let server = Server::redis();
    let remote =
        remote(&server.url(), RemoteConfig { untracked_ttl: Duration::from_millis(200), ..patient() });
    answers(&remote).await;
    let (_, seal) = read(&remote, "a").await.unwrap();
    server.pause();
    let paused = Instant::now();
    eventually("it is not trusted", async || standing(&remote, seal) == Standing::Unheard).await;
    assert!(paused.elapsed() < patient().timeout / 2, "{:?}", paused.elapsed());
    server.resume();
    answers(&remote).await;
    eventually("it is heard again", async || {
        let (_, seal) = read(&remote, "a").await.unwrap();
        remote.coherence().bound(seal, Duration::MAX) == Duration::MAX
    })
    .await;
    assert_eq!(standing(&remote, seal), Standing::Unheard);
}

#[tokio::test]
async fn one_late_answer_takes_nothing_from_memory() {
    let server = Server::redis();
    let config = RemoteConfig { timeout: Duration::from_millis(300), ..patient() };
    let remote = remote(&server.url(), config);
    answers(&remote).await;
    let (_, seal) = read(&remote, "a").await.unwrap();
    let sleeping = cmd("EVAL")
        .arg(
            "local t = redis.call('TIME') local e = t[1] * 1000 + t[2] / 1000 + 400 \
        repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > e",
        )
        .arg(0)
        .take();
    let slow = remote.ask::<()>(&sleeping).await;
    assert!(matches!(slow, Err(Failure::TimedOut(_))), "{slow:?}");
    answers(&remote).await;
    assert_eq!(standing(&remote, seal), Standing::Current, "the connection and its epoch are the same");
}

#[tokio::test]
async fn more_than_can_be_remembered_clears_all_caches() {
    let mut server = Server::redis();
    let remote = remote(&server.url(), patient());
    answers(&remote).await;
    remote.is_cleared_by(cmd("INCR").arg("cleared").take());
    server.kill();
    eventually("the loss is noticed", async || remote.ask::<()>(&get("a")).await.is_err()).await;
    remote.forget((0..100_000_u32).map(|key| key.to_be_bytes().to_vec()).collect()).await;
    server.start();
    answers(&remote).await;
    assert_eq!(read(&remote, "cleared").await.unwrap().0.as_deref(), Some("1"));
}

// Redis as it comes, without `appendonly`: what was deleted after the snapshot is there again.
#[tokio::test]
async fn a_redis_that_came_back_with_a_snapshot_is_cleared_first() {
    for (has_log, is_empty) in [(false, false), (true, false), (false, true)] {
        let log = if has_log { "appendonly yes" } else { "appendonly no" };
        let mut server = Server::redis_with(&[log]);
        let remote = remote(&server.url(), hasty());
        answers(&remote).await;
        remote.is_cleared_by(cmd("SET").arg("cleared").arg("1").take());
        let mut foreign = admin(&server.url()).await;
        if !is_empty {
            run::<()>(&mut foreign, "SET a old").await;
        }
        run::<()>(&mut foreign, "SAVE").await;
        run::<()>(&mut foreign, "SET b 1").await;
        server.kill();
        eventually("the loss is noticed", async || remote.ask::<()>(&get("a")).await.is_err()).await;
        server.start();
        answers(&remote).await;
        let cleared = read(&remote, "cleared").await.unwrap().0.is_some();
        assert_eq!(cleared, !has_log && !is_empty, "{has_log} {is_empty}");
    }
}

#[tokio::test]
async fn a_redis_that_refuses_to_forget_is_not_read() {
    let server = Server::redis();
    let remote = remote(&server.url(), patient());
    let mut foreign = admin(&server.url()).await;
    run::<()>(&mut foreign, "SET a old").await;
    answers(&remote).await;
    run::<()>(&mut foreign, "CONFIG SET min-replicas-to-write 1").await;
    remote.forget(vec![b"a".to_vec()]).await;
    remote.ask::<()>(&get("a")).await.unwrap_err();
    run::<()>(&mut foreign, "CONFIG SET min-replicas-to-write 0").await;
    answers(&remote).await;
    assert_eq!(read(&remote, "a").await.unwrap().0, None);
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_left_though_nobody_writes() {
    let server = Server::redis();
    let remote = remote(&server.url(), patient());
    answers(&remote).await;
    let mut foreign = admin(&server.url()).await;
    run::<()>(&mut foreign, "REPLICAOF 127.0.0.1 1").await;
    eventually("it is left", async || remote.ask::<()>(&get("a")).await.is_err()).await;
    run::<()>(&mut foreign, "REPLICAOF NO ONE").await;
    answers(&remote).await;
}

#[tokio::test]
async fn caches_tell_each_other_where_redis_may_not() {
    let server = Server::redis();
    let rules = "ACL SETUSER plain on nopass ~* &* +@all -client|tracking";
    run::<()>(&mut admin(&server.url()).await, rules).await;
    let url = server.url().replace("redis://", "redis://plain:x@");
    for (config, url) in [(patient(), url), (published(), server.url())] {
        let (one, other) = (remote(&url, config.clone()), remote(&url, config));
        answers(&one).await;
        answers(&other).await;
        let seal = read(&one, "a").await.unwrap().1;
        assert_eq!(one.coherence().bound(seal, Duration::MAX), Duration::MAX, "changes are heard");
        other.forget(vec![b"a".to_vec()]).await;
        eventually("it is told", async || standing(&one, seal) == Standing::Changed).await;

        let seal = read(&one, "b").await.unwrap().1;
        assert_eq!(standing(&one, seal), Standing::Current);
        run::<u64>(&mut admin(&server.url()).await, "CLIENT KILL TYPE pubsub").await;
        eventually("a lost subscription is a lost epoch", async || standing(&one, seal) == Standing::Unheard)
            .await;
    }
}

#[tokio::test]
async fn who_wants_to_hear_nothing_keeps_nothing_for_long() {
    let config = RemoteConfig { coherence: CoherenceMode::Off, ..patient() };
    let server = Server::redis();
    let remote = remote(&server.url(), config);
    let seal = read(&remote, "a").await.unwrap().1;
    assert_eq!(remote.coherence().bound(seal, Duration::MAX), Duration::from_secs(1));
}

#[test]
fn a_remote_outlives_the_runtime_of_its_connection() {
    let server = Server::redis();
    let remote = remote(&server.url(), RemoteConfig { untracked_ttl: Duration::ZERO, ..patient() });
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seal = runtime.block_on(async {
            answers(&remote).await;
            let (_, seal) = read(&remote, "a").await.unwrap();
            assert_eq!(standing(&remote, seal), Standing::Current);
            seal
        });
        drop(runtime);
        assert_ne!(standing(&remote, seal), Standing::Current);
    }
}
