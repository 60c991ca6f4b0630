//! `greenwave advise`, on PostgreSQL with `pg_stat_statements` and on a SQLite file.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use expect_test::{Expect, expect};
use greenwave_test_servers::postgres_database;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use crate::program::greenwave;

const BY_CUSTOMER: &str = "SELECT * FROM orders WHERE customer_id = ?";

/// A folder with a SQLite file `shop.db` of 20,000 orders, and a file of statements.
fn folder(statements: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let db = rusqlite::Connection::open(folder.path().join("shop.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, status TEXT NOT NULL, total INTEGER);
         WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO orders SELECT i, i * 7919 % 1000, 'paid', i % 97 FROM n;",
    )
    .unwrap();
    fs::write(folder.path().join("queries.sql"), statements).unwrap();
    folder
}

fn advise(folder: &Path, arguments: &[&str]) -> Output {
    greenwave(&["advise"]).args(arguments).current_dir(folder).env("RUST_LOG", "off").output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap()
}

fn plan(db: &rusqlite::Connection, sql: &str) -> String {
    db.query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [7], |row| row.get(3)).unwrap()
}

#[test]
fn a_sqlite_file_and_its_statements_as_text() {
    let folder = folder(&format!(
        "{BY_CUSTOMER};\n-- the newest\nSELECT id, total FROM orders\n  WHERE status = 'paid' AND total = 7;\nVACUUM"
    ));
    let output = advise(folder.path(), &["--database", "shop.db", "--workload", "queries.sql"]);
    expect![[r#"
        3 statements of sqlite:shop.db: 2 indexes would help, 472 kB in all

        1. CREATE INDEX orders_customer_id_idx ON orders (customer_id)
           196 kB; an insert takes about 2.0 times as long
                before    after  calls  statement
           20,000 rows  40 rows      1  SELECT * FROM orders WHERE customer_id = ?

        2. CREATE INDEX orders_status_total_idx ON orders (status, total)
           276 kB; an insert takes about 2.0 times as long
                before     after  calls  statement
           20,000 rows  200 rows      1  SELECT id, total FROM orders WHERE status = 'paid' AND total = 7

        1 statement not judged
          VACUUM
            it is neither a query nor a change of rows
    "#]]
    .assert_eq(&stdout(&output));
    assert_eq!(output.stderr, b"");
}

#[test]
fn the_same_as_markdown() {
    let folder = folder(BY_CUSTOMER);
    let arguments = ["--database", "sqlite:shop.db", "--workload", "queries.sql", "--format", "markdown"];
    expect![[r#"
        ## Indexes

        1 statement of sqlite:shop.db: 1 index would help, 196 kB in all

        ### `orders_customer_id_idx`

        ```sql
        CREATE INDEX orders_customer_id_idx ON orders (customer_id);
        ```

        196 kB; an insert takes about 2.0 times as long.

        | statement | calls | before, rows read | after |
        |---|--:|--:|--:|
        | `SELECT * FROM orders WHERE customer_id = ?` | 1 | 20,000 | 40 |
    "#]]
    .assert_eq(&stdout(&advise(folder.path(), &arguments)));
}

#[test]
fn a_migration_is_written_once_and_the_plan_then_uses_its_index() {
    let folder = folder(BY_CUSTOMER);
    let arguments = ["--database", "shop.db", "--workload", "queries.sql", "--migration", "0001.sql"];
    stdout(&advise(folder.path(), &arguments));
    let db = rusqlite::Connection::open(folder.path().join("shop.db")).unwrap();
    assert_eq!(plan(&db, BY_CUSTOMER), "SCAN orders");
    let migration = fs::read_to_string(folder.path().join("0001.sql")).unwrap();

    expect![[r#"
        greenwave: 0001.sql exists: choose another file, or add --force
    "#]]
    .assert_eq(&stderr(&advise(folder.path(), &arguments)));
    fs::write(folder.path().join("0001.sql"), "old").unwrap();
    stdout(&advise(folder.path(), &[&arguments[..], &["--force"]].concat()));
    assert_eq!(fs::read_to_string(folder.path().join("0001.sql")).unwrap(), migration);

    db.execute_batch(&migration).unwrap();
    assert_eq!(plan(&db, BY_CUSTOMER), "SEARCH orders USING INDEX orders_customer_id_idx (customer_id=?)");
    expect![[r#"
        1 statement of sqlite:shop.db: no index would help enough
    "#]]
    .assert_eq(&stdout(&advise(folder.path(), &arguments[..4])));
}

#[test]
fn what_a_service_has_counted_is_summed_and_read_from_standard_input_too() {
    let folder = folder("");
    let counted = |calls: u32| {
        serde_json::json!({"statements": [
            {"text": BY_CUSTOMER, "calls": calls, "total_ms": 900.0, "route": "GET /orders", "site": "orders.rs:7"},
        ]})
    };
    fs::write(folder.path().join("1.json"), counted(300).to_string()).unwrap();
    let mut child =
        greenwave(&["advise", "--database", "shop.db", "--format", "json", "--workload", "1.json", "-"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    child.stdin.take().unwrap().write_all(counted(20).to_string().as_bytes()).unwrap();
    let advice = json(&child.wait_with_output().unwrap());
    assert_eq!(advice["indexes"][0]["create"], "CREATE INDEX orders_customer_id_idx ON orders (customer_id)");
    let effect = &advice["indexes"][0]["effects"][0];
    assert_eq!((&effect["calls"], &effect["unit"]), (&Value::from(320.0), &Value::from("rows")));
    assert_eq!(effect["before"], 20000.0);
}

#[test]
fn verified_on_sqlite_it_is_timed() {
    let folder = folder(BY_CUSTOMER);
    let arguments = ["--database", "shop.db", "--workload", "queries.sql", "--verify", "--format", "json"];
    let advice = json(&advise(folder.path(), &arguments));
    let effect = &advice["indexes"][0]["effects"][0];
    assert_eq!(effect["unit"], "milliseconds");
    assert!(effect["after"].as_f64() < effect["before"].as_f64(), "{effect}");
}

#[test]
fn a_check_fails_where_an_index_is_advised_and_only_there() {
    let folder = folder(BY_CUSTOMER);
    let arguments = ["--workload", "queries.sql", "--check", "--database", "shop.db"];
    let output = advise(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "greenwave: 1 index is advised\n");
    fs::write(folder.path().join("queries.sql"), "SELECT * FROM orders WHERE id = 7").unwrap();
    stdout(&advise(folder.path(), &arguments));
}

#[test]
fn a_check_of_which_nothing_can_be_judged_is_not_passed() {
    let folder = folder("SELECT * FROM nowhere WHERE id = 7; VACUUM");
    let arguments = ["--workload", "queries.sql", "--check", "--database", "shop.db"];
    let output = advise(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output), "greenwave: no statement could be judged\n");
    stdout(&advise(folder.path(), &[&arguments[..2], &arguments[3..]].concat()));
}

#[test]
fn nothing_is_left_beside_a_file_in_wal_mode() {
    let slow =
        "SELECT count(*) FROM orders a JOIN orders b ON b.total BETWEEN a.customer_id AND a.customer_id + 1";
    let folder = folder(&format!("{BY_CUSTOMER}; {slow}"));
    let db = rusqlite::Connection::open(folder.path().join("shop.db")).unwrap();
    db.execute_batch("PRAGMA journal_mode = WAL").unwrap();
    db.close().unwrap();
    let left = || {
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let arguments = ["--workload", "queries.sql", "--database", "shop.db"];
    stdout(&advise(folder.path(), &arguments));
    assert_eq!(left(), ["queries.sql", "shop.db"]);

    for signal in [Signal::INT, Signal::HUP] {
        let child = greenwave(&["advise", "--verify", "--timeout", "2s"])
            .args(arguments)
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while !folder.path().join("shop.db-shm").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(300));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(left(), ["queries.sql", "shop.db"]);
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let folder = folder("-- nothing\n");
    fs::write(folder.path().join("bad.json"), "{\"statements\": 7}").unwrap();
    fs::write(folder.path().join("one.sql"), BY_CUSTOMER).unwrap();
    let check =
        |arguments: &[&str], expected: Expect| expected.assert_eq(&stderr(&advise(folder.path(), arguments)));
    check(
        &["--database", "shop.db"],
        expect![[r#"
        greenwave: SQLite counts no statements: give a file of them with --workload, as SQL or as the statistics that a service writes
    "#]],
    );
    check(
        &["--database", "shop.db", "--budget", "much", "--workload", "one.sql"],
        expect![[r#"
        error: invalid value 'much' for '--budget <SIZE>': write a size, as in 40MB, 1.5GB or 800kB

        For more information, try '--help'.
    "#]],
    );
    check(
        &["--database", "shop.db", "--workload", "missing.sql"],
        expect![[r#"
        greenwave: cannot read missing.sql; check the path given by --workload: No such file or directory (os error 2)
    "#]],
    );
    check(
        &["--database", "shop.db", "--workload", "queries.sql"],
        expect![[r#"
        greenwave: no statement in queries.sql
    "#]],
    );
    check(
        &["--database", "shop.db", "--workload", "bad.json"],
        expect![[r#"
        greenwave: bad.json is not what a service counts: {"statements": [{"text": …, "calls": …}]}: invalid type: integer `7`, expected a sequence at line 1 column 16
    "#]],
    );
    check(
        &["--database", "missing.db", "--workload", "one.sql"],
        expect![[r#"
            greenwave: missing.db is no file: check the path given by --database
        "#]],
    );
    check(
        &["--database", "one.sql", "--workload", "one.sql"],
        expect![[r#"
            greenwave: no advice on one.sql: could not read the schema and a sample of the rows: file is not a database: Error code 26: file is not a database
        "#]],
    );
    check(
        &["--database", "mysql://root:secret@db/shop"],
        expect![[r#"
        greenwave: --database: write postgres://USER:PASSWORD@HOST/DATABASE, sqlite:PATH, or the path of a SQLite file
    "#]],
    );
    check(
        &["--database", "postgres://ann:secret@127.0.0.1:1/shop"],
        expect![[r#"
        greenwave: cannot reach PostgreSQL at 127.0.0.1:1/shop: check that it runs there, and that the URL is right: error communicating with database: Connection refused (os error 111)
    "#]],
    );
    check(
        &["--database", "shop.db", "--workload", "one.sql", "--migration", "no/such/folder.sql"],
        expect![[r#"
            greenwave: cannot write no/such/folder.sql: No such file or directory (os error 2)
        "#]],
    );
}

async fn postgres(url: &str, statements: &str) -> PgConnection {
    let mut db = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut db).await.unwrap();
    db
}

const ORDERS: &str = "
    CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL);
    INSERT INTO orders SELECT n, n * 7919 % 1000, 'paid' FROM generate_series(1, 30000) n;
    ANALYZE orders;";

#[tokio::test]
async fn postgres_is_asked_what_it_has_counted_and_the_migration_works() {
    let url = postgres_database();
    let folder = TempDir::new().unwrap();
    let mut db = postgres(&url, ORDERS).await;
    expect![[r#"
        greenwave: pg_stat_statements is not in this database: add `shared_preload_libraries = 'pg_stat_statements'` to postgresql.conf and restart, then run `CREATE EXTENSION pg_stat_statements`; or give a file of statements with --workload
    "#]].assert_eq(&stderr(&advise(folder.path(), &["--database", &url])));

    sqlx::raw_sql("CREATE EXTENSION pg_stat_statements").execute(&mut db).await.unwrap();
    for customer in 0..20_i64 {
        let by_customer = sqlx::query("SELECT id, status FROM orders WHERE customer_id = $1").bind(customer);
        by_customer.fetch_all(&mut db).await.unwrap();
    }
    let output = greenwave(&["advise", "--format", "json", "--migration", "0001.sql"])
        .env("DATABASE_URL", &url)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let advice = json(&output);
    assert_eq!(advice["indexes"].as_array().unwrap().len(), 1, "{advice}");
    let index = &advice["indexes"][0];
    let (create, name) = (index["create"].as_str().unwrap(), index["name"].as_str().unwrap());
    assert!(create.starts_with("CREATE INDEX CONCURRENTLY") && create.contains("(customer_id"), "{create}");
    assert!(index["effects"][0]["calls"].as_f64() >= Some(20.0));

    let migration = fs::read_to_string(folder.path().join("0001.sql")).unwrap();
    let lines = migration.lines().filter(|line| !line.trim_start().starts_with("--"));
    let statements = lines.collect::<Vec<_>>().join("\n");
    for statement in statements.split(';').filter(|statement| !statement.trim().is_empty()) {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut db).await.unwrap();
    }
    let plan: Vec<(String,)> = sqlx::query_as("EXPLAIN SELECT id, status FROM orders WHERE customer_id = 7")
        .fetch_all(&mut db)
        .await
        .unwrap();
    assert!(plan.iter().any(|(line,)| line.contains(name)), "{plan:?}");
    let text = stdout(&advise(folder.path(), &["--database", &url]));
    assert!(text.contains("no index would help enough"), "{text}");
}

#[tokio::test]
async fn verified_on_postgres_it_is_timed_and_nothing_stays() {
    let url = postgres_database();
    let folder = folder("SELECT id FROM orders WHERE customer_id = 7");
    let mut db = postgres(&url, ORDERS).await;
    let output = advise(folder.path(), &["--database", &url, "--workload", "queries.sql", "--verify"]);
    let text = stdout(&output);
    assert!(text.contains(" ms"), "{text}");
    let indexes: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_indexes WHERE tablename = 'orders'")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(indexes, 1);
}

#[tokio::test]
async fn ctrl_c_ends_it_and_what_it_had_running() {
    let url = postgres_database();
    let slow =
        "SELECT count(*) FROM orders a, orders b, orders c WHERE a.customer_id = 7 AND b.status <> c.status";
    let folder = folder(slow);
    let mut db = postgres(&url, ORDERS).await;
    let mut child = greenwave(&["advise", "--database", &url, "--workload", "queries.sql", "--verify"])
        .args(["--timeout", "10m"])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    const RUNS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                        AND query LIKE '%orders a%' AND state = 'active' AND now() - query_start > '100 ms'";
    let mut runs = 0_i64;
    while runs == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended without executing the statement");
        runs = sqlx::query_scalar(RUNS).fetch_one(&mut db).await.unwrap();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "stopped; nothing was changed\n");
    const LEFT: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let deadline = Instant::now() + Duration::from_secs(30);
    while sqlx::query_scalar::<_, i64>(LEFT).fetch_one(&mut db).await.unwrap() > 0 {
        assert!(Instant::now() < deadline, "its connection is still there");
    }
    let indexes: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_indexes WHERE tablename = 'orders'")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(indexes, 1);
}
