//! The experiment on the batch loader, on a small data set.

use greenwave_lab::experiments::{Source, batch};

use crate::quick::{fact, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_batch_brings_more_lists_on_postgres_and_leaves_nothing_behind() {
    let url = greenwave_test_servers::postgres_database();
    let run =
        run(&batch::experiment(Source { database: Some(url.clone()), orders: 5_000, ..Source::default() }))
            .await;
    // A hundred round trips against three; in a debug build, which is slow itself, it is less than that.
    let report = run.good(1.0);
    assert_eq!(
        (fact(report, "orders"), fact(report, "connections")),
        (Some("5,000"), Some("4, for both arms"))
    );
    run.left_nothing_on(&url, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_sqlite_both_ways_give_the_same_lists() {
    // Which is faster there depends on the build.
    let run = run(&batch::experiment(Source { database: None, orders: 100, ..Source::default() })).await;
    let report = run.good(0.0);
    assert!(fact(report, "database").unwrap().starts_with("SQLite"), "{report:?}");
}
