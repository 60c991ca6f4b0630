//! What lists and single orders cost the database.

use std::time::Duration;

use crate::fixture::{Data, Kind, Running, SIZE, Works, eventually_within};

const SCANS: &str = "SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes
                     WHERE indexrelname = 'orders_customer_status_created'";
const COMMITS: &str = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
const WHOLE_TABLE_SCANS: &str =
    "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname IN ('orders', 'order_items')";

#[tokio::test]
async fn on_postgres_a_list_takes_one_statement_over_the_composite_index() {
    const ROUNDS: i64 = 60;
    let data = Data::seeded(Kind::Postgres).await;
    let shop = Running::start(&data.config(), Works::ApiOnly).await;
    // A session's counters are certain to be there when it has ended.
    let settled = |shop: Running| async {
        shop.stop().await;
        let others = "SELECT count(*) FROM pg_stat_activity
                      WHERE datname = current_database() AND query NOT LIKE '%pg_stat_activity%'";
        eventually_within(Duration::from_secs(10), "sessions", 0, || data.db.int(others)).await;
    };
    settled(shop).await;
    let shop = Running::start(&data.config(), Works::ApiOnly).await;
    let (scans, commits, seq) =
        (data.db.int(SCANS).await, data.db.int(COMMITS).await, data.db.int(WHOLE_TABLE_SCANS).await);
    for round in 0..ROUNDS {
        let customer = 1 + round % (SIZE.users / 100);
        shop.client.get(&format!("/orders?customer_id={customer}&status=pending")).await;
        shop.client.get(&format!("/orders?customer_id={customer}")).await;
        shop.client.get(&format!("/orders/{}", 1 + round)).await;
    }
    settled(shop).await;
    let scanned = data.db.int(SCANS).await - scans;
    assert!(scanned >= 2 * ROUNDS, "{scanned} scans of the index in {} lists", 2 * ROUNDS);
    // One transaction a request; what remains is the start, and these questions.
    let spent = data.db.int(COMMITS).await - commits;
    assert!(spent <= 3 * ROUNDS + 60, "{spent} transactions in {} requests", 3 * ROUNDS);
    let whole = data.db.int(WHOLE_TABLE_SCANS).await - seq;
    assert!(whole <= 4, "{whole} scans of whole tables");
}
