//! A small service with its dashboard, under its own load for three seconds; then the head of its Prometheus text.
//!
//! `cargo run --example monitored -- --serve` keeps it running, to look at.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{get, post};
use greenwave_monitor::dashboard::{DashboardConfig, InstanceRow, Sources, router_until};
use greenwave_monitor::{Monitor, export};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let monitor = Monitor::install()?;
    tracing_subscriber::registry().with(monitor.tracing_layer()).init();
    let cancel = CancellationToken::new();
    let mut tasks = JoinSet::new();

    let service = TcpListener::bind("127.0.0.1:0").await?;
    let page = TcpListener::bind("127.0.0.1:0").await?;
    let (address, page_address) = (service.local_addr()?, page.local_addr()?);
    println!("service    http://{address}/orders");
    println!("dashboard  http://{page_address}/");

    let app = Router::new()
        .route("/users/{id}", get(user))
        .route("/orders", get(orders))
        .route("/orders", post(order))
        .layer(monitor.http_layer());
    tasks.spawn(serve(service, app, cancel.clone()));

    let source = {
        let monitor = monitor.clone();
        move || {
            let instances = vec![InstanceRow {
                name: "example-1".to_owned(),
                pid: Some(std::process::id()),
                address: Some(address.to_string()),
                state: "healthy".to_owned(),
                ..Default::default()
            }];
            let sources = Sources { instances, snapshots: monitor.snapshot() };
            async move { sources }
        }
    };
    let dashboard = router_until(DashboardConfig::default(), source, cancel.clone());
    tasks.spawn(serve(page, dashboard, cancel.clone()));

    for method in ["GET", "GET", "POST"] {
        let cancel = cancel.clone();
        let load = load(format!("http://{address}"), method);
        tasks.spawn(async move { cancel.run_until_cancelled(load).await.unwrap_or(Ok(())) });
    }

    if std::env::args().any(|argument| argument == "--serve") {
        tokio::signal::ctrl_c().await?;
    } else {
        sleep(Duration::from_secs(3)).await;
    }
    cancel.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }

    let text = export::prometheus(&monitor.snapshot());
    println!("\n{}\n…", text.lines().take(30).collect::<Vec<_>>().join("\n"));
    Ok(())
}

async fn serve(listener: TcpListener, app: Router, cancel: CancellationToken) -> Result<(), BoxError> {
    Ok(axum::serve(listener, app).with_graceful_shutdown(cancel.cancelled_owned()).await?)
}

/// Stands for a statement: takes its time, and says so as `greenwave-db` does.
async fn statement(text: &'static str, takes: Duration) {
    sleep(takes).await;
    let micros = takes.as_micros() as u64;
    tracing::event!(target: "greenwave_db::query", tracing::Level::DEBUG, db.query.text = text, elapsed_us = micros);
    metrics::histogram!("db.client.operation.duration", "db.system.name" => "example")
        .record(takes.as_secs_f64());
}

/// Mostly from a cache.
async fn user(Path(id): Path<u64>) -> String {
    let result = if id % 10 == 0 { "miss" } else { "hit" };
    metrics::counter!("greenwave.cache.requests", "cache" => "user", "result" => result).increment(1);
    if result == "miss" {
        statement("SELECT * FROM users WHERE id = $1", Duration::from_millis(2)).await;
    }
    format!("user {id}\n")
}

/// One statement for the list, and one more for each order in it: the page shows what that costs.
async fn orders() -> &'static str {
    statement("SELECT * FROM orders LIMIT 10", Duration::from_millis(2)).await;
    for _ in 0..10 {
        statement("SELECT * FROM items WHERE order_id = $1", Duration::from_millis(1)).await;
    }
    "ten orders\n"
}

async fn order() -> StatusCode {
    statement("INSERT INTO orders …", Duration::from_millis(3)).await;
    if rand::random_ratio(1, 50) { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CREATED }
}

async fn load(base: String, method: &'static str) -> Result<(), BoxError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    for id in 0u64.. {
        let path = if method == "GET" && id % 4 != 0 { format!("/users/{id}") } else { "/orders".to_owned() };
        let request = Request::builder().method(method).uri(format!("{base}{path}")).body(Body::empty())?;
        client.request(request).await?.into_body().collect().await?;
    }
    Ok(())
}
