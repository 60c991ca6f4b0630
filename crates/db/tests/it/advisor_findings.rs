//! What the advisor finds wrong with the indexes and tables that exist.

use greenwave_db::index_advisor::{Finding, postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

async fn database(schema: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&greenwave_test_servers::postgres_database()).await.unwrap();
    run(&mut connection, schema).await;
    connection
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// The findings, each as a line.
async fn found(connection: &mut PgConnection) -> Vec<String> {
    postgres::findings(connection).await.unwrap().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_foreign_key_that_no_index_begins_with_is_found() {
    let mut connection = database(
        "CREATE TABLE parents (a int, b int, PRIMARY KEY (a, b));
         CREATE TABLE children (x int, y int, z int, FOREIGN KEY (x, y) REFERENCES parents, CONSTRAINT \"z Key\"
             FOREIGN KEY (z, y) REFERENCES parents);
         CREATE INDEX ON children (y, x, z);
         CREATE INDEX ON children (y) INCLUDE (z);
         CREATE INDEX ON children (z, y) WHERE x > 5;",
    )
    .await;
    let findings = postgres::findings(&mut connection).await.unwrap();
    let keys: Vec<&Finding> =
        findings.iter().filter(|finding| matches!(finding, Finding::ForeignKeyWithoutIndex { .. })).collect();
    let wanted = Finding::ForeignKeyWithoutIndex {
        constraint: "\"z Key\"".into(),
        table: "children".into(),
        create: "CREATE INDEX CONCURRENTLY ON children (z, y)".into(),
    };
    assert_eq!(keys, [&wanted]);
}

#[tokio::test]
async fn an_index_that_another_makes_needless_is_found_and_a_unique_one_is_kept() {
    let mut connection = database(
        "CREATE TABLE things (id int PRIMARY KEY, a int, b text, c int);
         CREATE INDEX alike_1 ON things (a, b);
         CREATE INDEX alike_2 ON things (a, b);
         CREATE INDEX prefix ON things (a);
         CREATE INDEX same_as_key ON things (id);
         CREATE UNIQUE INDEX promise ON things (c);
         CREATE INDEX wider_than_promise ON things (c, a);
         CREATE INDEX descending ON things (b DESC, c);
         CREATE INDEX ascending ON things (b);
         CREATE INDEX pattern ON things (b text_pattern_ops);
         CREATE INDEX part ON things (a) WHERE c > 5;
         CREATE INDEX carries ON things (c) INCLUDE (b);",
    )
    .await;
    let mut needless: Vec<(String, String)> = Vec::new();
    for finding in postgres::findings(&mut connection).await.unwrap() {
        if let Finding::DuplicateIndex { index, covered_by, .. } = finding {
            needless.push((index, covered_by));
        }
    }
    let wanted = [("alike_2", "alike_1"), ("prefix", "alike_1"), ("same_as_key", "things_pkey")];
    assert_eq!(needless, wanted.map(|(index, by)| (index.to_owned(), by.to_owned())));
}

#[tokio::test]
async fn an_index_that_nobody_uses_is_found_once_its_table_is_read() {
    let mut connection = database(
        "CREATE TABLE things (id int PRIMARY KEY, a int, b int UNIQUE);
         INSERT INTO things SELECT n, n, n FROM generate_series(1, 1000) n; CREATE INDEX lonely ON things (a);
         CREATE TABLE quiet (a int); CREATE INDEX quiet_a ON quiet (a); ANALYZE;",
    )
    .await;
    run(&mut connection, "SELECT pg_stat_force_next_flush()").await;
    for _ in 0..5 {
        run(&mut connection, "SELECT count(*) FROM things").await;
    }
    run(&mut connection, "SELECT pg_stat_force_next_flush()").await;
    let lines = found(&mut connection).await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("lonely on things (40.0 kB) has not been used"), "{lines:?}");
}

#[tokio::test]
async fn a_large_table_that_is_read_from_end_to_end_is_found() {
    let mut connection = database(
        "CREATE TABLE logs (id int PRIMARY KEY, a int);
         INSERT INTO logs SELECT n, n FROM generate_series(1, 12000) n; ANALYZE;",
    )
    .await;
    for _ in 0..20 {
        run(&mut connection, "SELECT count(*) FROM logs WHERE a = 7").await;
    }
    run(&mut connection, "SELECT pg_stat_force_next_flush()").await;
    let lines = found(&mut connection).await;
    // The primary key's creation read it too.
    assert_eq!(lines, ["logs, 12000 rows, was read from end to end 21 times"]);
}

#[tokio::test]
async fn a_bloated_index_is_found() {
    let mut connection = database(
        "CREATE TABLE things (id int PRIMARY KEY, word text); ALTER TABLE things SET (autovacuum_enabled = off);
         INSERT INTO things SELECT n, md5(n::text) FROM generate_series(1, 300000) n;
         CREATE INDEX words ON things (word);
         DELETE FROM things WHERE id % 10 <> 0;",
    )
    .await;
    run(&mut connection, "VACUUM ANALYZE things").await;
    run(&mut connection, "SELECT id FROM things WHERE word = 'a'; SELECT pg_stat_force_next_flush()").await;
    let findings = postgres::findings(&mut connection).await.unwrap();
    let bloated =
        |finding: &&Finding| matches!(finding, Finding::BloatedIndex { index, .. } if index == "words");
    let Some(Finding::BloatedIndex { bytes, needed_bytes, .. }) = findings.iter().find(bloated) else {
        panic!("{findings:?}");
    };
    run(&mut connection, "REINDEX INDEX words").await;
    let real: i64 =
        sqlx::query_scalar("SELECT pg_relation_size('words')").fetch_one(&mut connection).await.unwrap();
    let off = *needed_bytes as f64 / real as f64;
    assert!((0.8..1.25).contains(&off), "{bytes} bytes, needs {needed_bytes}, really {real}");
    assert!(!found(&mut connection).await.iter().any(|line| line.contains("REINDEX")));
}

#[tokio::test]
async fn an_invalid_index_is_found() {
    let mut connection = database("CREATE TABLE things (a int); INSERT INTO things VALUES (1), (1);").await;
    let failed =
        sqlx::raw_sql("CREATE UNIQUE INDEX CONCURRENTLY broken ON things (a)").execute(&mut connection).await;
    assert!(failed.is_err());
    let wanted = "broken on things is invalid: it costs writes and serves nobody; drop it";
    assert_eq!(found(&mut connection).await, [wanted]);
}

#[tokio::test]
async fn a_role_without_rights_reads_the_catalog_too() {
    let mut connection = database("CREATE TABLE things (id int PRIMARY KEY, a int REFERENCES things);").await;
    run(
        &mut connection,
        "DROP ROLE IF EXISTS advisor_nobody; CREATE ROLE advisor_nobody; SET ROLE advisor_nobody",
    )
    .await;
    let lines = found(&mut connection).await;
    run(&mut connection, "RESET ROLE; DROP ROLE advisor_nobody").await;
    assert_eq!(lines.len(), 1, "{lines:?}");
}
