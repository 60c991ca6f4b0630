//! More requests than a server can answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use greenwave_edge::{OverloadConfig, ProxyConfig, RateLimit, Upstreams};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::clients::{RunningProxy, client, send};
use crate::upstreams::{OK, Scripted};

const WORKERS: usize = 2;
const SERVICE_TIME: Duration = Duration::from_millis(20);
const PER_SECOND: f64 = 100.0;

/// A server that answers so many requests at once, each in the same time, in the order in which they came.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let workers = Arc::new(Semaphore::new(WORKERS));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let workers = Arc::clone(&workers);
            let answer = service_fn(move |_: Request<Incoming>| {
                let workers = Arc::clone(&workers);
                // A task of its own: like most services this one does not notice that its client has left.
                let work = tokio::spawn(async move {
                    let _worker = workers.acquire().await;
                    tokio::time::sleep(SERVICE_TIME).await;
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
}

impl Outcome {
    fn p99(&self) -> Duration {
        self.answered[self.answered.len() * 99 / 100]
    }
}

/// Sends requests at this rate for this long.
async fn load(proxy: &RunningProxy, per_second: f64, time: Duration) -> Outcome {
    let (client, mut requests) = (client(), JoinSet::new());
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
    let mut outcome = Outcome { answered: Vec::new(), refused: 0 };
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
    outcome.answered.sort_unstable();
    outcome
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
