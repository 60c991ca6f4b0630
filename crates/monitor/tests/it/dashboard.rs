use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use greenwave_monitor::dashboard::{
    DashboardConfig, InstanceRow, Link, Overview, Point, Sources, guarded, own_page, router, router_until,
};
use greenwave_monitor::{Monitor, Snapshot};
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use metrics::{counter, gauge, histogram};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::monitor_of;

fn answers(route: &str, status: &str, count: usize, seconds: f64) {
    let labels =
        [("http.request.method", "GET"), ("http.route", route), ("http.response.status_code", status)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    histogram!("http.server.request.duration", &labels).record_many(seconds, count);
}

fn dashboard(config: DashboardConfig, snapshot: impl Fn() -> Snapshot + Send + Sync + 'static) -> Router {
    router(config, move || {
        let sources = Sources { instances: Vec::new(), snapshots: snapshot() };
        async move { sources }
    })
}

fn empty(config: DashboardConfig) -> Router {
    dashboard(config, Snapshot::default)
}

async fn get(router: &Router, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

const LOCAL: &[(&str, &str)] = &[("host", "localhost:8090")];

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The events of a stream, one by one.
struct Events {
    body: Body,
    buffer: String,
}

impl Events {
    async fn of(router: &Router) -> Events {
        let response = get(router, "/events", LOCAL).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        Events { body: response.into_body(), buffer: String::new() }
    }

    /// The name and data of the next event; none at the stream's end.
    async fn next(&mut self) -> Option<(String, String)> {
        while !self.buffer.contains("\n\n") {
            let frame = self.body.frame().await?.unwrap();
            self.buffer += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
        let (event, rest) = self.buffer.split_once("\n\n").unwrap();
        let (mut name, mut data) = (String::new(), String::new());
        for line in event.lines() {
            match line.split_once(": ").unwrap() {
                ("event", value) => name = value.to_owned(),
                ("data", value) => data += value,
                ("retry", _) => {}
                _ => panic!("not a line of an event: {line}"),
            }
        }
        self.buffer = rest.to_owned();
        Some((name, data))
    }

    async fn overview(&mut self) -> Overview {
        loop {
            let (name, data) = self.next().await.expect("the stream ended");
            if name.is_empty() {
                return serde_json::from_str(&data).unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn updates_come_every_second_with_new_numbers() {
    let monitor = Monitor::new();
    let seconds = AtomicUsize::new(0);
    let source = {
        let monitor = monitor.clone();
        move || {
            // The first second has 10 requests, the second 20, ….
            let second = seconds.fetch_add(1, Ordering::Relaxed);
            metrics::with_local_recorder(&monitor.recorder(), || {
                answers("/slow", "200", 9 * second, 0.5);
                answers("/slow", "503", second, 0.001);
            });
            monitor.snapshot()
        }
    };
    let router = dashboard(DashboardConfig::default(), source);
    let mut events = Events::of(&router).await;
    let started = tokio::time::Instant::now();
    let mut overview = events.overview().await;
    while overview.point.rate == 0.0 {
        overview = events.overview().await;
    }
    let mut rates = vec![overview.point.rate];
    for _ in 0..3 {
        overview = events.overview().await;
        rates.push(overview.point.rate);
    }
    let steps: Vec<_> = rates.windows(2).map(|pair| (pair[1] - pair[0]).round()).collect();
    assert_eq!(steps, [10.0, 10.0, 10.0], "{rates:?}");
    assert!(started.elapsed() < Duration::from_secs(10));

    assert_eq!(overview.traffic.metric, "http.server.request.duration");
    let route = &overview.routes[0];
    assert_eq!((route.method.as_str(), route.route.as_str()), ("GET", "/slow"));
    assert!((route.errors - 0.1).abs() < 1e-9 && (overview.traffic.errors - 0.1).abs() < 1e-9);
    assert!((route.latency.p50.unwrap() / 0.5 - 1.0).abs() < 0.01, "{route:?}");
    assert!(!overview.stale);

    // A page that comes later is told what happened before.
    let mut late = Events::of(&router).await;
    let (name, hello) = late.next().await.unwrap();
    let hello: serde_json::Value = serde_json::from_str(&hello).unwrap();
    assert_eq!((name.as_str(), hello["title"].as_str()), ("hello", Some("Greenwave")));
    let history: Vec<Point> = serde_json::from_value(hello["history"].clone()).unwrap();
    assert!(history.len() >= 4 && history.iter().any(|point| point.rate == rates[0]), "{history:?}");
    assert_eq!(late.overview().await.point, overview.point);
}

#[tokio::test(start_paused = true)]
async fn one_task_asks_however_many_look_on() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let router = dashboard(DashboardConfig::default(), move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Snapshot::default()
    });
    let mut pages = Vec::new();
    for _ in 0..5 {
        pages.push(Events::of(&router).await);
    }
    for _ in 0..3 {
        for page in &mut pages {
            page.overview().await;
        }
    }
    assert!(asked.load(Ordering::Relaxed) <= 4, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn too_many_pages_are_refused_until_one_leaves() {
    let router = empty(DashboardConfig { max_viewers: 2, ..Default::default() });
    let first = Events::of(&router).await;
    let _second = Events::of(&router).await;
    assert_eq!(get(&router, "/events", LOCAL).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(first);
    Events::of(&router).await;
}

#[tokio::test(start_paused = true)]
async fn cancelling_ends_the_streams_and_the_task() {
    let cancel = CancellationToken::new();
    let router = router_until(DashboardConfig::default(), || async { Sources::default() }, cancel.clone());
    let mut events = Events::of(&router).await;
    events.overview().await;
    assert_eq!(get(&router, "/health", LOCAL).await.status(), StatusCode::OK);
    cancel.cancel();
    while events.next().await.is_some() {}
    assert_eq!(get(&router, "/health", LOCAL).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_router() {
    let alive = Arc::new(());
    let watched = Arc::downgrade(&alive);
    let router = router(DashboardConfig::default(), move || {
        let _alive = alive.clone();
        async { Sources::default() }
    });
    Events::of(&router).await.overview().await;
    assert!(watched.upgrade().is_some());
    drop(router);
    let gone = async {
        while watched.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_makes_the_numbers_stale() {
    let asked = AtomicUsize::new(0);
    let router = router(DashboardConfig::default(), move || {
        let hangs = asked.fetch_add(1, Ordering::Relaxed) > 0;
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Sources {
                instances: vec![InstanceRow { name: "shop-1".into(), ..Default::default() }],
                ..Default::default()
            }
        }
    });
    let mut events = Events::of(&router).await;
    assert!(!events.overview().await.stale);
    let overview = events.overview().await;
    assert!(overview.stale);
    assert_eq!(overview.instances[0].name, "shop-1");
}

#[tokio::test]
async fn with_a_token_every_path_but_health_demands_it() {
    let router = empty(DashboardConfig { token: Some("sesame".into()), ..Default::default() });
    // "any:sesame", "any:sesamE", "sesame"
    let (right, wrong, no_colon) = ("Basic YW55OnNlc2FtZQ==", "Basic YW55OnNlc2FtRQ==", "Basic c2VzYW1l");
    for path in ["/", "/events", "/metrics", "/nowhere"] {
        for credentials in [&[][..], &[("authorization", wrong)], &[("authorization", no_colon)]] {
            let refused = get(&router, path, credentials).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path}");
            assert!(refused.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Basic "));
        }
        for credentials in ["Bearer wrong", "Bearer", "bearer sesameX", "Digest sesame", "Basic !!!"] {
            let refused = get(&router, path, &[("authorization", credentials)]).await;
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{path} {credentials}");
        }
    }
    for credentials in [right, "Bearer sesame", "bearer sesame"] {
        // With a token, the dashboard may stand under any name.
        let answer = get(&router, "/", &[("authorization", credentials), ("host", "dash.example.com")]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{credentials}");
    }
    assert_eq!(get(&router, "/health", &[]).await.status(), StatusCode::OK);

    let unlocked = empty(DashboardConfig { token: Some(String::new()), ..Default::default() });
    assert_eq!(get(&unlocked, "/", &[("authorization", "Bearer ")]).await.status(), StatusCode::UNAUTHORIZED);
    assert!(
        !format!("{:?}", DashboardConfig { token: Some("sesame".into()), ..Default::default() })
            .contains("sesame")
    );
}

#[tokio::test]
async fn without_a_token_only_this_machine_s_names_are_answered() {
    let router = empty(DashboardConfig::default());
    for path in ["/", "/events", "/metrics", "/health"] {
        for host in ["localhost", "localhost:8090", "127.0.0.1:8090", "[::1]:8090"] {
            assert_eq!(get(&router, path, &[("host", host)]).await.status(), StatusCode::OK, "{host}");
        }
        for host in ["rebound.example.com", "rebound.example.com:8090", "192.168.0.7"] {
            assert_eq!(get(&router, path, &[("host", host)]).await.status(), StatusCode::FORBIDDEN, "{host}");
        }
        assert_eq!(get(&router, path, &[]).await.status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn the_page_is_whole_and_guarded() {
    let router = empty(DashboardConfig::default());
    let response = get(&router, "/", LOCAL).await;
    let headers = response.headers().clone();
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    let page = text(response).await;
    let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    assert!(
        page.contains(&format!("<script nonce=\"{nonce}\">"))
            && page.contains(&format!("<style nonce=\"{nonce}\">"))
    );
    assert!(!page.contains("{{"));
    let again = get(&router, "/", LOCAL).await;
    assert!(!again.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains(nonce));
    assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    assert_eq!(headers[header::X_FRAME_OPTIONS], "DENY");
    assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
    // Nothing comes from elsewhere, and no text becomes markup.
    for foreign in
        ["src=", "@import", "url(", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
    {
        assert!(!page.contains(foreign), "the page uses {foreign}");
    }
    for id in ["rps", "p50", "p99", "errors", "instances", "routes", "updated", "status", "notice"] {
        assert_eq!(page.matches(&format!(" id=\"{id}\"")).count(), 1, "#{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_of_the_program_s_own_is_linked_and_guarded() {
    let link = Link { title: "Jobs".into(), path: "/jobs".into() };
    let router = empty(DashboardConfig { links: vec![link], ..Default::default() });
    let hello = Events::of(&router).await.next().await.unwrap().1;
    assert!(hello.contains(r#""links":[{"title":"Jobs","path":"/jobs"}]"#), "{hello}");

    let page = || async { own_page("Jobs", "<main id=\"jobs\"></main>", "show()") };
    let router = guarded(Router::new().route("/jobs", axum::routing::get(page)), None);
    let response = get(&router, "/jobs", LOCAL).await;
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    let page = text(response).await;
    assert!(page.contains("<title>Jobs</title>") && page.contains("<main id=\"jobs\"></main>"));
    assert!(page.contains("show()") && !page.contains("{{"), "{page}");
    assert_eq!(get(&router, "/jobs", &[("host", "example.com")]).await.status(), StatusCode::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn hostile_names_stay_data() {
    const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\n\ndata: {}\n\nevent: hello\r\u{2028}\"'\\";
    let monitor = monitor_of(|| {
        answers(HOSTILE, "200", 1, 0.1);
        counter!("greenwave.cache.requests", "cache" => HOSTILE, "result" => HOSTILE).increment(1);
    });
    let config = DashboardConfig { title: HOSTILE.into(), ..Default::default() };
    let router = router(config, move || {
        let instances =
            vec![InstanceRow { name: HOSTILE.into(), state: HOSTILE.into(), ..Default::default() }];
        let sources = Sources { instances, snapshots: monitor.snapshot() };
        async move { sources }
    });
    let mut events = Events::of(&router).await;
    let mut overview = events.overview().await;
    while overview.routes.is_empty() {
        overview = events.overview().await;
    }
    assert_eq!(overview.routes[0].route, HOSTILE);
    assert_eq!(overview.instances[0].name, HOSTILE);
    assert_eq!(overview.caches[0].cache, HOSTILE);
    assert!(!text(get(&router, "/", LOCAL).await).await.contains("onerror"));
    for line in text(get(&router, "/metrics", LOCAL).await).await.split('\n') {
        assert!(!line.starts_with("data:") && !line.starts_with("event:"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_known_signal_has_its_row() {
    let monitor = Monitor::new();
    let record = {
        let monitor = monitor.clone();
        move || {
            metrics::with_local_recorder(&monitor.recorder(), || {
                answers("/orders", "200", 10, 0.1);
                let route = [("http.request.method", "GET"), ("http.route", "/orders")];
                histogram!("greenwave.request.queries", &route).record_many(3.0, 10);
                histogram!("greenwave.request.db_time", &route).record_many(0.025, 10);
                counter!("greenwave.cache.requests", "cache" => "user", "result" => "hit").increment(4);
                counter!("greenwave.cache.requests", "cache" => "user", "result" => "stale").increment(2);
                counter!("greenwave.cache.requests", "cache" => "user", "result" => "remote_hit")
                    .increment(3);
                counter!("greenwave.cache.requests", "cache" => "user", "result" => "miss").increment(1);
                histogram!("db.client.operation.duration", "db.system.name" => "postgresql").record(0.004);
                histogram!("db.client.connection.wait_time").record(0.002);
                counter!("db.client.connection.timeouts").increment(1);
                histogram!("greenwave.db.batch.size", "loader" => "items").record(12.0);
                counter!("greenwave.jobs.pushed", "queue" => "default", "job" => "welcome").increment(2);
                histogram!("greenwave.jobs.wait", "queue" => "default").record(0.5);
                histogram!("greenwave.jobs.run.duration", "job" => "welcome", "outcome" => "completed")
                    .record(0.2);
                gauge!("greenwave.jobs.ready", "queue" => "default").set(12);
                gauge!("greenwave.jobs.oldest_ready", "queue" => "default").set(7.5);
                gauge!("greenwave.jobs.dead", "queue" => "other").set(3);
                gauge!("greenwave.jobs.ready", "queue" => "other").set(0);
                gauge!("greenwave.jobs.objective.missed", "queue" => "default").set(1);
                counter!("greenwave.events.published", "event" => "order-created").increment(5);
                counter!("greenwave.events.handled", "subscription" => "stock", "outcome" => "handled")
                    .increment(5);
                histogram!("greenwave.edge.request.duration", "http.response.status_code" => "502")
                    .record(1.0);
                gauge!("greenwave.edge.upstreams.healthy").set(2);
            });
            monitor.snapshot()
        }
    };
    let router = dashboard(DashboardConfig::default(), record);
    let mut events = Events::of(&router).await;
    let mut overview = events.overview().await;
    while overview.window_seconds < 3.0 {
        overview = events.overview().await;
    }
    let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
    let route = &overview.routes[0];
    assert!(close(route.queries.unwrap(), 3.0) && close(route.db_share.unwrap(), 0.25), "{route:?}");
    assert!(close(route.rate, 10.0), "{route:?}");
    let cache = &overview.caches[0];
    assert!(
        close(cache.hit_ratio.unwrap(), 0.9)
            && close(cache.results["remote_hit"], 0.3)
            && close(cache.rate, 10.0)
    );
    assert_eq!((overview.databases.len(), overview.databases[0].system.as_str()), (1, "postgresql"));
    assert!(close(overview.databases[0].wait_p99.unwrap(), 0.002) && overview.databases[0].timeouts >= 3);
    assert!(close(overview.databases[0].latency.p99.unwrap(), 0.004));
    assert!(close(overview.batches[0].size.unwrap(), 12.0));
    assert!(close(overview.queues[0].rate, 2.0) && close(overview.queues[0].latency.p99.unwrap(), 0.5));
    let [default, other] = &overview.queues[..] else { panic!("{:?}", overview.queues) };
    assert_eq!(
        (default.ready, default.oldest, default.dead, default.late),
        (Some(12.0), Some(7.5), None, true)
    );
    assert_eq!((other.ready, other.dead, other.late), (Some(0.0), Some(3.0), false));
    assert!(overview.jobs[0].outcomes["completed"] >= 3);
    assert!(close(overview.events[0].rate, 5.0));
    assert!(overview.subscriptions[0].outcomes["handled"] >= 15);
    let edge = overview.edge.unwrap();
    assert!(close(edge.errors, 1.0) && edge.healthy == 2.0);
    assert!(
        text(get(&router, "/metrics", LOCAL).await).await.contains("greenwave_edge_upstreams_healthy 2\n")
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_without_request_metrics_is_seen_through_the_balancer() {
    let monitor = Monitor::new();
    let router = dashboard(DashboardConfig::default(), move || {
        metrics::with_local_recorder(&monitor.recorder(), || {
            histogram!("greenwave.edge.request.duration", "http.response.status_code" => "200")
                .record_many(0.02, 50);
            gauge!("greenwave.edge.active_requests").set(7);
        });
        monitor.snapshot()
    });
    let mut events = Events::of(&router).await;
    let mut overview = events.overview().await;
    while overview.window_seconds < 2.0 {
        overview = events.overview().await;
    }
    assert_eq!(overview.traffic.metric, "greenwave.edge.request.duration");
    assert!((overview.traffic.rate / 50.0 - 1.0).abs() < 0.01 && overview.traffic.active == 7.0);
    assert!(overview.routes.is_empty());
}
