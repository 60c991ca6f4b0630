//! Statements of sqlx's own pool, seen through its events.

use std::process::Command;

use greenwave_db::query_stats::{Dialect, QueryStats, Scope, SqlxLayer, StatementStats};
use greenwave_test_servers::postgres_database;
use sqlx::PgPool;
use tracing::{Event, Instrument, Subscriber, field::Empty, info_span, span::Id, subscriber::DefaultGuard};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry::LookupSpan,
};

/// On this thread, so each test has its own.
async fn watched_pool() -> (PgPool, QueryStats, DefaultGuard) {
    let pool = PgPool::connect(&postgres_database()).await.unwrap();
    let setup = "CREATE TABLE t (id BIGINT PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)";
    sqlx::raw_sql(setup).execute(&pool).await.unwrap();
    let stats = QueryStats::default();
    let subscriber = tracing_subscriber::registry().with(SqlxLayer::new(stats.clone(), Dialect::Postgres));
    (pool, stats, tracing::subscriber::set_default(subscriber))
}

async fn read(pool: &PgPool, times: i64) {
    for id in 1..=times {
        sqlx::query("SELECT id FROM t WHERE id = $1 OR id = 1000 LIMIT 1")
            .bind(id)
            .fetch_one(pool)
            .await
            .unwrap();
    }
}

fn only(stats: &QueryStats) -> StatementStats {
    let [statement] = &stats.snapshot().statements[..] else { panic!("{:#?}", stats.snapshot()) };
    statement.clone()
}

#[tokio::test]
async fn sqlx_s_statements_are_counted_from_its_events() {
    let (pool, stats, _guard) = watched_pool().await;
    read(&pool, 3).await;
    let read = only(&stats);
    assert_eq!(read.text, "SELECT id FROM t WHERE id = $1 OR id = $2 LIMIT $3");
    assert_eq!((read.calls, read.rows, read.errors, read.wait_ms), (3, 3, 0, 0.0));
    assert!(read.total_ms > 0.0 && read.p50_ms > 0.0, "{read:?}");
    assert_eq!(read.site, "unknown");

    stats.reset();
    sqlx::query("SELECT 1").execute(&pool).await.unwrap(); // So short that its summary is all of it.
    assert_eq!(only(&stats).text, "SELECT $1");
}

#[tokio::test]
async fn the_span_of_a_request_is_its_scope() {
    let (pool, stats, _guard) = watched_pool().await;
    for _ in 0..2 {
        let request = info_span!("request", http.route = "/spans");
        async { read(&pool, 6).instrument(info_span!("inner")).await }.instrument(request).await;
    }
    assert_eq!(only(&stats).route.as_deref(), Some("/spans"));
    let [found] = &stats.n_plus_one()[..] else { panic!("{:?}", stats.n_plus_one()) };
    assert_eq!((found.route.as_deref(), found.scopes, found.worst), (Some("/spans"), 2, 6));
}

#[tokio::test]
async fn a_route_may_be_recorded_late_and_a_scope_stands_above_spans() {
    let (pool, stats, _guard) = watched_pool().await;
    let request = info_span!("request", http.route = Empty);
    request.record("http.route", "/late");
    read(&pool, 1).instrument(request.clone()).await;
    assert_eq!(only(&stats).route.as_deref(), Some("/late"));
    stats.reset();
    Scope::new("/scope").run(read(&pool, 1)).instrument(request).await;
    assert_eq!(only(&stats).route.as_deref(), Some("/scope"));
}

/// Set in the process that sets a subscriber for all of itself.
const CHILD: &str = "GREENWAVE_TEST_GLOBAL_SUBSCRIBER";

/// Says on stdout which spans close, and which statements are warned of.
struct Told;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Told {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == greenwave_db::telemetry::N_PLUS_ONE_EVENT {
            println!("told of it");
        }
    }

    fn on_close(&self, _: Id, _: Context<'_, S>) {
        println!("closed a span");
    }
}

#[test]
fn sets_a_subscriber_for_all() {
    if std::env::var_os(CHILD).is_none() {
        return; // It is the next test's child.
    }
    let stats = QueryStats::default();
    let layers = tracing_subscriber::registry().with(SqlxLayer::new(stats, Dialect::Postgres)).with(Told);
    tracing::subscriber::set_global_default(layers).unwrap();
    info_span!("request", http.route = "/spans").in_scope(|| {
        for _ in 0..6 {
            tracing::debug!(target: "sqlx::query", summary = "SELECT 1", elapsed_secs = 0.001);
        }
    });
}

/// A subscriber set for one thread hides `Span::current` from its layers; one set for the process does not.
#[test]
fn a_span_in_which_statements_repeat_closes_and_is_told_of() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "query_stats_layer::sets_a_subscriber_for_all", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("closed a span") && said.contains("told of it"), "{said}");
}
