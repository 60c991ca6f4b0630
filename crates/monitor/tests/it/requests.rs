use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use greenwave_monitor::{Monitor, Snapshot};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{Barrier, mpsc};
use tower::ServiceExt;
use tracing::Instrument;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

const DURATION: &str = "http.server.request.duration";
const QUERIES: &str = "greenwave.request.queries";
const DB_TIME: &str = "greenwave.request.db_time";

fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

async fn ask(app: &Router, method: &str, path: &str) -> StatusCode {
    let response = app.clone().oneshot(request(method, path)).await.unwrap();
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

fn labelled(snapshot: &Snapshot, method: &str, route: &str, status: &str) -> u64 {
    let labels =
        [("http.request.method", method), ("http.route", route), ("http.response.status_code", status)];
    snapshot.histogram(DURATION, &labels).count()
}

/// As `greenwave-db` says that a statement has run.
fn our_statement(micros: u64) {
    tracing::event!(target: "greenwave_db::query", tracing::Level::DEBUG, db.query.text = "SELECT 1", elapsed_us = micros, db.response.returned_rows = 1u64);
}

/// As sqlx says so.
fn sqlx_statement(seconds: f64) {
    tracing::debug!(target: "sqlx::query", summary = "SELECT 1", rows_returned = 1u64, elapsed_secs = seconds);
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_path() {
    let monitor = Monitor::new();
    let app = Router::new()
        .route("/orders/{id}", get(|Path(id): Path<u32>| async move { id.to_string() }))
        .route("/orders", post(|| async { StatusCode::CREATED }))
        .nest("/admin", Router::new().route("/{page}", get(|| async { StatusCode::INTERNAL_SERVER_ERROR })))
        .layer(monitor.http_layer());
    assert_eq!(ask(&app, "GET", "/orders/1").await, StatusCode::OK);
    assert_eq!(ask(&app, "GET", "/orders/2").await, StatusCode::OK);
    assert_eq!(ask(&app, "GET", "/orders/none").await, StatusCode::BAD_REQUEST);
    assert_eq!(ask(&app, "POST", "/orders").await, StatusCode::CREATED);
    assert_eq!(ask(&app, "GET", "/admin/users").await, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(ask(&app, "BREW", "/orders").await, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(&app, "GET", "/wp-login.php").await, StatusCode::NOT_FOUND);

    let snapshot = monitor.snapshot();
    assert_eq!(labelled(&snapshot, "GET", "/orders/{id}", "200"), 2);
    assert_eq!(labelled(&snapshot, "GET", "/orders/{id}", "400"), 1);
    assert_eq!(labelled(&snapshot, "POST", "/orders", "201"), 1);
    assert_eq!(labelled(&snapshot, "GET", "/admin/{page}", "500"), 1);
    assert_eq!(labelled(&snapshot, "_OTHER", "/orders", "405"), 1);
    assert_eq!(labelled(&snapshot, "GET", "unmatched", "404"), 1);
    assert!(!serde_json::to_string(&snapshot).unwrap().contains("wp-login"));
    assert_eq!(snapshot.histogram(DURATION, &[]).count(), 7);
    // Without the tracing layer nobody counts statements, and none is a number too.
    assert!(snapshot.histogram(QUERIES, &[]).is_empty());
}

#[tokio::test]
async fn a_request_lasts_until_its_body_ends() {
    let monitor = Monitor::new();
    let (send, receive) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let receive = Arc::new(std::sync::Mutex::new(Some(receive)));
    let handler = move || {
        let receive = receive.lock().unwrap().take().unwrap();
        async move {
            Body::from_stream(stream::unfold(receive, async |mut r| r.recv().await.map(|chunk| (chunk, r))))
        }
    };
    let app = Router::new().route("/stream", get(handler)).layer(monitor.http_layer());
    let mut body = app.oneshot(request("GET", "/stream")).await.unwrap().into_body();
    send.send(Ok(Bytes::from("one"))).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert_eq!(monitor.snapshot().gauge("http.server.active_requests", &[]), 1.0);
    assert_eq!(monitor.snapshot().histogram(DURATION, &[]).count(), 0);
    drop(send);
    assert!(body.frame().await.is_none());
    assert_eq!(monitor.snapshot().gauge("http.server.active_requests", &[]), 0.0);
    assert_eq!(labelled(&monitor.snapshot(), "GET", "/stream", "200"), 1);
    drop(body);
    assert_eq!(monitor.snapshot().histogram(DURATION, &[]).count(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_and_a_handler_that_panics_count_too() {
    let monitor = Monitor::new();
    let app = Router::new()
        .route("/never", get(|| async { std::future::pending::<()>().await }))
        .route(
            "/endless",
            get(|| async { Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()) }),
        )
        .route(
            "/panics",
            get(|| async {
                if std::hint::black_box(true) {
                    panic!("as it should")
                }
            }),
        )
        .layer(monitor.http_layer());
    let mut never = Box::pin(app.clone().oneshot(request("GET", "/never")));
    assert!((&mut never).now_or_never().is_none());
    assert_eq!(monitor.snapshot().gauge("http.server.active_requests", &[]), 1.0);
    drop(never);
    drop(app.clone().oneshot(request("GET", "/endless")).await.unwrap());
    let panicked = tokio::spawn(app.oneshot(request("GET", "/panics"))).await;
    assert!(panicked.unwrap_err().is_panic());

    let snapshot = monitor.snapshot();
    assert_eq!(labelled(&snapshot, "GET", "/never", "499"), 1);
    assert_eq!(labelled(&snapshot, "GET", "/endless", "200"), 1);
    assert_eq!(labelled(&snapshot, "GET", "/panics", "500"), 1);
    assert_eq!(snapshot.gauge("http.server.active_requests", &[]), 0.0);
}

/// Two requests take turns, so that their statements interleave on one thread.
#[tokio::test]
async fn concurrent_requests_keep_their_statements_apart() {
    let monitor = Monitor::new();
    // Log output with a filter of its own does not hide the statements.
    let log = tracing_subscriber::fmt::layer()
        .with_test_writer()
        .with_filter(tracing_subscriber::filter::LevelFilter::ERROR);
    let subscriber = tracing_subscriber::registry().with(monitor.tracing_layer()).with(log);
    let _default = tracing::subscriber::set_default(subscriber);

    let turns = Arc::new(Barrier::new(2));
    let few = {
        let turns = turns.clone();
        move || async move {
            turns.wait().await;
            our_statement(1_000);
            turns.wait().await;
            turns.wait().await;
            our_statement(3_000);
            turns.wait().await;
        }
    };
    let many = move || async move {
        turns.wait().await;
        sqlx_statement(0.25);
        turns.wait().await;
        let in_a_span_of_its_own = async {
            our_statement(500_000);
            tokio::task::yield_now().await;
            sqlx_statement(0.125);
        };
        in_a_span_of_its_own.instrument(tracing::debug_span!("load_items")).await;
        turns.wait().await;
        tokio::spawn(async { our_statement(125_000) }.instrument(tracing::Span::current())).await.unwrap();
        tokio::spawn(async { our_statement(99) }).await.unwrap(); // belongs to nobody
        turns.wait().await;
    };
    let app = Router::new()
        .route("/few", get(few))
        .route("/many", get(many))
        .route("/none", get(|| async {}))
        .layer(monitor.http_layer());
    let both = async {
        tokio::join!(ask(&app, "GET", "/few"), ask(&app, "GET", "/many"), ask(&app, "GET", "/none"))
    };
    tokio::time::timeout(Duration::from_secs(30), both).await.unwrap();
    our_statement(7); // outside of any request

    let snapshot = monitor.snapshot();
    let of = |name, route| {
        let histogram = snapshot.histogram(name, &[("http.request.method", "GET"), ("http.route", route)]);
        (histogram.count(), histogram.sum())
    };
    assert_eq!(of(QUERIES, "/few"), (1, 2.0));
    assert_eq!(of(DB_TIME, "/few"), (1, 0.004));
    assert_eq!(of(QUERIES, "/many"), (1, 4.0));
    assert_eq!(of(DB_TIME, "/many"), (1, 1.0));
    assert_eq!(of(QUERIES, "/none"), (1, 0.0));
}

#[tokio::test]
async fn a_streamed_body_runs_its_statements_inside_the_request() {
    let monitor = Monitor::new();
    let _default =
        tracing::subscriber::set_default(tracing_subscriber::registry().with(monitor.tracing_layer()));
    let rows = || async {
        Body::from_stream(stream::iter(0..3).map(|row| {
            our_statement(10);
            Ok::<_, Infallible>(Bytes::from(row.to_string()))
        }))
    };
    let app = Router::new().route("/rows", get(rows)).layer(monitor.http_layer());
    ask(&app, "GET", "/rows").await;
    assert_eq!(monitor.snapshot().histogram(QUERIES, &[]).sum(), 3.0);
}
