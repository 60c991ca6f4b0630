//! Statements of sqlx's own pool, seen through its events.

use greenwave_db::query_stats::{Dialect, QueryStats, Scope, SqlxLayer, StatementStats};
use greenwave_test_servers::postgres_database;
use sqlx::PgPool;
use tracing::{Instrument, field::Empty, info_span, subscriber::DefaultGuard};
use tracing_subscriber::layer::SubscriberExt;

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
