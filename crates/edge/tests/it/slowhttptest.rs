//! slowhttptest's attacks: others are served meanwhile, and who is slow is cut at the deadline.

use std::process::Stdio;
use std::time::{Duration, Instant};

use greenwave_edge::{ProxyConfig, SupervisorConfig, Upstreams};
use greenwave_test_servers::Program;
use tokio::process::{Child, Command};

use crate::child::children;
use crate::clients::{LIMIT, RunningProxy};
use crate::upstreams::Scripted;

/// Fewer than an upstream may have in flight before anything was measured: a request whose body comes is one of them.
const ATTACKERS: &str = "50";
const DEADLINE: Duration = Duration::from_secs(2);
/// More than the sockets between hold, so that who reads slowly keeps the proxy waiting.
const LARGE: usize = 8 << 20;

fn attack(proxy: &RunningProxy, path: &str, kind: &[&str]) -> Child {
    // It ends when none of its connections is open any more, or after so many seconds.
    let seconds = LIMIT.as_secs().to_string();
    Command::new(Program::Slowhttptest.path())
        .args(["-c", ATTACKERS, "-r", ATTACKERS, "-l", &seconds, "-v", "1"])
        .args(["-u", &format!("http://{}{path}", proxy.address)])
        .args(kind)
        .kill_on_drop(true)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Asks on connections of one's own until the attack ends, or for this long; whether it has ended.
async fn others_are_served(proxy: &RunningProxy, path: &str, attack: &mut Child, time: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let asked = Instant::now();
        assert_eq!(proxy.get(path).await.status(), 200);
        assert!(asked.elapsed() < DEADLINE, "another is served after {:?}", asked.elapsed());
        if attack.try_wait().unwrap().is_some() {
            assert!(begun.elapsed() > DEADLINE / 2, "it ended after {:?}", begun.elapsed());
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// The attacker's connections are all cut, long before it would leave by itself.
async fn all_are_cut(config: ProxyConfig, kind: &[&str]) {
    let supervisor = children("serve", SupervisorConfig::default()).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let proxy = RunningProxy::start(config, supervisor.upstreams()).await;
    // This path's answer waits for the request's body.
    let mut attack = attack(&proxy, "/length", kind);
    assert!(others_are_served(&proxy, "/", &mut attack, LIMIT / 2).await, "some are never cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_never_end_are_cut_and_harm_nobody_else() {
    all_are_cut(ProxyConfig { header_timeout: DEADLINE, ..Default::default() }, &["-H", "-i", "1"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_never_end_are_cut_and_harm_nobody_else() {
    let drops = ["-B", "-i", "1", "-s", "65536"];
    all_are_cut(ProxyConfig { total_timeout: DEADLINE, ..Default::default() }, &drops).await;
    let pauses = ["-B", "-i", "10", "-s", "65536"];
    all_are_cut(ProxyConfig { body_timeout: DEADLINE, ..Default::default() }, &pauses).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_hardly_read_are_cut_and_harm_nobody_else() {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
    let large = Scripted::start((head + &"x".repeat(LARGE)).leak()).await;
    let config = ProxyConfig { write_timeout: DEADLINE, drain_timeout: LIMIT, ..Default::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([large.address]).into_watch()).await;
    let drops = ["-X", "-n", "10", "-z", "32", "-w", "256", "-y", "512"];
    let mut attack = attack(&proxy, "/", &drops);
    // Who does not read sees no end either, and goes on; but the proxy has nothing to finish any more.
    assert!(!others_are_served(&proxy, "/", &mut attack, 2 * DEADLINE).await, "nobody reads slowly");
    proxy.cancel.cancel();
    tokio::time::timeout(LIMIT / 3, proxy.served).await.expect("some are never cut").unwrap().unwrap();
    assert!(attack.try_wait().unwrap().is_none(), "the attack has ended by itself");
}
