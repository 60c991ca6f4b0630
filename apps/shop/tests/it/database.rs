//! What the database itself says, in the shapes of the API.

use std::{path::PathBuf, time::Duration};

use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;
use sqlx::PgPool;

#[derive(Clone)]
pub(crate) enum Database {
    Postgres(PgPool),
    Sqlite(PathBuf),
}

const PG_TIME: &str = r#"to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"#;

fn pg_order() -> String {
    let created_at = PG_TIME.replace("created_at", "o.created_at");
    format!(
        "json_build_object('id', o.id, 'status', o.status, 'total_cents', o.total_cents,
           'created_at', {created_at}, 'customer', json_build_object('id', u.id, 'name', u.name, 'email', u.email),
           'items', (SELECT json_agg(json_build_object('product_id', i.product_id, 'quantity', i.quantity,
              'price_cents', i.price_cents) ORDER BY i.product_id) FROM order_items i WHERE i.order_id = o.id))"
    )
}

const SQLITE_ORDER: &str = "
    json_object('id', o.id, 'status', o.status, 'total_cents', o.total_cents, 'created_at', o.created_at,
      'customer', json_object('id', u.id, 'name', u.name, 'email', u.email),
      'items', (SELECT json_group_array(json_object('product_id', i.product_id, 'quantity', i.quantity,
         'price_cents', i.price_cents) ORDER BY i.product_id) FROM order_items i WHERE i.order_id = o.id))";

impl Database {
    /// The one value of a query, in the dialect of the database at hand.
    async fn json(&self, postgres: &str, sqlite: &str) -> Option<Value> {
        match self {
            Database::Postgres(pool) => {
                let sql = sqlx::AssertSqlSafe(postgres.to_owned());
                sqlx::query_scalar(sql).fetch_optional(pool).await.unwrap().flatten()
            }
            Database::Sqlite(path) => {
                let text: Option<String> =
                    connect(path).query_row(sqlite, (), |row| row.get(0)).optional().unwrap();
                text.map(|text| serde_json::from_str(&text).unwrap())
            }
        }
    }

    pub(crate) async fn user(&self, id: i64) -> Value {
        let postgres = format!(
            "SELECT json_build_object('id', id, 'name', name, 'email', email, 'created_at', {PG_TIME})
             FROM users WHERE id = {id}"
        );
        let sqlite = format!(
            "SELECT json_object('id', id, 'name', name, 'email', email, 'created_at', created_at)
             FROM users WHERE id = {id}"
        );
        self.json(&postgres, &sqlite).await.unwrap()
    }

    pub(crate) async fn product(&self, id: i64) -> Value {
        let sql = |object: &str| {
            format!(
                "SELECT {object}('id', id, 'name', name, 'price_cents', price_cents, 'stock', stock)
                 FROM products WHERE id = {id}"
            )
        };
        self.json(&sql("json_build_object"), &sql("json_object")).await.unwrap()
    }

    pub(crate) async fn order(&self, id: i64) -> Value {
        let sql = |order: &str| {
            format!("SELECT {order} FROM orders o JOIN users u ON u.id = o.customer_id WHERE o.id = {id}")
        };
        self.json(&sql(&pg_order()), &sql(SQLITE_ORDER)).await.unwrap()
    }

    pub(crate) async fn orders(&self, customer: i64, status: Option<&str>) -> Value {
        let status = status.map(|status| format!(" AND status = '{status}'")).unwrap_or_default();
        let newest = format!(
            "(SELECT * FROM orders WHERE customer_id = {customer}{status}
              ORDER BY created_at DESC, id DESC LIMIT 20) o JOIN users u ON u.id = o.customer_id"
        );
        let postgres = format!(
            "SELECT coalesce(json_agg({} ORDER BY o.created_at DESC, o.id DESC), '[]') FROM {newest}",
            pg_order()
        );
        let sqlite = format!(
            "SELECT json_group_array(json({SQLITE_ORDER}) ORDER BY o.created_at DESC, o.id DESC) FROM {newest}"
        );
        self.json(&postgres, &sqlite).await.unwrap()
    }

    /// A number; the SQL is the same for both.
    pub(crate) async fn int(&self, sql: &str) -> i64 {
        match self {
            Database::Postgres(pool) => {
                let sql = sqlx::AssertSqlSafe(format!("SELECT ({sql})::bigint"));
                sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
            }
            Database::Sqlite(path) => connect(path).query_one(sql, (), |row| row.get(0)).unwrap(),
        }
    }

    pub(crate) async fn text(&self, sql: &str) -> String {
        match self {
            Database::Postgres(pool) => {
                sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.unwrap()
            }
            Database::Sqlite(path) => connect(path).query_one(sql, (), |row| row.get(0)).unwrap(),
        }
    }

    pub(crate) async fn stock(&self, product: i64) -> i64 {
        self.int(&format!("SELECT stock FROM products WHERE id = {product}")).await
    }

    pub(crate) async fn execute(&self, sql: &str) {
        match self {
            Database::Postgres(pool) => {
                let sql = sqlx::AssertSqlSafe(sql.to_owned());
                sqlx::raw_sql(sql).execute(pool).await.unwrap();
            }
            Database::Sqlite(path) => connect(path).execute_batch(sql).unwrap(),
        }
    }
}

fn connect(path: &PathBuf) -> Connection {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(10)).unwrap();
    db
}
