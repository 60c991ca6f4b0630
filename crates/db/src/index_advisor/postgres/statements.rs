//! The workload that PostgreSQL itself has counted.

use sqlx::{PgConnection, Row};

use super::session::{code, database};
use crate::index_advisor::{Error, Workload, WorkloadStatement};

const READING: &str = "read pg_stat_statements";

/// Only whole statements: one that is cut cannot be understood. Those of other roles have no text for us.
const STATEMENTS: &str = "
    SELECT s.query, sum(s.calls)::float8, (sum(s.total_exec_time) / sum(s.calls))::float8
    FROM {schema}.pg_stat_statements s
    WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND s.query ~* '^[\\s(]*(select|insert|update|delete|with|merge|/\\*|--)'
      AND s.query !~* '\\m(pg_catalog|information_schema|pg_stat_[a-z_]+|pg_class|pg_index|hypopg[a-z_]*|pg_attribute|pg_stats|pg_settings|pg_extension|pg_database)\\M'
      AND s.query !~* '^\\s*explain\\M'
    GROUP BY s.query HAVING sum(s.calls) > 0
    ORDER BY sum(s.total_exec_time) DESC LIMIT $1";

impl Workload {
    /// The `limit` statements of this database that took most time together, as `pg_stat_statements` has counted them
    /// since its last reset. Statements about the catalog are left out, and so are commands other than queries and
    /// changes of rows.
    ///
    /// # Errors
    ///
    /// [`Error::NoStatistics`] where the extension is not there, or not loaded.
    pub async fn from_pg_stat_statements(connection: &mut PgConnection, limit: u32) -> Result<Self, Error> {
        let schema = "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
                      WHERE e.extname = 'pg_stat_statements'";
        let row = sqlx::query(schema).persistent(false).fetch_optional(&mut *connection).await;
        let row = row.map_err(|error| database(READING, error))?.ok_or(Error::NoStatistics(None))?;
        let schema: String = row.try_get(0).map_err(|error| database(READING, error))?;
        let sql = sqlx::AssertSqlSafe(STATEMENTS.replace("{schema}", &schema));
        let rows = sqlx::query(sql).persistent(false).bind(i64::from(limit)).fetch_all(connection).await;
        let rows = rows.map_err(|error| match code(&error).as_deref() {
            // It is installed here, but the server was started without it.
            Some("55000") => Error::NoStatistics(Some(Box::new(error))),
            _ => database(READING, error),
        })?;
        let statement = |row: &sqlx::postgres::PgRow| {
            Ok(WorkloadStatement {
                sql: row.try_get(0)?,
                calls: row.try_get(1)?,
                mean_ms: Some(row.try_get(2)?),
            })
        };
        let statements = rows.iter().map(statement).collect::<Result<Vec<_>, sqlx::Error>>();
        Ok(Self { statements: statements.map_err(|error| database(READING, error))? })
    }
}
