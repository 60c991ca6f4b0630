//! Advice for SQLite databases that hold strange things, or whose service goes on.

use expect_test::expect;
use greenwave_db::index_advisor::{Advice, AdvisorConfig, Error, Finding, Workload, sqlite};
use rusqlite::Connection;

use crate::advisor_sqlite::{advise, shop};

#[test]
fn strange_schemas_are_taken_as_they_are() {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(
        "CREATE TABLE \"Order Lines\" (\"group\" TEXT COLLATE NOCASE, b INT, twice INT AS (b * 2), PRIMARY KEY (\"group\", b)) WITHOUT ROWID;
         CREATE TABLE seq (id INTEGER PRIMARY KEY AUTOINCREMENT, a INT CHECK (a > 0), b TEXT UNIQUE);
         CREATE VIEW lines AS SELECT * FROM \"Order Lines\" WHERE b > 10;
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
         INSERT INTO \"Order Lines\" (\"group\", b) SELECT 'g' || i % 70, i FROM n;
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) INSERT INTO seq (a, b) SELECT i % 900 + 1, i FROM n;",
    )
    .unwrap();
    let advice = advise(
        &db,
        "SELECT * FROM lines WHERE twice = ?; SELECT * FROM seq WHERE a = :a; SELECT b FROM seq WHERE b = $b",
    );
    assert!(advice.skipped.is_empty(), "{:?}", advice.skipped);
    let create: Vec<&str> = advice.indexes.iter().map(|index| index.create.as_str()).collect();
    expect![[r#"
        CREATE INDEX order_lines_twice_idx ON "Order Lines" (twice)
        CREATE INDEX seq_a_idx ON seq (a)"#]]
    .assert_eq(&create.join("\n"));
    create.iter().for_each(|create| db.execute_batch(create).unwrap());
}

#[test]
fn an_empty_database_and_an_empty_workload() {
    let db = Connection::open_in_memory().unwrap();
    assert_eq!(advise(&db, ""), Advice::default());
    assert_eq!(advise(&shop(), "").indexes, []);
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "x".repeat(5000)).unwrap();
    let db = Connection::open(file.path()).unwrap();
    let error = sqlite::advise(&db, &Workload::default(), &AdvisorConfig::default()).unwrap_err();
    assert!(matches!(error, Error::Database { .. }));
}

#[test]
fn a_table_of_which_only_a_sample_is_read() {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(
        "CREATE TABLE events (rowid TEXT, user INT, kind TEXT, at INT);
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
         INSERT INTO events SELECT 'e' || i, i % 3000, CASE WHEN i % 1000 = 0 THEN 'failed' ELSE 'done' END, i FROM n;",
    )
    .unwrap();
    let all = advise(&db, "SELECT * FROM events WHERE user = ? ORDER BY at DESC LIMIT 3").indexes;
    let effect = &all[0].effects[0];
    assert!((100_000.0..200_000.0).contains(&effect.before) && effect.after < 200.0, "{effect:?}");
    // Each user has 50 events; the sample has three of each at best.
    db.execute_batch("INSERT INTO events (_rowid_, user) VALUES (1 << 60, 1)").unwrap();
    let again = advise(&db, "SELECT * FROM events WHERE user = ? ORDER BY at DESC LIMIT 3").indexes;
    assert_eq!(again[0].create, all[0].create);
}

#[test]
fn others_may_write_while_it_is_timed() {
    let db = shop();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(None));
    let hook = ended.clone();
    db.rollback_hook(Some(move || *hook.lock().unwrap() = Some(std::time::Instant::now()))).unwrap();
    let limit = std::time::Duration::from_millis(300);
    let config = AdvisorConfig { verify: true, max_statement: limit, ..Default::default() };
    let workload = Workload::from_sql(
        "SELECT count(*) FROM orders a JOIN orders b ON b.created_at BETWEEN a.total AND a.total + 1",
    );
    let advice = sqlite::advise(&db, &workload, &config).unwrap();
    // It was executed for as long as it may be, and by then the last transaction had ended.
    assert_eq!(advice.indexes[0].effects[0].before, 300.0);
    assert!(ended.lock().unwrap().unwrap().elapsed() >= limit);
}

#[test]
fn text_that_is_not_utf_8_is_taken_as_it_is() {
    let db = shop();
    db.execute_batch("UPDATE orders SET details = CAST(x'ff00fe' AS TEXT)").unwrap();
    let workload = Workload::from_sql("SELECT * FROM orders WHERE customer_id = ?");
    for verify in [false, true] {
        let advice = sqlite::advise(&db, &workload, &AdvisorConfig { verify, ..Default::default() }).unwrap();
        assert_eq!(advice.indexes[0].name, "orders_customer_id_idx");
    }
}

#[test]
fn a_row_that_is_not_the_json_it_should_be_ends_only_what_needs_it() {
    let db = shop();
    db.execute_batch("UPDATE orders SET details = 'no json' WHERE id = 20000").unwrap();
    let workload = Workload::from_sql(
        "SELECT id FROM orders WHERE json_extract(details, '$.sku') = ?; SELECT * FROM customers WHERE email = ?;
         SELECT json_extract(details, '$.note') FROM orders WHERE total >= 0 AND created_at > 10 ORDER BY created_at",
    );
    let estimated = sqlite::advise(&db, &workload, &AdvisorConfig::default()).unwrap().indexes;
    assert!(estimated.iter().any(|index| index.name.contains("json")), "{estimated:?}");
    let config = AdvisorConfig { verify: true, ..Default::default() };
    let advice = sqlite::advise(&db, &workload, &config).unwrap();
    assert!(advice.indexes.iter().any(|index| index.name == "customers_email_idx"), "{:?}", advice.indexes);
    assert!(!advice.indexes.iter().any(|index| index.name.contains("json")), "{:?}", advice.indexes);
}

#[test]
fn names_that_are_keywords_are_quoted() {
    for name in
        ["transaction", "references", "unique", "set", "using", "when", "add", "commit", "key", "Plain"]
    {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(&format!(
            "PRAGMA foreign_keys = OFF;
             CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE \"{name}\" (id INTEGER PRIMARY KEY, \"{name}\" INT REFERENCES parent, other INT);
             WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO \"{name}\" SELECT i, i % 500, i % 700 FROM n;"
        ))
        .unwrap();
        let found = sqlite::findings(&db).unwrap();
        let [Finding::ForeignKeyWithoutIndex { create, .. }] = &found[..] else { panic!("{found:?}") };
        db.execute_batch(create).unwrap();
        let advice = advise(&db, &format!("SELECT * FROM \"{name}\" WHERE other = ?"));
        db.execute_batch(&advice.indexes[0].create).unwrap();
    }
}
