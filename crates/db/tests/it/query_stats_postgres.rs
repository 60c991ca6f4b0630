//! What is counted of statements, and what repeats, on PostgreSQL.

use std::{panic::Location, time::Duration};

use futures_util::TryStreamExt;
use greenwave_db::{
    PoolConfig,
    postgres::Pool,
    query_stats::{self, QueryStatsConfig, Scope, StatementStats},
    telemetry::{N_PLUS_ONE_EVENT, SLOW_QUERY_EVENT, SLOW_QUERY_PLAN_EVENT},
};
use greenwave_test_servers::postgres_database;
use tokio::time::timeout;

use crate::signals::signals;

async fn pool(config: PoolConfig) -> Pool {
    let pool = Pool::connect(&postgres_database(), config).await.unwrap();
    let setup = "CREATE TABLE t (id BIGINT PRIMARY KEY, name TEXT NOT NULL);
        INSERT INTO t SELECT id, 'name of ' || id FROM generate_series(1, 100) AS id";
    sqlx::raw_sql(setup).execute(&pool).await.unwrap();
    pool.query_stats().reset();
    pool
}

fn with(query_stats: QueryStatsConfig) -> PoolConfig {
    PoolConfig { query_stats, ..Default::default() }
}

const BY_ID: &str = "SELECT name FROM t WHERE id = $1";

const IN_NAME: u32 = line!() + 3;

async fn name(pool: &Pool, id: i64) -> String {
    sqlx::query_scalar(BY_ID).bind(id).fetch_one(pool).await.unwrap()
}

fn in_name() -> String {
    format!("query_stats_postgres.rs:{IN_NAME}:")
}

/// The only statement with this beginning.
#[track_caller]
fn only(pool: &Pool, start: &str) -> StatementStats {
    let snapshot = pool.query_stats().snapshot();
    let mut found = snapshot.statements.iter().filter(|statement| statement.text.starts_with(start));
    let statement = found.next().unwrap_or_else(|| panic!("no {start} in {snapshot:#?}"));
    assert!(found.next().is_none(), "{snapshot:#?}");
    statement.clone()
}

#[track_caller]
fn here() -> String {
    Location::caller().to_string()
}

fn line_of(place: &str) -> &str {
    place.rsplit_once(':').unwrap().0
}

#[tokio::test]
async fn a_statement_on_the_bare_pool_counts_for_the_function_that_awaits_it() {
    let pool = pool(PoolConfig::default()).await;
    for id in [1, 2, 3] {
        Scope::new("/names/{id}").run(name(&pool, id)).await;
    }
    let by_id = only(&pool, "SELECT");
    assert_eq!((by_id.text.as_str(), by_id.system.as_str()), (BY_ID, "postgresql"));
    assert_eq!((by_id.route.as_deref(), by_id.calls, by_id.rows), (Some("/names/{id}"), 3, 3));
    assert!(by_id.site.contains(&in_name()), "{}", by_id.site);
}

#[tokio::test]
async fn without_backtraces_a_bare_pool_has_no_call_site() {
    let pool = pool(with(QueryStatsConfig { backtraces: false, ..Default::default() })).await;
    name(&pool, 1).await;
    assert_eq!(only(&pool, "SELECT").site, "unknown");
}

#[tokio::test]
async fn the_call_site_is_exact_where_it_is_given() {
    let pool = pool(PoolConfig::default()).await;
    let (here_site, one) = (here(), sqlx::query("SELECT 1 AS one").fetch_one(pool.here()));
    one.await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let (timed_site, two) = (here(), sqlx::query("SELECT 2 AS two").fetch_one(pool.timed(&mut tx)));
    two.await.unwrap();
    tx.commit().await.unwrap();

    assert_eq!(line_of(&only(&pool, "SELECT $1 AS one").site), line_of(&here_site));
    assert_eq!(line_of(&only(&pool, "SELECT $1 AS two").site), line_of(&timed_site));
}

#[tokio::test]
async fn errors_and_rows_are_counted_however_a_statement_runs() {
    let pool = pool(PoolConfig::default()).await;
    sqlx::query("UPDATE t SET name = $1 WHERE id <= 10").bind("x").execute(&pool).await.unwrap();
    sqlx::query("SELECT id FROM t WHERE id <= 5").fetch_all(&pool).await.unwrap();
    let stream = sqlx::query("SELECT id AS streamed FROM t LIMIT 7").fetch(&pool);
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 7);
    sqlx::query("INSERT INTO t VALUES (1, 'again')").execute(&pool).await.unwrap_err();
    let given_up = sqlx::query("SELECT pg_sleep(5)").execute(&pool);
    timeout(Duration::from_millis(50), given_up).await.unwrap_err();

    let counted = |start| {
        let StatementStats { calls, errors, rows, .. } = only(&pool, start);
        (calls, errors, rows)
    };
    assert_eq!(counted("UPDATE"), (1, 0, 10));
    assert_eq!(counted("SELECT id FROM"), (1, 0, 5));
    assert_eq!(counted("SELECT id AS streamed"), (1, 0, 7));
    assert_eq!(counted("INSERT"), (1, 1, 0));
    assert_eq!(counted("SELECT pg_sleep"), (1, 0, 0));
}

#[tokio::test]
async fn the_wait_for_a_connection_is_counted_apart() {
    let pool = pool(PoolConfig { max_connections: 1, ..Default::default() }).await;
    let held = pool.acquire().await.unwrap();
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(held);
    };
    tokio::join!(name(&pool, 1), release);
    let by_id = only(&pool, "SELECT");
    assert!(by_id.wait_ms >= 190.0 && by_id.max_ms < 190.0, "{by_id:?}");
}

#[tokio::test]
async fn an_n_plus_one_on_the_bare_pool_is_found_with_its_call_site() {
    let signals = signals();
    let pool = pool(PoolConfig::default()).await;
    let request = async {
        for id in 1..=20 {
            name(&pool, id).await;
        }
    };
    let ((), seen) = query_stats::watch(Scope::new("/pg-n-plus-one").run(request)).await;
    let [found] = &pool.query_stats().n_plus_one()[..] else { panic!() };
    assert_eq!((found.text.as_str(), found.worst), (BY_ID, 20));
    assert!(found.site.contains(&in_name()), "{}", found.site);
    let [found] = seen.n_plus_one()[..] else { panic!("{seen:?}") };
    assert!(found.site.contains(&in_name()), "{}", found.site);

    let wanted = |event: &crate::signals::Captured| event.fields["http.route"] == "/pg-n-plus-one";
    let warning = &signals.eventually(N_PLUS_ONE_EVENT, wanted).await[0];
    assert_eq!(warning.number("count"), 20);
    assert!(warning.fields["site"].contains(&in_name()), "{warning:?}");
}

#[tokio::test]
async fn a_slow_statement_is_logged_with_its_route_its_site_and_its_plan() {
    let signals = signals();
    let stats = QueryStatsConfig { explain_slow: true, ..Default::default() };
    let pool = pool(PoolConfig { slow_query: Duration::ZERO, ..with(stats) }).await;
    let mut first = pool.acquire().await.unwrap(); // So that two are open: a plan waits for none.
    sqlx::query("SELECT 1").execute(pool.timed(&mut first)).await.unwrap();
    for _ in 0..3 {
        name(&pool, 1).await;
    }
    drop(first);
    let text = "SELECT name AS explained FROM t WHERE name = 'secret name' AND id < $1";
    let slow = sqlx::query(text).bind(5_i64).fetch_all(&pool);
    Scope::new("/slow").run(slow).await.unwrap();

    let of_route =
        |event: &crate::signals::Captured| event.fields.get("http.route").is_some_and(|r| r == "/slow");
    let slow = &signals.eventually(SLOW_QUERY_EVENT, of_route).await[0];
    assert!(slow.fields["site"].contains("query_stats_postgres.rs:"), "{slow:?}");
    assert_eq!(slow.text(), "SELECT name AS explained FROM t WHERE name = $1 AND id < $2");
    let plan =
        &signals.eventually(SLOW_QUERY_PLAN_EVENT, |event| event.text().contains("explained")).await[0];
    let plan = &plan.fields["plan"];
    assert!(plan.contains("t_pkey") && plan.contains("cost=") && plan.contains("name = $1::text"), "{plan}");
    assert!(signals.mentioning("secret name").is_empty());

    // The connection that was asked for it holds nothing of it.
    let prepared = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'greenwave%'";
    let left: i64 = sqlx::query_scalar(prepared).fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
}
