//! The experiment on the composite index, on a small data set.

use greenwave_lab::Report;
use greenwave_lab::experiments::{Source, index};
use sqlx::{Connection, PgConnection};

use crate::quick::{Run, fact, run};

async fn index(database: Option<String>) -> Run {
    run(&index::experiment(Source { database, orders: 20_000, ..Source::default() })).await
}

/// 20,000 rows against a handful: the truth is hundreds, and twice would do.
const AT_LEAST: f64 = 2.0;

fn check(report: &Report) {
    assert_eq!((fact(report, "orders"), fact(report, "customers")), (Some("20,000"), Some("4,000")));
    assert_eq!(fact(report, "connections"), Some("4 to each copy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_brings_more_order_lists_on_sqlite() {
    let run = index(None).await;
    check(run.good(AT_LEAST));
    assert!(run.notes[0].contains("temporary SQLite file"), "{:?}", run.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_brings_more_order_lists_on_postgres_and_leaves_nothing_behind() {
    let url = greenwave_test_servers::postgres_database();
    // The name of the user's database stands twice, and the second one is the one that counts.
    let name = url.rsplit('/').next().unwrap();
    let url = format!("{url}?dbname={name}");
    let mut db = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE orders (id int); INSERT INTO orders VALUES (7)")
        .execute(&mut db)
        .await
        .unwrap();

    let run = index(Some(url.clone())).await;
    check(run.good(AT_LEAST));
    run.left_nothing_on(&url, 2).await;

    let mine: Vec<i32> = sqlx::query_scalar("SELECT id FROM orders").fetch_all(&mut db).await.unwrap();
    assert_eq!(mine, [7]);
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_in_words() {
    let run = index(Some("postgres://127.0.0.1:1/none".to_owned())).await;
    assert_eq!(run.report.as_ref().unwrap_err().to_string(), "could not set up the experiment");
    assert_eq!(run.refusal(), "could not connect to --database");
    let cause = index(Some("mysql://db".to_owned())).await.refusal();
    assert!(cause.starts_with("--database: write postgres://"), "{cause}");
}
