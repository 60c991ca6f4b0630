//! Asks the database itself, on either kind.

use std::{collections::BTreeMap, path::PathBuf};

use sqlx::{Connection, PgConnection, Row};

/// A shop's database.
#[derive(Clone)]
pub(crate) enum Truth {
    Sqlite(PathBuf),
    Postgres(String),
}

impl Truth {
    /// The rows of a statement with two integer columns, as a map from the first to the second.
    pub(crate) async fn map(&self, sql: &'static str) -> BTreeMap<i64, i64> {
        match self {
            Truth::Sqlite(path) => {
                let connection = rusqlite::Connection::open(path).unwrap();
                connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
                let mut statement = connection.prepare(sql).unwrap();
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
                rows.map(Result::unwrap).collect()
            }
            Truth::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
                rows.iter().map(|row| (row.get(0), row.get(1))).collect()
            }
        }
    }

    /// What is in stock, by product.
    pub(crate) async fn stock(&self) -> BTreeMap<i64, i64> {
        self.map("SELECT id, CAST(stock AS bigint) FROM products").await
    }

    /// What was sold in all orders after this one, by product.
    pub(crate) async fn sold_after(&self, order: i64) -> BTreeMap<i64, i64> {
        let items = "SELECT order_id * 1000000 + product_id, CAST(quantity AS bigint) FROM order_items";
        let mut sold = BTreeMap::new();
        for (key, quantity) in self.map(items).await {
            if key / 1_000_000 > order {
                *sold.entry(key % 1_000_000).or_default() += quantity;
            }
        }
        sold
    }

    /// How many notifications each order has.
    pub(crate) async fn notifications(&self) -> BTreeMap<i64, i64> {
        self.map("SELECT order_id, count(*) FROM notifications GROUP BY order_id").await
    }

    /// All orders.
    pub(crate) async fn orders(&self) -> BTreeMap<i64, i64> {
        self.map("SELECT id, customer_id FROM orders").await
    }
}
