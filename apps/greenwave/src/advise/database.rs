//! The two databases, and how each is asked.

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow, bail, ensure};
use greenwave_db::{
    Error, PoolConfig,
    index_advisor::{self, Advice, AdvisorConfig, Workload},
    postgres::Pool,
};
use greenwave_shop::{DatabaseUrl, error_chain};
use rusqlite::{Connection, OpenFlags};

use super::{arguments::AdviseArguments, workload::top};

/// How long a server may take to hear that the program ends.
const CLOSING: Duration = Duration::from_secs(5);

/// A database; its text shows no password.
pub(super) struct Database {
    shown: DatabaseUrl,
    kind: Kind,
}

enum Kind {
    Postgres(Pool),
    Sqlite(PathBuf),
}

impl Database {
    /// A URL, or the path of a SQLite file.
    pub(super) fn parse(url: &str) -> Result<Database> {
        let is_url = url.contains("://") || url.starts_with("sqlite:");
        let url = if is_url || url.is_empty() { url.to_owned() } else { format!("sqlite:{url}") };
        let shown: DatabaseUrl = url.parse().map_err(|_| {
            anyhow!("--database: write postgres://USER:PASSWORD@HOST/DATABASE, sqlite:PATH, or the path of a SQLite file")
        })?;
        let kind = match &shown {
            DatabaseUrl::Sqlite(path) => Kind::Sqlite(path.clone()),
            DatabaseUrl::Postgres(_) => {
                // One connection, which is slow and held for long by intent.
                let long = Duration::from_secs(24 * 60 * 60);
                let config = PoolConfig {
                    max_connections: 1,
                    connection_timeout: Duration::from_secs(10),
                    max_hold: long,
                    slow_query: long,
                    ..PoolConfig::default()
                };
                Kind::Postgres(Pool::connect_lazy(&url, config)?)
            }
        };
        Ok(Database { shown, kind })
    }

    /// The advice, and on how many statements it rests.
    pub(super) async fn advise(
        &self,
        given: Option<Workload>,
        arguments: &AdviseArguments,
    ) -> Result<(Advice, usize)> {
        let config = arguments.config();
        match &self.kind {
            Kind::Postgres(pool) => advise_postgres(pool, given, arguments.top, config).await,
            Kind::Sqlite(path) => {
                let Some(given) = given else {
                    bail!(
                        "SQLite counts no statements: give a file of them with --workload, as SQL or as the statistics \
                         that a service writes"
                    )
                };
                advise_sqlite(path.clone(), top(given, arguments.top), config).await
            }
        }
    }

    /// Ends the connection, and on the server whatever it still does.
    pub(super) async fn close(&self) {
        if let Kind::Postgres(pool) = &self.kind {
            let _ = tokio::time::timeout(CLOSING, pool.close()).await;
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown.fmt(f)
    }
}

async fn advise_postgres(
    pool: &Pool,
    given: Option<Workload>,
    most: u32,
    config: AdvisorConfig,
) -> Result<(Advice, usize)> {
    let mut connection = pool.acquire().await.map_err(|error| match Error::in_sqlx(&error) {
        Some(own) => anyhow!("{}", error_chain(own)),
        None => error.into(),
    })?;
    let workload = match given {
        Some(given) => top(given, most),
        None => {
            Workload::from_pg_stat_statements(&mut connection, most).await.map_err(|error| match error {
                index_advisor::Error::NoStatistics(_) => {
                    anyhow!("{error}; or give a file of statements with --workload")
                }
                error => error.into(),
            })?
        }
    };
    let advice = index_advisor::postgres::advise(&mut connection, &workload, &config).await?;
    Ok((advice, workload.statements.len()))
}

async fn advise_sqlite(path: PathBuf, workload: Workload, config: AdvisorConfig) -> Result<(Advice, usize)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // SQLite says of everything that it is unable to open it.
    ensure!(path.is_file(), "{} is no file: check the path given by --database", path.display());
    let connection = Connection::open_with_flags(&path, flags)
        .with_context(|| format!("cannot open {}: check that it is there and may be read", path.display()))?;
    connection.busy_timeout(Duration::from_secs(5))?;
    tokio::task::spawn_blocking(move || {
        let advice = index_advisor::sqlite::advise(&connection, &workload, &config)
            .with_context(|| format!("no advice on {}", path.display()))?;
        Ok((advice, workload.statements.len()))
    })
    .await?
}
