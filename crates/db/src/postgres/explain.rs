//! The plan of a slow statement, for the log.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row, SqlSafeStr, SqlStr};
use tokio::time::timeout;

use super::Pool;
use crate::{
    query_stats::{Dialect, Series, Shape},
    telemetry,
};

/// The longest that it may take, the wait for a connection included.
const DEADLINE: Duration = Duration::from_secs(5);
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
                Ok(Err(error)) => match error.as_database_error() {
                    // Not its message, which may quote a literal.
                    Some(error) => {
                        let code = error.code();
                        tracing::debug!(code = code.as_deref(), "a slow statement could not be explained");
                    }
                    None => tracing::debug!(%error, "a slow statement could not be explained"),
                },
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
    let mut shown = Vec::new();
    let mut rest = plan;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let Some((name, _)) = line.split_once(": ") else {
            shown.push(line.to_owned());
            rest = after;
            continue;
        };
        // A literal may hold line breaks: its condition ends where a line does outside of quotes.
        let (whole, after) = rest.split_at(unquoted_line(rest));
        let condition = whole.get(name.len() + 2..).unwrap_or_default();
        shown.push(format!("{name}: {}", Shape::of(condition, Dialect::Postgres).text));
        rest = after.strip_prefix('\n').unwrap_or(after);
    }
    shown.join("\n")
}

/// Where the first line break stands that is in no quotes; or the end. PostgreSQL doubles what it quotes: backslashes
/// escape no quote here.
fn unquoted_line(text: &str) -> usize {
    let mut open = None;
    let end = text.bytes().position(|byte| {
        match (open, byte) {
            (None, b'\'' | b'"') => open = Some(byte),
            (Some(quote), _) if quote == byte => open = None,
            _ => {}
        }
        byte == b'\n' && open.is_none()
    });
    end.unwrap_or(text.len())
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

    #[test]
    fn a_literal_of_several_lines_does_not_show_either() {
        let plan =
            "Seq Scan on users\n  Filter: (name = 'a''\nsecret: x\n\\'::text)\n  Rows: 'b'\n  ->  Result";
        assert_eq!(
            redacted(plan),
            "Seq Scan on users\n  Filter: (name = $1::text)\n  Rows: $1\n  ->  Result"
        );
        assert_eq!(redacted("  Filter: (name = 'never\nclosed"), "  Filter: (name = $1");
    }
}
