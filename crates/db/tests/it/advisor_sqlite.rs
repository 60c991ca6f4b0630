//! Advice for SQLite, where the best index is known; and the planner of the real database agrees.

use expect_test::{Expect, expect};
use greenwave_db::index_advisor::{Advice, AdvisorConfig, Finding, Unit, Workload, sqlite};
use rusqlite::Connection;

/// 20,000 orders of 1,000 customers; 1 in 50 is pending, each has its own time.
pub(crate) fn shop() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, email TEXT NOT NULL, name TEXT NOT NULL, city TEXT);
         CREATE TABLE orders (
             id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers, status TEXT NOT NULL,
             total INTEGER NOT NULL, created_at INTEGER NOT NULL, deleted_at INTEGER, details TEXT
         );
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO customers SELECT i, 'c' || i || '@example.com', 'Name ' || (i * 7919 % 2000), 'city ' || i % 40 FROM n;
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO orders SELECT i, 1 + i * 7919 % 1000, CASE WHEN i % 50 = 0 THEN 'pending' WHEN i % 3 = 0 THEN 'paid' ELSE 'shipped' END,
             i * 31 % 997, i * 7907 % 20000, CASE WHEN i % 10 = 0 THEN i END, json_object('sku', i % 5000, 'note', 'x') FROM n;",
    )
    .unwrap();
    db
}

pub(crate) fn advise(db: &Connection, statements: &str) -> Advice {
    sqlite::advise(db, &Workload::from_sql(statements), &AdvisorConfig::default()).unwrap()
}

/// What is advised for a statement, and how the real database's planner then executes it.
fn check(statement: &str, expected: Expect) {
    let db = shop();
    let advice = advise(&db, statement);
    assert!(advice.skipped.is_empty(), "{:?}", advice.skipped);
    let mut text = String::new();
    for index in &advice.indexes {
        text.push_str(&format!("{}\n", index.create));
        db.execute_batch(&index.create).unwrap();
    }
    if advice.indexes.is_empty() {
        text.push_str("no index\n");
    }
    db.execute_batch("ANALYZE").unwrap();
    let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
    let mut rows = plan.raw_query();
    while let Some(row) = rows.next().unwrap() {
        text.push_str(&format!("  {}\n", row.get::<_, String>(3).unwrap()));
    }
    expected.assert_eq(&text);
}

#[test]
fn one_value() {
    check(
        "SELECT * FROM orders WHERE customer_id = ?",
        expect![[r#"
        CREATE INDEX orders_customer_id_idx ON orders (customer_id)
          SEARCH orders USING INDEX orders_customer_id_idx (customer_id=?)
    "#]],
    );
    check(
        "SELECT id, name FROM customers WHERE email = 'c7@example.com'",
        expect![[r#"
        CREATE INDEX customers_email_idx ON customers (email)
          SEARCH customers USING INDEX customers_email_idx (email=?)
    "#]],
    );
}

#[test]
fn a_value_and_the_newest() {
    check(
        "SELECT * FROM orders WHERE status = ? ORDER BY created_at DESC, id DESC LIMIT 20",
        expect![[r#"
            CREATE INDEX orders_status_created_at_idx ON orders (status, created_at)
              SEARCH orders USING INDEX orders_status_created_at_idx (status=?)
        "#]],
    );
    check(
        "SELECT * FROM orders ORDER BY created_at DESC LIMIT 10",
        expect![[r#"
        CREATE INDEX orders_created_at_idx ON orders (created_at)
          SCAN orders USING INDEX orders_created_at_idx
    "#]],
    );
    check(
        "SELECT * FROM orders WHERE status = ? AND (created_at, id) < (?, ?) ORDER BY created_at DESC, id DESC LIMIT 20",
        expect![[r#"
            CREATE INDEX orders_status_created_at_idx ON orders (status, created_at)
              SEARCH orders USING INDEX orders_status_created_at_idx (status=? AND created_at<?)
        "#]],
    );
}

#[test]
fn two_values_and_a_range() {
    check(
        "SELECT * FROM orders WHERE customer_id = ? AND status = 'paid' AND created_at BETWEEN ? AND ?",
        expect![[r#"
            CREATE INDEX orders_customer_id_idx ON orders (customer_id)
              SEARCH orders USING INDEX orders_customer_id_idx (customer_id=?)
        "#]],
    );
    check(
        "SELECT count(*) FROM orders WHERE created_at >= 19000",
        expect![[r#"
        CREATE INDEX orders_created_at_idx ON orders (created_at)
          SEARCH orders USING COVERING INDEX orders_created_at_idx (created_at>?)
    "#]],
    );
}

#[test]
fn directions_that_differ() {
    check(
        "SELECT * FROM orders WHERE customer_id < 500 ORDER BY total DESC, created_at LIMIT 10",
        expect![[r#"
            CREATE INDEX orders_total_created_at_desc_idx ON orders (total, created_at DESC)
              SCAN orders USING INDEX orders_total_created_at_desc_idx
        "#]],
    );
}

#[test]
fn rare_rows_get_a_partial_index() {
    check(
        "SELECT * FROM orders WHERE status = 'pending' ORDER BY created_at LIMIT 10",
        expect![[r#"
        CREATE INDEX orders_created_at_where_status_pending_idx ON orders (created_at) WHERE status = 'pending'
          SCAN orders USING INDEX orders_created_at_where_status_pending_idx
    "#]],
    );
    check(
        "SELECT id FROM orders WHERE deleted_at IS NOT NULL AND total > 990",
        expect![[r#"
        CREATE INDEX orders_total_where_deleted_at_is_not_null_idx ON orders (total) WHERE deleted_at IS NOT NULL
          SEARCH orders USING INDEX orders_total_where_deleted_at_is_not_null_idx (total>?)
    "#]],
    );
}

#[test]
fn an_expression() {
    check(
        "SELECT * FROM customers WHERE lower(email) = ?",
        expect![[r#"
        CREATE INDEX customers_lower_email_idx ON customers (lower(email))
          SEARCH customers USING INDEX customers_lower_email_idx (<expr>=?)
    "#]],
    );
    check(
        "SELECT id FROM orders WHERE json_extract(details, '$.sku') = ?",
        expect![[r#"
        CREATE INDEX orders_json_extract_details_sku_idx ON orders (json_extract(details, '$.sku'))
          SEARCH orders USING COVERING INDEX orders_json_extract_details_sku_idx (<expr>=?)
    "#]],
    );
    check(
        "SELECT id FROM orders WHERE details ->> '$.sku' = 7",
        expect![[r#"
        CREATE INDEX orders_details_sku_idx ON orders (details ->> '$.sku')
          SEARCH orders USING COVERING INDEX orders_details_sku_idx (<expr>=?)
    "#]],
    );
}

#[test]
fn a_prefix() {
    check(
        "SELECT * FROM customers WHERE name LIKE 'name 12%'",
        expect![[r#"
        CREATE INDEX customers_name_nocase_idx ON customers (name COLLATE NOCASE)
          SEARCH customers USING INDEX customers_name_nocase_idx (name>? AND name<?)
    "#]],
    );
}

#[test]
fn a_join() {
    check(
        "SELECT o.id, o.total FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.email = ?",
        expect![[r#"
            CREATE INDEX customers_email_idx ON customers (email)
            CREATE INDEX orders_customer_id_idx ON orders (customer_id)
              SEARCH c USING COVERING INDEX customers_email_idx (email=?)
              SEARCH o USING INDEX orders_customer_id_idx (customer_id=?)
        "#]],
    );
    check(
        "SELECT name FROM customers c WHERE city = 'city 3' AND EXISTS (SELECT 1 FROM orders WHERE customer_id = c.id AND status = 'pending')",
        expect![[r#"
            CREATE INDEX customers_city_name_idx ON customers (city, name)
            CREATE INDEX orders_customer_id_status_where_status_pending_idx ON orders (customer_id, status) WHERE status = 'pending'
              SEARCH c USING COVERING INDEX customers_city_name_idx (city=?)
              SEARCH orders EXISTS USING COVERING INDEX orders_customer_id_status_where_status_pending_idx (customer_id=? AND status=?)
        "#]],
    );
}

#[test]
fn either_of_two() {
    check(
        "SELECT * FROM orders WHERE customer_id = 7 OR total = 500",
        expect![[r#"
        CREATE INDEX orders_customer_id_idx ON orders (customer_id)
        CREATE INDEX orders_total_idx ON orders (total)
          MULTI-INDEX OR
          INDEX 1
          SEARCH orders USING INDEX orders_customer_id_idx (customer_id=?)
          INDEX 2
          SEARCH orders USING INDEX orders_total_idx (total=?)
    "#]],
    );
}

#[test]
fn grouping() {
    check(
        "SELECT customer_id, sum(total) FROM orders GROUP BY customer_id",
        expect![[r#"
        CREATE INDEX orders_customer_id_total_idx ON orders (customer_id, total)
          SCAN orders USING COVERING INDEX orders_customer_id_total_idx
    "#]],
    );
}

#[test]
fn the_least_of_some() {
    check(
        "SELECT max(created_at) FROM orders WHERE status = ?",
        expect![[r#"
            CREATE INDEX orders_status_created_at_idx ON orders (status, created_at)
              SEARCH orders USING COVERING INDEX orders_status_created_at_idx (status=?)
        "#]],
    );
}

#[test]
fn rows_that_are_changed() {
    check(
        "UPDATE orders SET total = 0 WHERE customer_id = ? AND status = 'pending'",
        expect![[r#"
        CREATE INDEX orders_customer_id_where_status_pending_idx ON orders (customer_id) WHERE status = 'pending'
          SEARCH orders USING INDEX orders_customer_id_where_status_pending_idx (customer_id=?)
    "#]],
    );
    check(
        "DELETE FROM orders WHERE deleted_at < 50",
        expect![[r#"
        CREATE INDEX orders_deleted_at_idx ON orders (deleted_at)
          SEARCH orders USING COVERING INDEX orders_deleted_at_idx (deleted_at<?)
    "#]],
    );
}

#[test]
fn what_needs_no_index() {
    check(
        "SELECT * FROM orders WHERE id = ?",
        expect![[r#"
            no index
              SEARCH orders USING INTEGER PRIMARY KEY (rowid=?)
        "#]],
    );
    check(
        "SELECT * FROM orders",
        expect![[r#"
            no index
              SCAN orders
        "#]],
    );
    check(
        "SELECT sum(total) FROM orders",
        expect![[r#"
            no index
              SCAN orders
        "#]],
    );
    check(
        "SELECT * FROM orders WHERE details LIKE '%x%'",
        expect![[r#"
            no index
              SCAN orders
        "#]],
    );
}

#[test]
fn verified_advice_is_in_milliseconds_and_leaves_the_database_as_it_was() {
    let db = shop();
    let schema = |db: &Connection| -> Vec<String> {
        let mut names = db.prepare("SELECT name FROM sqlite_schema ORDER BY name").unwrap();
        names.query_map((), |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let (before, changes) = (schema(&db), db.total_changes());
    let workload = Workload::from_sql(
        "SELECT total FROM orders WHERE customer_id = ?; DELETE FROM orders WHERE total = 5",
    );
    let advice =
        sqlite::advise(&db, &workload, &AdvisorConfig { verify: true, ..Default::default() }).unwrap();
    assert_eq!((schema(&db), db.total_changes()), (before, changes));
    assert!(db.is_autocommit());
    let customer = advice.indexes.iter().find(|index| index.name == "orders_customer_id_idx").unwrap();
    let effect = &customer.effects[0];
    assert_eq!(effect.unit, Unit::Milliseconds);
    assert!(effect.after < effect.before / 2.0, "{effect:?}");
    // The estimate that was replaced was near what the index takes.
    let estimated = advise(&db, "SELECT total FROM orders WHERE customer_id = ?").indexes[0].bytes;
    assert!(
        estimated.abs_diff(customer.bytes) < customer.bytes / 5,
        "{estimated} against {}",
        customer.bytes
    );
}

#[test]
fn a_statement_that_is_too_slow_counts_as_long_as_it_may_run() {
    let limit = std::time::Duration::from_micros(500);
    let config = AdvisorConfig { verify: true, max_statement: limit, ..Default::default() };
    let workload = Workload::from_sql("SELECT max(details) FROM orders WHERE customer_id = ?");
    let advice = sqlite::advise(&shop(), &workload, &config).unwrap();
    let effect = &advice.indexes[0].effects[0];
    assert!(effect.before == 0.5 && effect.after < 0.4, "{effect:?}");
}

#[test]
fn statistics_are_used_where_they_are_and_made_up_where_they_are_not() {
    let db = shop();
    let statement = "SELECT * FROM orders WHERE status = 'pending' AND total = ?";
    let guessed = advise(&db, statement);
    db.execute_batch("ANALYZE").unwrap();
    assert_eq!(advise(&db, statement).indexes, guessed.indexes);
}

#[test]
fn an_index_that_costs_more_writes_than_it_saves_reads_is_not_advised() {
    let db = shop();
    let mut workload = Workload::from_sql(
        "SELECT id FROM orders WHERE customer_id = ?; INSERT INTO orders (customer_id, status, total, created_at) VALUES (?, ?, ?, ?)",
    );
    let count =
        |workload: &Workload| sqlite::advise(&db, workload, &AdvisorConfig::default()).unwrap().indexes.len();
    assert_eq!(count(&workload), 1);
    workload.statements[1].calls = 1e6;
    assert_eq!(count(&workload), 0);
}

#[test]
fn a_budget_and_a_number_are_kept() {
    let db = shop();
    let workload = Workload::from_sql(
        "SELECT * FROM orders WHERE customer_id = ?; SELECT * FROM orders WHERE total = ?; SELECT * FROM customers WHERE email = ?",
    );
    let with = |config| sqlite::advise(&db, &workload, &config).unwrap().indexes;
    let all = with(AdvisorConfig::default());
    assert_eq!(all.len(), 3);
    assert_eq!(with(AdvisorConfig { max_indexes: 2, ..Default::default() }).len(), 2);
    let max_bytes = all.iter().map(|index| index.bytes).sum::<u64>() - 1;
    let within = with(AdvisorConfig { max_bytes: Some(max_bytes), ..Default::default() });
    assert_eq!(within.len(), 2);
}

#[test]
fn an_index_that_exists_is_not_advised_again() {
    let db = shop();
    db.execute_batch("CREATE INDEX mine ON orders (customer_id, status)").unwrap();
    assert!(advise(&db, "SELECT * FROM orders WHERE customer_id = ?").indexes.is_empty());
}

#[test]
fn findings_name_duplicates_and_foreign_keys_without_an_index() {
    let db = shop();
    db.execute_batch(
        "CREATE INDEX short ON orders (status); CREATE INDEX long ON orders (status DESC, total);
         CREATE INDEX twin ON orders (status, total DESC); CREATE INDEX rowid ON customers (id);
         CREATE UNIQUE INDEX one_email ON customers (email); CREATE INDEX some ON customers (email, name) WHERE city = 'x'",
    )
    .unwrap();
    let findings = sqlite::findings(&db).unwrap();
    let text = |finding: &Finding| match finding {
        Finding::DuplicateIndex { index, covered_by, .. } => format!("{index} by {covered_by}"),
        Finding::ForeignKeyWithoutIndex { table, create, .. } => format!("{table}: {create}"),
        other => format!("{other:?}"),
    };
    let text: Vec<String> = findings.iter().map(text).collect();
    expect![[r#"
        rowid by id, the table's own key
        short by long
        twin by long
        orders: CREATE INDEX orders_customer_id_idx ON orders (customer_id)"#]]
    .assert_eq(&text.join("\n"));
}

#[test]
fn what_cannot_be_judged_is_said() {
    let db = shop();
    db.execute_batch("CREATE VIRTUAL TABLE notes USING fts5(body)").unwrap();
    let advice = advise(
        &db,
        "SELECT * FROM nowhere WHERE a = 1; VACUUM; SELECT * FROM notes WHERE notes MATCH 'x'; SELECT FROM",
    );
    assert!(advice.indexes.is_empty());
    let text: Vec<String> =
        advice.skipped.iter().map(|skipped| format!("{}: {}", skipped.sql, skipped.why)).collect();
    expect![[r#"
        SELECT * FROM nowhere WHERE a = 1: it reads no table of this database
        VACUUM: it is neither a query nor a change of rows
        SELECT * FROM notes WHERE notes MATCH 'x': it reads no table of this database
        SELECT FROM: sql parser error: Expected an expression, found: FROM"#]]
    .assert_eq(&text.join("\n"));
}
