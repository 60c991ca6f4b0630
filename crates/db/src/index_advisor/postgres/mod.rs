//! Advice for PostgreSQL.

use sqlx::PgConnection;

use super::{Advice, AdvisorConfig, Error, Finding, Workload};

/// The indexes that would serve the workload, and what is wrong with those that exist.
pub async fn advise(
    connection: &mut PgConnection,
    _workload: &Workload,
    _config: &AdvisorConfig,
) -> Result<Advice, Error> {
    Ok(Advice { findings: findings(connection).await?, ..Advice::default() })
}

/// What is wrong with the indexes and tables that exist.
pub async fn findings(_connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    Ok(Vec::new())
}

impl Workload {
    /// The `limit` statements of this database that took most time, from `pg_stat_statements`.
    pub async fn from_pg_stat_statements(_connection: &mut PgConnection, _limit: u32) -> Result<Self, Error> {
        Ok(Self::default())
    }
}
