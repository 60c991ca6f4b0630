use greenwave_db::postgres::{Pool, Transaction};
use sqlx::PgConnection;

use super::{NO_ORDER_INDEX, ORDER_INDEX};
use crate::{Error, store::WAITING};

/// Whoever migrates or seeds a shop holds this advisory lock: "shop" in ASCII.
const LOCK: i64 = 0x7368_6f70;

const MIGRATIONS: &[(i32, &str)] = &[(1, include_str!("../../../migrations/postgres/0001_tables.sql"))];
const KEYS: &str = include_str!("../../../migrations/postgres/keys.sql");
const STATISTICS: &str = include_str!("../../../migrations/postgres/statistics.sql");

/// Creates what is missing, in one transaction under a lock; a database that is up to date is only looked at.
pub(super) async fn run(pool: &Pool, naive: bool) -> Result<(), Error> {
    let mut tx = begin(pool).await?;
    lock(&mut tx).await?;
    tables(&mut tx).await?;
    finish(&mut tx).await?;
    if naive {
        sqlx::raw_sql(NO_ORDER_INDEX).execute(&mut *tx).await?;
    } else {
        order_index(&mut tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Begins a transaction for what takes its time: it may run as long as it must, but waits no longer than a minute for
/// others.
pub(super) async fn begin(pool: &Pool) -> sqlx::Result<Transaction> {
    let mut tx = pool.begin().await?;
    // "Already exists, skipping" is what is hoped for.
    sqlx::raw_sql(
        "SET LOCAL client_min_messages = warning; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'",
    )
    .execute(&mut *tx)
    .await?;
    Ok(tx)
}

/// Runs this statement in such a transaction of its own.
pub(super) async fn alone(pool: &Pool, statement: &'static str) -> Result<(), Error> {
    let mut tx = begin(pool).await?;
    sqlx::raw_sql(statement).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Waits until nobody else migrates or seeds; ends with the transaction.
pub(super) async fn lock(conn: &mut PgConnection) -> sqlx::Result<()> {
    let free: bool =
        sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(LOCK).fetch_one(&mut *conn).await?;
    if free {
        return Ok(());
    }
    tracing::info!("{WAITING}");
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(conn).await?;
    Ok(())
}

async fn tables(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS shop_migrations (
           version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())",
    )
    .execute(&mut *conn)
    .await?;
    let version: i32 = sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM shop_migrations")
        .fetch_one(&mut *conn)
        .await?;
    for &(number, sql) in MIGRATIONS.iter().filter(|&&(number, _)| number > version) {
        sqlx::raw_sql(sql).execute(&mut *conn).await?;
        sqlx::query("INSERT INTO shop_migrations (version) VALUES ($1)")
            .bind(number)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// Adds keys and statistics where they are missing.
pub(super) async fn finish(conn: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::raw_sql(KEYS).execute(&mut *conn).await?;
    sqlx::raw_sql(STATISTICS).execute(&mut *conn).await?;
    Ok(())
}

pub(super) async fn order_index(conn: &mut PgConnection) -> sqlx::Result<()> {
    // Looked for first: `IF NOT EXISTS` alone would wait for all who write to the table.
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('orders_customer_status_created') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await?;
    if !exists {
        sqlx::raw_sql(ORDER_INDEX).execute(&mut *conn).await?;
    }
    Ok(())
}
