//! The index advisor on PostgreSQL.

use greenwave_db::index_advisor::{Advice, AdvisorConfig, Workload, WorkloadStatement, postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

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

async fn database(schema: &str) -> PgConnection {
    let mut connection = PgConnection::connect(&greenwave_test_servers::postgres_database()).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(schema.to_owned())).execute(&mut connection).await.unwrap();
    sqlx::raw_sql("VACUUM ANALYZE").execute(&mut connection).await.unwrap();
    connection
}

fn workload(statements: &[&str]) -> Workload {
    let statement = |sql: &&str| WorkloadStatement { sql: (*sql).to_owned(), calls: 100.0, mean_ms: None };
    Workload { statements: statements.iter().map(statement).collect() }
}

async fn advise(connection: &mut PgConnection, statements: &[&str]) -> Advice {
    postgres::advise(connection, &workload(statements), &AdvisorConfig::default()).await.unwrap()
}

/// What follows `ON` in each advised index.
fn definitions(advice: &Advice) -> Vec<&str> {
    advice.indexes.iter().map(|index| index.create.split_once(" ON ").unwrap().1).collect()
}

#[tokio::test]
async fn each_shape_of_statement_gets_its_index() {
    let mut connection = database(ORDERS).await;
    let shapes = [
        ("SELECT * FROM orders WHERE customer_id = $1", "orders (customer_id)"),
        (
            "SELECT * FROM orders WHERE customer_id = $1 ORDER BY created_at DESC LIMIT $2",
            "orders (customer_id, created_at)",
        ),
        (
            "SELECT * FROM orders WHERE status = 'pending' ORDER BY created_at LIMIT 10",
            "orders (created_at) WHERE status = 'pending'",
        ),
        (
            "SELECT * FROM orders WHERE (created_at, id) < ($1, $2) ORDER BY created_at DESC, id DESC LIMIT 20",
            "orders (created_at, id)",
        ),
        ("SELECT * FROM customers WHERE lower(email) = lower($1)", "customers ((lower(email)))"),
        ("SELECT * FROM customers WHERE email LIKE 'Someone123%'", "customers (email text_pattern_ops)"),
        ("SELECT * FROM orders WHERE document @> $1", "orders USING gin (document jsonb_path_ops)"),
        ("SELECT * FROM orders WHERE document ->> 'sku' = $1", "orders ((document ->> 'sku'))"),
        ("SELECT * FROM orders WHERE deleted_at IS NULL AND customer_id = $1", "orders (customer_id)"),
        ("SELECT max(total) FROM orders WHERE customer_id = 7", "orders (customer_id, total)"),
        ("UPDATE orders SET status = 'done' WHERE customer_id = $1 AND status = $2", "orders (customer_id)"),
        ("SELECT count(*) FROM orders WHERE created_at > now() - interval '1 hour'", "orders (created_at)"),
        (
            "SELECT o.id FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.email = $1",
            "orders (customer_id)",
        ),
        ("SELECT 1 FROM orders WHERE total = 5 OR customer_id = 6", "orders (total)"),
    ];
    for (sql, wanted) in shapes {
        let advice = advise(&mut connection, &[sql]).await;
        println!("{sql}\n   want {wanted}\n   have {:?} {:?}", definitions(&advice), advice.skipped);
        for index in &advice.indexes {
            println!(
                "        {} {:?}",
                index.bytes,
                index.effects.iter().map(|e| (e.before, e.after)).collect::<Vec<_>>()
            );
        }
    }
    panic!();
}
