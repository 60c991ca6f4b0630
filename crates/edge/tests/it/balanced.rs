//! Supervisor, balancer and proxy together, under load and under loss.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use greenwave_edge::{BalanceConfig, InstanceState, OverloadConfig, ProxyConfig, Strategy, SupervisorConfig};
use http::{Method, Request};
use http_body_util::Full;
use rustix::process::{Signal, kill_process};
use tokio::task::JoinSet;

use crate::child::{STALL, children, until};
use crate::clients::{LIMIT, RunningProxy, TestClient, client, send};
use crate::supervised::pid;

#[tokio::test]
async fn requests_take_turns_over_all_instances() {
    let supervisor =
        children("serve", SupervisorConfig { instances: 3, ..Default::default() }).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let proxy = RunningProxy::start(ProxyConfig::default(), supervisor.upstreams()).await;
    let mut names = BTreeSet::new();
    for _ in 0..3 {
        names.insert(proxy.get("/").await.into_body());
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["app-0", "app-1", "app-2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_when_one_of_four_instances_is_killed_under_load() {
    let supervisor =
        children("serve", SupervisorConfig { instances: 4, ..Default::default() }).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let proxy = RunningProxy::start(ProxyConfig::default(), supervisor.upstreams()).await;
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let (done, answered, uri) =
                (Arc::clone(&done), Arc::clone(&answered), format!("http://{}/", proxy.address));
            tokio::spawn(async move {
                let client = client();
                let mut failures = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let request = Request::get(&uri).body(Full::<Bytes>::default()).unwrap();
                    match send(&client, request).await {
                        Ok(response) if response.status() == 200 => {}
                        Ok(response) => failures.push(format!("{response:?}")),
                        Err(error) => failures.push(format!("{error:?}")),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                failures
            })
        })
        .collect();
    let more = async |count| {
        let target = answered.load(Ordering::Relaxed) + count;
        while answered.load(Ordering::Relaxed) < target {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    for round in 0..3 {
        more(1000).await;
        let victim = supervisor.instances()[round].pid.unwrap();
        kill_process(pid(victim), Signal::KILL).unwrap();
        until(&supervisor, |instances| {
            instances[round].restarts == 1 && instances[round].state == InstanceState::Ready
        })
        .await;
    }
    more(1000).await;
    done.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_get_waits_for_the_only_instance_to_come_back() {
    let config = SupervisorConfig { min_backoff: Duration::from_millis(300), ..Default::default() };
    let supervisor = children("serve", config).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    // Long enough for a busy machine to start the instance again.
    let patient = ProxyConfig { upstream_wait: LIMIT, ..Default::default() };
    let proxy = RunningProxy::start(patient, supervisor.upstreams()).await;
    kill_process(pid(supervisor.instances()[0].pid.unwrap()), Signal::KILL).unwrap();
    assert_eq!(proxy.get("/").await.into_body(), "app-0");
    assert_eq!(supervisor.instances()[0].restarts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_requests_are_caught_by_an_instance_that_stalls() {
    let supervisor =
        children("stall", SupervisorConfig { instances: 4, ..Default::default() }).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let in_turn = BalanceConfig { strategy: Strategy::RoundRobin, ..Default::default() };
    // What is compared is whom they choose, not whom they refuse.
    let unlimited = ProxyConfig {
        overload: OverloadConfig { enabled: false, ..Default::default() },
        ..Default::default()
    };
    let in_turn = ProxyConfig { balance: in_turn, ..unlimited.clone() };
    // Both at the same time, so that whatever else this machine does hits both.
    let proxies = [
        RunningProxy::start(in_turn, supervisor.upstreams()).await,
        RunningProxy::start(unlimited, supervisor.upstreams()).await,
    ];
    // What else the machine does can catch the requests of both: then it is tried again.
    for _ in 0..5 {
        let [in_turn, ours] = caught_at(&proxies).await;
        eprintln!("{ours} requests were caught, {in_turn} by turns");
        if in_turn >= 10 && ours * 5 <= in_turn * 2 {
            return;
        }
    }
    panic!("as many are caught as by turns");
}

/// How many requests of each proxy met a stall.
async fn caught_at(proxies: &[RunningProxy; 2]) -> [usize; 2] {
    let client = client();
    let mut requests = [JoinSet::new(), JoinSet::new()];
    let mut ticks = tokio::time::interval(Duration::from_millis(4));
    // At a steady rate: clients that wait for their answers would stop asking just when it matters.
    for _ in 0..1500 {
        ticks.tick().await;
        for (proxy, requests) in proxies.iter().zip(&mut requests) {
            let request = Request::get(format!("http://{}/work", proxy.address));
            requests.spawn(timed(client.clone(), request.body(Full::default()).unwrap()));
        }
    }
    // What takes so long has met a stall; a machine that is merely busy does not delay so many for so long.
    let caught = async |requests: JoinSet<Duration>| {
        requests.join_all().await.iter().filter(|took| **took >= STALL * 2 / 3).count()
    };
    let [in_turn, ours] = requests;
    [caught(in_turn).await, caught(ours).await]
}

async fn timed(client: TestClient, request: Request<Full<Bytes>>) -> Duration {
    let begun = Instant::now();
    assert_eq!(send(&client, request).await.unwrap().status(), 200);
    begun.elapsed()
}

#[tokio::test]
async fn a_client_with_a_cookie_stays_at_its_instance() {
    let supervisor =
        children("serve", SupervisorConfig { instances: 4, ..Default::default() }).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let balance = BalanceConfig { sticky: "cookie:home".into(), ..Default::default() };
    let proxy =
        RunningProxy::start(ProxyConfig { balance, ..Default::default() }, supervisor.upstreams()).await;
    let mut homes = BTreeSet::new();
    for _ in 0..16 {
        let first = proxy.get("/").await;
        let cookie = first.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        for _ in 0..4 {
            let request = Request::get(format!("http://{}/", proxy.address)).header("cookie", &cookie);
            let again = send(&client(), request.body(Full::default()).unwrap()).await.unwrap();
            assert_eq!(again.body(), first.body());
            assert!(!again.headers().contains_key("set-cookie"));
        }
        homes.insert(first.into_body());
    }
    assert!(homes.len() > 1, "all clients are at {homes:?}");
}

#[tokio::test]
async fn a_large_body_comes_back_unharmed() {
    let supervisor = children("serve", SupervisorConfig::default()).start().unwrap();
    supervisor.ready(LIMIT).await.unwrap();
    let proxy = RunningProxy::start(ProxyConfig::default(), supervisor.upstreams()).await;
    // No period that a lost or repeated buffer could hide behind.
    let body: Vec<u8> = (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let echoed = proxy.request(Method::POST, "/echo", body.clone()).await;
    assert_eq!(echoed.status(), 200);
    assert!(echoed.body()[..] == body[..], "{} bytes came back, changed", echoed.body().len());
    let length = proxy.request(Method::PUT, "/length", body).await;
    assert_eq!(length.into_body(), (8 << 20).to_string());
}
