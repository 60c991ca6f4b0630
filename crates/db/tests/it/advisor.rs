//! The index advisor on PostgreSQL.

use greenwave_db::index_advisor::{
    Advice, AdvisorConfig, Error, Finding, Unit, Workload, WorkloadStatement, postgres,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// A shop's orders: 60,000 rows, of which 1 % are pending.
const ORDERS: &str = "
    CREATE TABLE customers (id int PRIMARY KEY, email text NOT NULL, name text NOT NULL);
    INSERT INTO customers SELECT n, 'Someone' || n || '@example.com', 'Name ' || n FROM generate_series(1, 20000) n;
    CREATE TABLE orders (id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, status text NOT NULL,
        total int NOT NULL, created_at timestamptz NOT NULL, note text, document jsonb NOT NULL, deleted_at timestamptz);
    INSERT INTO orders SELECT n, 1 + n * 7919 % 20000, CASE WHEN n % 100 = 0 THEN 'pending' ELSE 'done' END,
        n * 31 % 1000, now() - n * interval '1 minute', repeat('x', 100), jsonb_build_object('sku', n % 5000),
        CASE WHEN n % 50 = 0 THEN NULL ELSE now() END
        FROM generate_series(1, 60000) n;";

const BY_CUSTOMER: &str = "SELECT * FROM orders WHERE customer_id = $1";

async fn database(schema: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&greenwave_test_servers::postgres_database()).await.unwrap();
    run(&mut connection, schema).await;
    run(&mut connection, "VACUUM ANALYZE").await;
    connection
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// What the catalog says of relations and extensions.
async fn catalog(connection: &mut PgConnection) -> Vec<String> {
    let sql = "SELECT relname::text || relfilenode FROM pg_class UNION ALL SELECT extname::text FROM pg_extension ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(connection).await.unwrap()
}

fn statement(sql: &str, calls: f64) -> WorkloadStatement {
    WorkloadStatement { sql: sql.to_owned(), calls, mean_ms: None }
}

async fn advise(connection: &mut PgConnection, statements: &[&str], config: &AdvisorConfig) -> Advice {
    let statements = statements.iter().map(|sql| statement(sql, 100.0)).collect();
    postgres::advise(connection, &Workload { statements }, config).await.unwrap()
}

/// What follows `ON` in each advised index.
fn definitions(advice: &Advice) -> Vec<&str> {
    advice.indexes.iter().map(|index| index.create.split_once(" ON ").unwrap().1).collect()
}

#[tokio::test]
async fn each_shape_of_statement_gets_its_index() {
    let mut connection = database(ORDERS).await;
    let shapes: [(&str, &[&str]); 12] = [
        (BY_CUSTOMER, &["orders (customer_id)"]),
        (
            "SELECT * FROM orders WHERE status = 'pending' ORDER BY created_at LIMIT 10",
            &["orders (created_at) WHERE status = 'pending'"],
        ),
        ("SELECT * FROM customers WHERE lower(email) = lower($1)", &["customers ((lower(email)))"]),
        ("SELECT * FROM orders WHERE document @> $1", &["orders USING gin (document jsonb_path_ops)"]),
        ("SELECT * FROM orders WHERE document ->> 'sku' = $1", &["orders ((document ->> 'sku'))"]),
        (
            "SELECT * FROM orders WHERE deleted_at IS NULL AND customer_id = $1",
            &["orders (customer_id) WHERE deleted_at IS NULL"],
        ),
        ("SELECT max(total) FROM orders WHERE customer_id = 7", &["orders (customer_id, total)"]),
        ("UPDATE orders SET status = $2 WHERE customer_id = $1", &["orders (customer_id)"]),
        ("DELETE FROM orders WHERE created_at < $1 - interval '30 days'", &["orders (created_at)"]),
        (
            "WITH mine AS (SELECT * FROM orders o WHERE o.created_at > now() - interval '1 hour')
             SELECT m.id, c.name FROM mine m JOIN customers c ON c.id = m.customer_id",
            &["orders (created_at)"],
        ),
        (
            "SELECT 1 FROM orders WHERE total = 5 OR customer_id = 6",
            &["orders (customer_id)", "orders (total)"],
        ),
        ("SELECT * FROM orders WHERE id = $1", &[]),
    ];
    for (sql, wanted) in shapes {
        let advice = advise(&mut connection, &[sql], &AdvisorConfig::default()).await;
        assert_eq!(definitions(&advice), wanted, "{sql}: {:?}", advice.skipped);
    }
}

#[tokio::test]
async fn advice_changes_nothing_whether_verified_or_not() {
    let mut connection = database(ORDERS).await;
    let before = catalog(&mut connection).await;
    let statements = [
        BY_CUSTOMER,
        "DELETE FROM orders WHERE total = 5",
        "WITH gone AS (DELETE FROM orders WHERE total = 6 RETURNING id) SELECT count(*) FROM gone",
        "SELECT * FROM orders WHERE note = 'y' FOR UPDATE",
        "SELECT count(*) FROM orders WHERE document ->> 'sku' = '7'",
    ];
    for verify in [false, true] {
        let config = AdvisorConfig { verify, ..Default::default() };
        let advice = advise(&mut connection, &statements, &config).await;
        assert!(definitions(&advice).contains(&"orders (customer_id)"), "{advice}");
        assert_eq!(catalog(&mut connection).await, before);
        let rows: i64 =
            sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut connection).await.unwrap();
        assert_eq!(rows, 60_000);
        let plan = sqlx::query("EXPLAIN SELECT * FROM orders WHERE customer_id = 7")
            .fetch_one(&mut connection)
            .await;
        let plan: String = plan.unwrap().get(0);
        assert!(plan.starts_with("Seq Scan"), "hypothetical indexes are left: {plan}");
    }
}

#[tokio::test]
async fn verified_advice_tells_milliseconds_and_real_sizes() {
    let mut connection = database(ORDERS).await;
    let config = AdvisorConfig { verify: true, ..Default::default() };
    let advice = advise(&mut connection, &[BY_CUSTOMER], &config).await;
    let index = &advice.indexes[0];
    assert_eq!(index.effects[0].unit, Unit::Milliseconds);
    assert!(index.effects[0].after < 0.5 * index.effects[0].before, "{advice}");
    run(&mut connection, &index.create).await;
    let size = sqlx::query_scalar::<_, i64>("SELECT pg_relation_size($1::regclass)").bind(&index.name);
    assert_eq!(size.fetch_one(&mut connection).await.unwrap(), index.bytes as i64);
}

#[tokio::test]
async fn a_role_that_may_not_use_hypopg_gets_advice_by_statistics() {
    let mut connection = database(ORDERS).await;
    run(
        &mut connection,
        "CREATE ROLE advisor_reader; GRANT SELECT ON ALL TABLES IN SCHEMA public TO advisor_reader",
    )
    .await;
    run(&mut connection, "SET ROLE advisor_reader").await;
    let statements = [
        BY_CUSTOMER,
        "SELECT * FROM orders WHERE status = 'pending' ORDER BY created_at LIMIT 10",
        "SELECT * FROM orders WHERE id = 7",
    ];
    let advice = advise(&mut connection, &statements, &AdvisorConfig::default()).await;
    run(&mut connection, "RESET ROLE; DROP OWNED BY advisor_reader; DROP ROLE advisor_reader").await;
    let mut found = definitions(&advice);
    found.sort_unstable();
    assert_eq!(found, ["orders (created_at) WHERE status = 'pending'", "orders (customer_id)"]);
    assert_eq!(advice.indexes[0].effects[0].unit, Unit::Rows);
}

#[tokio::test]
async fn the_budget_and_the_number_of_indexes_are_kept() {
    let mut connection = database(ORDERS).await;
    let statements = [
        BY_CUSTOMER,
        "SELECT * FROM orders WHERE created_at > $1",
        "SELECT * FROM customers WHERE email = $1",
        "SELECT * FROM customers WHERE name = $1",
    ];
    let free = advise(&mut connection, &statements, &AdvisorConfig::default()).await;
    assert!(free.indexes.len() >= 3, "{free}");
    let two = AdvisorConfig { max_indexes: 2, ..Default::default() };
    assert_eq!(advise(&mut connection, &statements, &two).await.indexes.len(), 2);
    let small = AdvisorConfig { max_bytes: Some(1 << 20), verify: true, ..Default::default() };
    let advice = advise(&mut connection, &statements, &small).await;
    assert!((1..=1 << 20).contains(&advice.indexes.iter().map(|index| index.bytes).sum::<u64>()), "{advice}");
}

#[tokio::test]
async fn an_index_whose_upkeep_costs_more_than_it_saves_is_not_advised() {
    let mut connection = database(ORDERS).await;
    let insert = "INSERT INTO customers (id, email, name) VALUES ($1, $2, $3)";
    let read = "SELECT * FROM customers WHERE email = $1";
    let mut found = Vec::new();
    for inserts in [1.0, 1e7] {
        let workload = Workload { statements: vec![statement(insert, inserts), statement(read, 10.0)] };
        let advice = postgres::advise(&mut connection, &workload, &AdvisorConfig::default()).await.unwrap();
        found.push(advice.indexes.len());
    }
    assert_eq!(found, [1, 0]);
}

#[tokio::test]
async fn what_cannot_be_judged_is_skipped_with_a_reason() {
    let mut connection = database(ORDERS).await;
    let deep = format!("SELECT 1 FROM orders WHERE {}", vec!["id = 1"; 600].join(" OR "));
    let statements = [
        "SELEKT 1",
        "SELECT 1",
        "SELECT nothing FROM orders",
        "VACUUM orders",
        "",
        "SELECT 1; DROP TABLE orders",
        &deep,
    ];
    let advice = advise(&mut connection, &statements, &AdvisorConfig::default()).await;
    assert_eq!(advice.skipped.len(), statements.len(), "{advice}");
    assert!(
        advice.skipped.iter().any(|skipped| skipped.why == "column \"nothing\" does not exist"),
        "{advice}"
    );
    assert!(advice.indexes.is_empty());
}

#[tokio::test]
async fn the_workload_is_what_pg_stat_statements_has_counted_here() {
    let mut connection = database(ORDERS).await;
    let failed = Workload::from_pg_stat_statements(&mut connection, 10).await;
    assert!(matches!(failed, Err(Error::NoStatistics(_))), "{failed:?}");

    run(&mut connection, "CREATE EXTENSION pg_stat_statements").await;
    for id in 0..5 {
        sqlx::query("SELECT total FROM orders WHERE customer_id = $1")
            .bind(id)
            .fetch_all(&mut connection)
            .await
            .unwrap();
    }
    let workload = Workload::from_pg_stat_statements(&mut connection, 10).await.unwrap();
    let found =
        workload.statements.iter().find(|statement| statement.sql.contains("customer_id = $1")).unwrap();
    assert_eq!(found.calls, 5.0);
    assert!(found.mean_ms.unwrap() > 0.0);
    let ours =
        |statement: &WorkloadStatement| !statement.sql.contains("pg_") && !statement.sql.contains("CREATE");
    assert!(workload.statements.iter().all(ours), "{workload:?}");
    let advice = postgres::advise(&mut connection, &workload, &AdvisorConfig::default()).await.unwrap();
    assert!(definitions(&advice)[0].starts_with("orders (customer_id)"), "{advice}");
}

#[tokio::test]
async fn the_migration_runs_and_cures_the_foreign_key() {
    let mut connection = database(&format!(
        "{ORDERS} CREATE TABLE \"Odd names\" (id int, \"Big Key\" int, \"order\" int);
        INSERT INTO \"Odd names\" SELECT n, n, n FROM generate_series(1, 20000) n;"
    ))
    .await;
    let odd = "SELECT id FROM \"Odd names\" WHERE \"Big Key\" = $1 AND \"order\" = $2";
    let advice = advise(&mut connection, &[BY_CUSTOMER, odd], &AdvisorConfig::default()).await;
    let foreign = |finding: &Finding| matches!(finding, Finding::ForeignKeyWithoutIndex { .. });
    assert!(!advice.findings.iter().any(foreign), "{advice}");
    let migration = advice.migration();
    assert!(migration.starts_with("-- no-transaction\n"), "{migration}");
    for statement in
        migration.split(";\n").filter(|statement| statement.contains("CREATE INDEX CONCURRENTLY"))
    {
        let create = &statement
            [statement.find("CREATE INDEX CONCURRENTLY \"").or(statement.find("\nCREATE")).unwrap()..];
        run(&mut connection, create).await;
    }
    let again = advise(&mut connection, &[BY_CUSTOMER, odd], &AdvisorConfig::default()).await;
    assert!(again.indexes.is_empty(), "{again}");
    assert!(!again.findings.iter().any(foreign), "{again}");
}

#[tokio::test]
async fn a_table_that_stays_locked_is_an_error_and_leaves_the_connection_clean() {
    let url = greenwave_test_servers::postgres_database();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    run(&mut connection, ORDERS).await;
    let mut other = PgConnection::connect(&url).await.unwrap();
    run(&mut other, "BEGIN; LOCK TABLE orders IN ROW EXCLUSIVE MODE").await;
    let workload = Workload { statements: vec![statement(BY_CUSTOMER, 1.0)] };
    let config = AdvisorConfig { verify: true, ..Default::default() };
    let failed = postgres::advise(&mut connection, &workload, &config).await;
    assert!(matches!(failed, Err(Error::Locked { .. })), "{failed:?}");
    run(&mut other, "ROLLBACK").await;
    let advice = postgres::advise(&mut connection, &workload, &config).await.unwrap();
    assert_eq!(definitions(&advice), ["orders (customer_id)"]);
}

#[tokio::test]
async fn others_can_lock_a_table_while_the_advisor_thinks() {
    let url = greenwave_test_servers::postgres_database();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    run(&mut connection, ORDERS).await;
    run(&mut connection, "VACUUM ANALYZE").await;
    let mut other = PgConnection::connect(&url).await.unwrap();
    run(&mut other, "SET lock_timeout = '1s'").await;
    let text = |n| format!("SELECT * FROM orders WHERE customer_id = $1 AND total > $2 AND id <> {n}");
    let statements = (0..150).map(|n| statement(&text(n), 1.0)).collect();
    let workload = Workload { statements };
    let config = AdvisorConfig::default();
    let advising = postgres::advise(&mut connection, &workload, &config);
    tokio::pin!(advising);
    let mut alters = 0;
    let advice = loop {
        let alter = async {
            run(
                &mut other,
                "ALTER TABLE orders ALTER note SET NOT NULL; ALTER TABLE orders ALTER note DROP NOT NULL",
            )
            .await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        tokio::pin!(alter);
        tokio::select! {
            advice = &mut advising => break advice,
            () = &mut alter => alters += 1,
        }
    };
    assert!(!advice.unwrap().indexes.is_empty());
    assert!(alters > 3, "the advisor was too quick for {alters} changes of the table to tell anything");
}

#[tokio::test]
async fn a_statement_that_fails_when_executed_hides_no_other_advice() {
    let mut connection = database(ORDERS).await;
    run(&mut connection, "CREATE TABLE \"it's\" (id int, k int); INSERT INTO \"it's\" SELECT n, n FROM generate_series(1, 20000) n; ANALYZE")
        .await;
    let statements = [
        "SELECT total / (id - id) FROM orders WHERE total = 5",
        "SELECT id FROM \"it's\" WHERE k = 7",
        BY_CUSTOMER,
    ];
    let config = AdvisorConfig { verify: true, ..Default::default() };
    let advice = advise(&mut connection, &statements, &config).await;
    let by_customer = advice.indexes.iter().find(|index| index.create.contains("(customer_id)"));
    assert!(by_customer.is_some_and(|index| index.effects[0].unit == Unit::Milliseconds), "{advice}");
    assert!(advice.indexes.iter().any(|index| index.create.contains("(total)")), "{advice}");
    let effects = advice.indexes.iter().flat_map(|index| &index.effects);
    assert!(effects.clone().all(|effect| effect.before < 10_000.0), "{advice}");
}

#[tokio::test]
async fn functions_of_the_workload_are_not_called() {
    let mut connection = database(&format!(
        "{ORDERS} CREATE SEQUENCE calls;
        CREATE FUNCTION \"logAccess\"(n int) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT nextval(''calls'') + n';"
    ))
    .await;
    let statements = [
        "SELECT * FROM orders WHERE \"logAccess\"(id) = $1",
        "SELECT id, \"logAccess\"(id) FROM orders WHERE total = 5",
        "SELECT o.id FROM orders o, LATERAL \"logAccess\"(o.id) WHERE o.total = 5",
        "SELECT o.id FROM orders o JOIN \"logAccess\"(7) l ON true WHERE o.total = 5",
        "SELECT id FROM orders WHERE total = 5 LIMIT \"logAccess\"(3)",
        "SELECT * FROM (SELECT id FROM orders WHERE note = 'y' FOR UPDATE) mine",
        BY_CUSTOMER,
    ];
    for verify in [false, true] {
        let config = AdvisorConfig { verify, ..Default::default() };
        let advice = advise(&mut connection, &statements, &config).await;
        assert!(definitions(&advice).iter().any(|body| body.starts_with("orders (customer_id")), "{advice}");
        let called: bool =
            sqlx::query_scalar("SELECT is_called FROM calls").fetch_one(&mut connection).await.unwrap();
        assert!(!called, "verify: {verify}");
    }
}

#[tokio::test]
async fn what_the_server_refuses_or_has_already_is_not_advised() {
    let mut connection = database(&format!(
        "{ORDERS} CREATE INDEX ON customers (lower(email)); CREATE INDEX ON orders USING gin (document jsonb_path_ops);
        CREATE INDEX ON orders (created_at) WHERE status = 'pending';
        CREATE ROLE advisor_without_hypopg; GRANT SELECT ON ALL TABLES IN SCHEMA public TO advisor_without_hypopg"
    ))
    .await;
    let statements = [
        "SELECT * FROM customers WHERE lower(email) = lower($1)",
        "SELECT * FROM orders WHERE document @> $1",
        "SELECT * FROM orders WHERE status = 'pending' ORDER BY created_at LIMIT 10",
        "SELECT * FROM orders WHERE date_trunc('day', created_at) = $1",
        "SELECT * FROM orders WHERE to_tsvector(note) @@ to_tsquery('y')",
    ];
    run(&mut connection, "SET ROLE advisor_without_hypopg").await;
    let advice = advise(&mut connection, &statements, &AdvisorConfig::default()).await;
    run(
        &mut connection,
        "RESET ROLE; DROP OWNED BY advisor_without_hypopg; DROP ROLE advisor_without_hypopg",
    )
    .await;
    let bodies = definitions(&advice);
    let wrong = ["lower", "gin", "WHERE status = 'pending'", "date_trunc", "to_tsvector"];
    assert!(!bodies.iter().any(|body| wrong.iter().any(|word| body.contains(word))), "{advice}");
}
