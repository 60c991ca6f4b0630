//! The experiment on the pool, on a small data set.

use greenwave_lab::experiments::{Source, pool};

use crate::quick::{self, fact};

#[tokio::test(flavor = "multi_thread")]
async fn our_pool_brings_more_queries_and_leaves_nothing_behind() {
    let url = greenwave_test_servers::postgres_database();
    let experiment =
        pool::experiment(Source { database: Some(url.clone()), orders: 5_000, ..Source::default() });
    let mut run = quick::run(&experiment).await;
    // In a debug build beside other tests a pair of rounds may tell anything; the third that is no more is a fault.
    for _ in 1..3 {
        if run.good(0.0).ratios.per_second.unwrap().median > 1.0 {
            break;
        }
        run = quick::run(&experiment).await;
    }
    let report = run.good(1.0);
    assert_eq!(
        (fact(report, "customers"), fact(report, "connections")),
        (Some("1,000"), Some("4 of each pool"))
    );
    run.left_nothing_on(&url, 1).await;
}

#[tokio::test]
async fn without_a_server_it_says_what_to_give() {
    let run = quick::run(&pool::experiment(Source::default())).await;
    assert_eq!(
        run.refusal(),
        "this pool saves round trips to a PostgreSQL server: \
         give one as --database postgres://USER:PASSWORD@HOST:PORT/DATABASE"
    );
    assert!(run.notes.is_empty(), "it began: {:?}", run.notes);
}
