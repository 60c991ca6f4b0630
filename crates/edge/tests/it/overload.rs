//! More requests than a server can answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use greenwave_edge::{OverloadConfig, ProxyConfig, RateLimit, SupervisorConfig, Upstreams};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::child::children;
use crate::clients::{LIMIT, RunningProxy, client, send};
use crate::upstreams::{OK, Scripted};

const WORKERS: usize = 2;
const SERVICE_TIME: Duration = Duration::from_millis(20);
const PER_SECOND: f64 = 100.0;

async fn server() -> SocketAddr {
    server_of(WORKERS, SERVICE_TIME).await
}

/// A server that answers so many requests at once, each in the same time, in the order in which they came.
async fn server_of(workers: usize, time: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workers = Arc::new(Semaphore::new(workers));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let workers = Arc::clone(&workers);
            let answer = service_fn(move |_: Request<Incoming>| {
                let workers = Arc::clone(&workers);
                // A task of its own: like most services this one does not notice that its client has left.
                let work = tokio::spawn(async move {
                    let _worker = workers.acquire().await;
                    tokio::time::sleep(time).await;
                });
                async move {
                    let _ = work.await;
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done")))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
            );
        }
    });
    address
}

struct Outcome {
    /// Times of the answers.
    answered: Vec<Duration>,
    refused: usize,
    time: Duration,
}

impl Outcome {
    fn per_second(&self) -> f64 {
        self.answered.len() as f64 / self.time.as_secs_f64()
    }

    fn p99(&self) -> Duration {
        self.answered[self.answered.len() * 99 / 100]
    }
}

/// Sends requests at this rate for this long.
async fn load(proxy: &RunningProxy, per_second: f64, time: Duration) -> Outcome {
    let (client, mut requests) = (client(), JoinSet::new());
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    for _ in 0..(per_second * time.as_secs_f64()) as usize {
        ticks.tick().await;
        let (client, uri) = (client.clone(), format!("http://{}/", proxy.address));
        requests.spawn(async move {
            let sent = Instant::now();
            let answer = send(&client, Request::get(uri).body(Full::default()).unwrap()).await.unwrap();
            (answer, sent.elapsed())
        });
    }
    let mut outcome = Outcome { answered: Vec::new(), refused: 0, time: Duration::ZERO };
    while let Some(answer) = requests.join_next().await {
        let (answer, time) = answer.unwrap();
        if answer.status() == 200 {
            outcome.answered.push(time);
        } else {
            assert_eq!(answer.status(), 503);
            assert_eq!(answer.headers()["retry-after"], "1");
            outcome.refused += 1;
        }
    }
    outcome.time = begun.elapsed();
    outcome.answered.sort_unstable();
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_one_and_a_half_times_its_capacity_a_server_goes_on_to_answer_in_time() {
    // What else the machine does takes its share of the time: then it is tried again.
    let mut seen = Err(String::new());
    for _ in 0..4 {
        seen = half_as_much_again().await;
        match &seen {
            Ok(()) => break,
            Err(what) => eprintln!("{what}"),
        }
    }
    seen.unwrap();
}

async fn half_as_much_again() -> Result<(), String> {
    let upstreams = Upstreams::fixed([server().await]).into_watch();
    let unlimited = OverloadConfig { enabled: false, ..OverloadConfig::default() };
    let bare = ProxyConfig { overload: unlimited, ..ProxyConfig::default() };
    let bare = RunningProxy::start(bare, upstreams.clone()).await;
    // What the server can do where timers are not exact.
    let capacity = load(&bare, 1.5 * PER_SECOND, Duration::from_secs(1)).await.per_second();
    let overload = OverloadConfig { min_in_flight: 1, short_queue: true, ..OverloadConfig::default() };
    let proxy = RunningProxy::start(ProxyConfig { overload, ..ProxyConfig::default() }, upstreams).await;
    let unloaded = load(&proxy, PER_SECOND / 2.0, Duration::from_secs(2)).await;
    if unloaded.refused > 0 {
        return Err(format!("{} refused at half of its capacity", unloaded.refused));
    }
    // The limit is found.
    load(&proxy, 1.5 * PER_SECOND, Duration::from_secs(2)).await;
    let overloaded = load(&proxy, 1.5 * PER_SECOND, Duration::from_secs(4)).await;
    let goodput = overloaded.per_second() / capacity;
    let (p99, usual) = (overloaded.p99(), unloaded.p99());
    if goodput > 0.9 && p99 <= 3 * usual && overloaded.refused > 100 {
        return Ok(());
    }
    Err(format!("{goodput:.2} of capacity, {p99:?} and {usual:?} unloaded, {} refused", overloaded.refused))
}

/// Clients that each keep a connection and ask for one of these paths again and again, until so many were answered.
async fn closed_loop(proxy: &RunningProxy, paths: &[&'static str], answers: usize) {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for path in paths.iter().cycle().take(64) {
        let (asked, uri) = (Arc::clone(&asked), format!("http://{}{path}", proxy.address));
        clients.spawn(async move {
            let client = client();
            while asked.fetch_add(1, Ordering::Relaxed) < answers {
                let request = Request::get(&uri).body(Full::default()).unwrap();
                let answer = send(&client, request).await.unwrap();
                assert_eq!(answer.status(), 200, "{answer:?}");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_for_their_answers_are_never_refused_by_instances_of_fast_and_slow_routes() {
    for instances in [2, 4] {
        let supervisor = children("serve", SupervisorConfig { instances, ..Default::default() });
        let supervisor = supervisor.start().unwrap();
        supervisor.ready(LIMIT).await.unwrap();
        let proxy = RunningProxy::start(ProxyConfig::default(), supervisor.upstreams()).await;
        closed_loop(&proxy, &["/", "/slow"], 5000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_for_their_answers_are_never_refused_by_a_server_that_answers_one_at_a_time() {
    let proxy = RunningProxy::before(&[server_of(1, Duration::from_millis(2)).await]).await;
    closed_loop(&proxy, &["/"], 1500).await;
}

#[tokio::test]
async fn without_a_limit_answers_come_later_and_later() {
    let upstreams = Upstreams::fixed([server().await]).into_watch();
    let overload = OverloadConfig { enabled: false, ..OverloadConfig::default() };
    let proxy = RunningProxy::start(ProxyConfig { overload, ..ProxyConfig::default() }, upstreams).await;
    let overloaded = load(&proxy, 1.5 * PER_SECOND, Duration::from_secs(2)).await;
    assert_eq!(overloaded.refused, 0);
    assert!(overloaded.p99() > 20 * SERVICE_TIME, "{:?}", overloaded.p99());
}

#[tokio::test]
async fn a_client_beyond_its_rate_is_told_when_to_come_back_and_priority_paths_are_free() {
    let upstream = Scripted::start(OK).await;
    let limit = RateLimit { requests: 2, per: Duration::from_secs(3600), ..RateLimit::default() };
    let overload = OverloadConfig { priority_paths: vec!["/health".into()], ..OverloadConfig::default() };
    let config = ProxyConfig { rate_limits: vec![limit], overload, ..ProxyConfig::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    for left in ["1", "0"] {
        let answer = proxy.get("/").await;
        assert_eq!(answer.status(), 200);
        let state = answer.headers()["ratelimit"].to_str().unwrap();
        assert!(state.starts_with(&format!(r#""client";r={left};t="#)), "{state}");
    }
    let refused = proxy.get("/").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["ratelimit-policy"], r#""client";q=2;w=3600"#);
    let wait: u32 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");
    assert!(refused.body().starts_with(br#"{"error":"too_many_requests""#));
    assert_eq!(proxy.get("/health/live").await.status(), 200);
    assert_eq!(proxy.get("/healthy").await.status(), 429);
}
