//! The tables of TPC-H in PostgreSQL, filled by `tpchgen`.

use std::fmt::Display;

use sqlx::{Connection, PgConnection};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

const TABLES: &str = include_str!("tables.sql");
const KEYS: &str = include_str!("keys.sql");

/// An index on every foreign key that its table's primary key does not lead with.
pub(crate) const FOREIGN_KEY_INDEXES: &str = "
    CREATE INDEX nation_region ON nation (n_regionkey);
    CREATE INDEX supplier_nation ON supplier (s_nationkey);
    CREATE INDEX customer_nation ON customer (c_nationkey);
    CREATE INDEX partsupp_supplier ON partsupp (ps_suppkey);
    CREATE INDEX orders_customer ON orders (o_custkey);
    CREATE INDEX lineitem_partsupp ON lineitem (l_partkey, l_suppkey);
    CREATE INDEX lineitem_supplier ON lineitem (l_suppkey)";

/// Creates and fills the tables, with primary and foreign keys.
pub(crate) async fn load(url: &str, scale: f64) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(TABLES).execute(&mut connection).await.unwrap();
    copy(&mut connection, "region", RegionGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "nation", NationGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "part", PartGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "supplier", SupplierGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "partsupp", PartSuppGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "customer", CustomerGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "orders", OrderGenerator::new(scale, 1, 1).iter()).await;
    copy(&mut connection, "lineitem", LineItemGenerator::new(scale, 1, 1).iter()).await;
    sqlx::raw_sql(KEYS).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn copy(connection: &mut PgConnection, table: &str, rows: impl Iterator<Item = impl Display>) {
    const PIECE: usize = 1 << 20;
    let into = format!("COPY {table} FROM STDIN (DELIMITER '|')");
    let mut copy = connection.copy_in_raw(&into).await.unwrap();
    let mut piece = String::with_capacity(PIECE + 1024);
    for row in rows {
        let row = row.to_string();
        // The format ends each line with a delimiter, which COPY takes for one more column.
        piece.push_str(row.trim_end_matches('\n').strip_suffix('|').unwrap());
        piece.push('\n');
        if piece.len() >= PIECE {
            copy.send(piece.as_bytes()).await.unwrap();
            piece.clear();
        }
    }
    copy.send(piece.as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
}
