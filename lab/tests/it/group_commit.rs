//! The experiment on group commit.

use greenwave_lab::experiments::{Source, group_commit};

use crate::quick::{fact, run};

#[tokio::test(flavor = "multi_thread")]
async fn both_ways_acknowledge_writes_and_the_report_says_what_a_sync_costs() {
    // How many more depends on the disk, which may be memory.
    let run = run(&group_commit::experiment(Source::default())).await;
    let report = run.good(0.0);
    assert!(fact(report, "sync of the disk, before the rounds").unwrap().ends_with(" ms"), "{report:?}");
    assert!(fact(report, "durability").unwrap().contains("FULL"), "{report:?}");
}

#[tokio::test]
async fn a_postgres_server_is_refused_rather_than_ignored() {
    let database = Some("postgres://127.0.0.1:1/none".to_owned());
    let run = run(&group_commit::experiment(Source { database, ..Source::default() })).await;
    assert_eq!(
        run.refusal(),
        "group commit is measured on SQLite, in a temporary folder: leave --database out"
    );
}
