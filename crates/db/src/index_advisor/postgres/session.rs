//! The transaction in which the advisor looks, and which is always rolled back.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, Transaction, postgres::PgRow};

use crate::index_advisor::Error;

/// Others are never made to wait behind the advisor for longer than it waits itself, nor behind one that is gone.
const LIMITS: &str = "SET LOCAL lock_timeout = '3s'; SET LOCAL idle_in_transaction_session_timeout = '60s'; \
     SET LOCAL statement_timeout = '30s'; SET LOCAL client_min_messages = warning";
/// A server that executes a statement notices in no other way that its client is gone. Not every one has it.
const CHECK_CLIENT: &str = "SET LOCAL client_connection_check_interval = '2s'";
const MARK: &str = "SAVEPOINT greenwave_advisor";
const PLANNING_MS: f64 = 30_000.0;
const BACK: &str = "ROLLBACK TO SAVEPOINT greenwave_advisor";
const MARK_AGAIN: &str = "RELEASE SAVEPOINT greenwave_advisor; SAVEPOINT greenwave_advisor";
/// What runs cannot write: the server refuses it.
const READ_ONLY: &str =
    "SAVEPOINT greenwave_run; SET LOCAL transaction_read_only = on; SET LOCAL statement_timeout = ";

/// The SQLSTATEs that a caller can do something about.
const DENIED: &str = "42501";
pub(super) const LOCKED: &str = "55P03";
pub(super) const TIMED_OUT: &str = "57014";

/// These are volatile, and yet change nothing.
const HARMLESS: [&str; 4] = ["random", "clock_timestamp", "gen_random_uuid", "timeofday"];
/// These are written like functions, and are none.
const SYNTAX: [&str; 17] = [
    "coalesce",
    "nullif",
    "greatest",
    "least",
    "row",
    "grouping",
    "array",
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
];

pub(super) struct Session<'c> {
    transaction: Transaction<'c, Postgres>,
}

impl<'c> Session<'c> {
    pub(super) async fn begin(connection: &'c mut PgConnection) -> Result<Self, Error> {
        let doing = "begin a transaction";
        let transaction = connection.begin().await.map_err(|error| database(doing, error))?;
        let mut session = Self { transaction };
        session.command(doing, LIMITS).await?;
        session.remark().await?;
        match session.keep(CHECK_CLIENT.to_owned()).await {
            Ok(()) | Err(sqlx::Error::Database(_)) => Ok(session),
            Err(error) => Err(database(doing, error)),
        }
    }

    /// What fails from here on undoes nothing that was done before.
    pub(super) async fn mark(&mut self) -> Result<(), Error> {
        self.command("set a savepoint", MARK_AGAIN).await
    }

    /// The same, where the last mark is gone, or is to stay.
    pub(super) async fn remark(&mut self) -> Result<(), Error> {
        self.command("set a savepoint", MARK).await
    }

    /// Runs commands of our own.
    pub(super) async fn command(&mut self, doing: &'static str, sql: impl Into<String>) -> Result<(), Error> {
        let result = sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(&mut *self.transaction).await;
        result.map(|_| ()).map_err(|error| database(doing, error))
    }

    /// The rows of a query of our own about these oids.
    pub(super) async fn about(
        &mut self,
        doing: &'static str,
        sql: &'static str,
        oids: &[i64],
    ) -> Result<Vec<PgRow>, Error> {
        let query = sqlx::query(sql).persistent(false);
        let query = if sql.contains("$1") { query.bind(oids) } else { query };
        let rows = query.fetch_all(&mut *self.transaction).await.map_err(|error| database(doing, error))?;
        self.command(doing, BACK).await?;
        Ok(rows)
    }

    /// The rows of one statement that may fail, without harm to the transaction. Nothing of it stays, not even its
    /// locks: others would wait for them until the advisor has ended.
    pub(super) async fn attempt(&mut self, sql: String) -> Result<Vec<PgRow>, sqlx::Error> {
        // The extended protocol takes one statement at a time: what is hidden in a workload cannot end the transaction.
        let result =
            sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *self.transaction).await;
        sqlx::raw_sql(BACK).execute(&mut *self.transaction).await?;
        result
    }

    /// Executes one statement that may fail, without harm to the transaction, and keeps what it did.
    pub(super) async fn keep(&mut self, sql: String) -> Result<(), sqlx::Error> {
        let result = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut *self.transaction).await;
        let next = if result.is_ok() { MARK_AGAIN } else { BACK };
        sqlx::raw_sql(next).execute(&mut *self.transaction).await?;
        result.map(|_| ())
    }

    /// The rows of one statement that cannot write, and may take so many milliseconds.
    pub(super) async fn read(&mut self, sql: String, max_ms: f64) -> Result<Vec<PgRow>, sqlx::Error> {
        let timeout = max_ms.clamp(1.0, f64::from(i32::MAX)) as i32;
        let prepare = AssertSqlSafe(format!("{READ_ONLY}{timeout}"));
        sqlx::raw_sql(prepare).execute(&mut *self.transaction).await?;
        self.attempt(sql).await
    }

    /// The plan of a statement.
    pub(super) async fn explain(&mut self, sql: &str) -> Result<Value, sqlx::Error> {
        // The planner itself calls the functions whose arguments it knows.
        plan(self.read(format!("EXPLAIN (FORMAT JSON) {sql}"), PLANNING_MS).await?)
    }

    /// Executes a statement that reads, for at most so many milliseconds, and takes back what it did; its plan, with
    /// the times.
    pub(super) async fn execute(&mut self, sql: &str, max_ms: f64) -> Result<Value, sqlx::Error> {
        plan(self.read(format!("EXPLAIN (FORMAT JSON, ANALYZE, TIMING OFF) {sql}"), max_ms).await?)
    }

    /// What the server calls an index on an empty copy of the table, or its refusal; `None` where there can be no copy.
    pub(super) async fn defined(&mut self, table: &str, body: &str) -> Result<Option<String>, sqlx::Error> {
        let copy = format!("CREATE TEMP TABLE greenwave_advisor (LIKE {table})");
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut *self.transaction).await {
            sqlx::raw_sql(BACK).execute(&mut *self.transaction).await?;
            return if error.as_database_error().is_some() { Ok(None) } else { Err(error) };
        }
        let create = format!("CREATE INDEX greenwave_advisor_index ON pg_temp.greenwave_advisor {body}");
        let created =
            sqlx::query(AssertSqlSafe(create)).persistent(false).execute(&mut *self.transaction).await;
        if let Err(error) = created {
            sqlx::raw_sql(BACK).execute(&mut *self.transaction).await?;
            return Err(error);
        }
        let sql = "SELECT pg_get_indexdef('pg_temp.greenwave_advisor_index'::regclass)";
        let rows = self.attempt(sql.to_owned()).await?;
        rows.first().map(|row| row.try_get(0)).transpose()
    }

    /// Those of the functions that change nothing, whatever their arguments: all that exist by the name are known not
    /// to, and with `fixed`, each is immutable, or comes with PostgreSQL.
    pub(super) async fn functions(
        &mut self,
        names: &BTreeSet<String>,
        fixed: bool,
    ) -> Result<BTreeSet<String>, sqlx::Error> {
        let texts: Vec<String> = names.iter().map(|name| literal(name)).collect();
        let sql = format!(
            "SELECT proname::text FROM pg_catalog.pg_proc WHERE proname = ANY (ARRAY[{}]::text[]) GROUP BY proname \
             HAVING bool_and(provolatile = 'i' OR provolatile = 's' \
             AND (NOT {fixed} OR pronamespace = 'pg_catalog'::regnamespace))",
            texts.join(", ")
        );
        let rows = self.attempt(sql).await?;
        let mut harmless: BTreeSet<String> =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
        let known = names
            .iter()
            .filter(|name| SYNTAX.contains(&name.as_str()) || !fixed && HARMLESS.contains(&name.as_str()));
        harmless.extend(known.cloned());
        Ok(harmless)
    }

    pub(super) async fn end(self) -> Result<(), Error> {
        self.transaction.rollback().await.map_err(|error| database("roll back", error))
    }
}

fn plan(rows: Vec<PgRow>) -> Result<Value, sqlx::Error> {
    let mut plan: Value = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    Ok(plan.get_mut(0).map(Value::take).unwrap_or_default())
}

/// The error of a statement of our own.
pub(super) fn database(doing: &'static str, error: sqlx::Error) -> Error {
    let source = Box::new(error);
    match code(&source).as_deref() {
        Some(DENIED) => Error::Denied {
            what: doing,
            cure: "use the tables' owner, or a role that may read all statistics (`GRANT pg_read_all_stats TO …`)",
            source,
        },
        Some(LOCKED) => Error::Locked { table: "a table".to_owned(), source },
        _ => Error::Database { doing, source },
    }
}

pub(super) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(|code| code.into_owned())
}

/// The database's words about a statement that it refused.
pub(super) fn words(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// A name as SQL needs it.
pub(super) fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !RESERVED.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// A string as SQL needs it, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// PostgreSQL's reserved words.
const RESERVED: [&str; 101] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "system_user",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];
