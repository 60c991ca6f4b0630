//! The plan of a slow statement, for the log.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, SqlSafeStr, SqlStr};
use tokio::time::timeout;

use super::Pool;
use crate::{
    query_stats::{Dialect, Series, Shape},
    telemetry,
};

/// The longest that planning may take.
const DEADLINE: Duration = Duration::from_secs(1);
/// The server's own limit comes first, so that the connection stays whole.
const BEGIN: &str =
    "BEGIN READ ONLY; SET LOCAL statement_timeout = 500; SET LOCAL plan_cache_mode = force_generic_plan";
const DEALLOCATE: &str = "DEALLOCATE greenwave_explain";
const PARAMETERS: &str =
    "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'greenwave_explain'";

impl Pool {
    /// Logs the plan of a slow statement, if that is asked for and due, and a connection is free. It is the generic
    /// plan, which needs no value and shows none.
    pub(super) fn explain(&self, series: &Arc<Series>, sql: &SqlStr) {
        if self.inner.num_idle() == 0 || !self.stats.wants_plan(series) {
            return;
        }
        let (pool, series, sql) = (self.clone(), Arc::clone(series), sql.clone());
        self.inner.spawn(async move {
            let plan = async {
                let mut connection = pool.acquire().await?;
                // One that was given up half-way may have left its statement; prepared ones outlive transactions.
                let _ = connection.execute(DEALLOCATE).await;
                let plan = plan(&mut connection, sql.as_str()).await;
                connection.execute("ROLLBACK").await?;
                let _ = connection.execute(DEALLOCATE).await;
                plan
            };
            match timeout(DEADLINE, plan).await {
                Ok(Ok(plan)) => {
                    let log_values = pool.stats.config().log_values;
                    let shown = if log_values { plan } else { redacted(&plan) };
                    telemetry::slow_query_plan(if log_values { sql.as_str() } else { series.text() }, &shown);
                }
                Ok(Err(error)) => tracing::debug!(%error, "a slow statement could not be explained"),
                Err(_) => tracing::debug!("a slow statement could not be explained in time"),
            }
        });
    }
}

async fn plan(connection: &mut PgConnection, sql: &str) -> Result<String, sqlx::Error> {
    let raw = |sql: String| AssertSqlSafe(sql).into_sql_str();
    connection.execute(BEGIN).await?;
    // Not as raw SQL, so that the server refuses what is more than one statement.
    let prepare = sqlx::query(raw(format!("PREPARE greenwave_explain AS {sql}"))).persistent(false);
    connection.execute(prepare).await?;
    let parameters: i32 =
        connection.fetch_one(sqlx::query(PARAMETERS).persistent(false)).await?.try_get(0)?;
    let nulls = vec!["NULL"; usize::try_from(parameters).unwrap_or(0)].join(", ");
    let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    let explain = raw(format!("EXPLAIN EXECUTE greenwave_explain{arguments}"));
    let rows = connection.fetch_all(sqlx::raw_sql(explain)).await?;
    let lines = rows.iter().map(|row| row.try_get::<String, _>(0));
    Ok(lines.collect::<Result<Vec<String>, _>>()?.join("\n"))
}

/// Without the literals of the statement, which conditions show.
fn redacted(plan: &str) -> String {
    let lines = plan.lines().map(|line| match line.split_once(": ") {
        Some((name, condition)) => format!("{name}: {}", Shape::of(condition, Dialect::Postgres).text),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_shows_costs_and_no_literals() {
        let plan = "Seq Scan on users  (cost=0.00..25.88 rows=6 width=36)\n  Filter: (name = 'Ada: x'::text)";
        assert_eq!(
            redacted(plan),
            "Seq Scan on users  (cost=0.00..25.88 rows=6 width=36)\n  Filter: (name = $1::text)"
        );
    }
}
