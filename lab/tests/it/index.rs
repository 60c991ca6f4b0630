//! The experiment on the composite index, on a small data set.

use std::time::Duration;

use greenwave_lab::experiments::{Source, index};
use greenwave_lab::{Error, Finding, Report, Runner, Settings, Step};
use sqlx::{Connection, PgConnection};

async fn run(database: Option<String>) -> (Result<Report, Error>, Vec<String>) {
    let (tell, told) = std::sync::mpsc::channel();
    let settings = Settings {
        rounds: 1,
        warm_up: Duration::from_millis(100),
        duration: Duration::from_millis(700),
        concurrency: 4,
        seed: Some(1),
        ..Settings::default()
    };
    let runner = Runner::new(settings).observe(move |step| {
        if let Step::Note(text) | Step::Warning(text) = step {
            let _ = tell.send(text.to_owned());
        }
    });
    let report = runner.run(&index::experiment(Source { database, orders: 20_000 })).await;
    drop(runner);
    (report, told.iter().collect())
}

fn check(report: &Report) {
    // 20,000 rows against a handful: the truth is hundreds, and twice would do. One pair is no verdict.
    assert_eq!(report.verdict.finding, Finding::TooFew, "{}", report.verdict);
    assert!(report.ratios.per_second.unwrap().median > 2.0, "{}", report.verdict);
    assert_eq!((report.before.errors, report.after.errors), (0, 0), "{report:?}");
    assert_eq!(report.warnings, [""; 0]);
    let fact = |name| report.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.as_str());
    assert_eq!((fact("orders"), fact("customers")), (Some("20,000"), Some("4,000")));
    assert_eq!(fact("connections"), Some("4 to each copy"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_brings_more_order_lists_on_sqlite() {
    let (report, notes) = run(None).await;
    check(&report.unwrap());
    assert!(notes[0].contains("temporary SQLite file"), "{notes:?}");
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

    let (report, notes) = run(Some(url)).await;
    check(&report.unwrap());

    let created: Vec<&str> =
        notes[0].split([' ', ',']).filter(|word| word.starts_with("greenwave_lab_")).collect();
    assert_eq!(created.len(), 2, "{notes:?}");
    let left: Vec<String> =
        sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE datname = ANY($1)")
            .bind(&created)
            .fetch_all(&mut db)
            .await
            .unwrap();
    assert!(left.is_empty(), "{left:?}");
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
    let (report, _) = run(Some("postgres://127.0.0.1:1/none".to_owned())).await;
    let error = report.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(
        format!("{error}: {cause}"),
        "could not set up the experiment: could not connect to --database"
    );
    let (report, _) = run(Some("mysql://db".to_owned())).await;
    let cause = std::error::Error::source(&report.unwrap_err()).unwrap().to_string();
    assert!(cause.starts_with("--database: write postgres://"), "{cause}");
}
