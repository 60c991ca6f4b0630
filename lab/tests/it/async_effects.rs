//! The experiment on effects after the answer, on a small data set.

use greenwave_lab::experiments::{Source, async_effects};

use crate::quick::{Run, fact, run};

async fn effects(database: Option<String>) -> Run {
    run(&async_effects::experiment(Source { database, orders: 5_000, ..Source::default() })).await
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_effects_are_all_there_on_sqlite() {
    let run = effects(None).await;
    let report = run.good(0.0);
    assert!(fact(report, "CPU time").unwrap().starts_with("of this process, until"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_effects_are_all_there_on_postgres_whose_cpu_time_counts() {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    let run = effects(Some(url.clone())).await;
    let report = run.good(0.0);
    assert!(fact(report, "CPU time").unwrap().contains("the database's server"), "{report:?}");
    assert!(report.ratios.cpu.is_some());
    run.left_nothing_on(&url, 2).await;
}
