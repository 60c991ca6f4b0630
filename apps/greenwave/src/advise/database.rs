//! The two databases, and how each is asked.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use greenwave_db::{
    Error, PoolConfig,
    index_advisor::{self, Advice, AdvisorConfig, Workload},
    postgres::Pool,
};
use greenwave_shop::{DatabaseUrl, error_chain};
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags};

use super::{arguments::AdviseArguments, workload::top};

/// How long a database may take to hear that the program ends.
pub(super) const CLOSING: Duration = Duration::from_secs(5);

/// How long SQLite waits for a lock.
const BUSY: Duration = Duration::from_secs(5);

/// A database; its text shows no password.
pub(super) struct Database {
    shown: DatabaseUrl,
    kind: Kind,
    interrupt: OnceLock<InterruptHandle>,
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
        Ok(Database { shown, kind, interrupt: OnceLock::new() })
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
                self.advise_sqlite(path.clone(), top(given, arguments.top), config).await
            }
        }
    }

    async fn advise_sqlite(
        &self,
        path: PathBuf,
        workload: Workload,
        config: AdvisorConfig,
    ) -> Result<(Advice, usize)> {
        // SQLite says of everything that it is unable to open it.
        ensure!(path.is_file(), "{} is no file: check the path given by --database", path.display());
        let connection = open(&path).with_context(|| {
            format!("cannot open {}: check that it is there and may be read", path.display())
        })?;
        let _ = self.interrupt.set(connection.get_interrupt_handle());
        tokio::task::spawn_blocking(move || {
            let advice = index_advisor::sqlite::advise(&connection, &workload, &config)
                .with_context(|| format!("no advice on {}", path.display()))?;
            Ok((advice, workload.statements.len()))
        })
        .await?
    }

    /// Asks SQLite to stop; whether it then has to be waited for, as it closes its file.
    pub(super) fn interrupt(&self) -> bool {
        self.interrupt.get().map(InterruptHandle::interrupt).is_some()
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

/// Opens it so that nothing in it can be changed. The last reader of a file in WAL mode removes what SQLite puts beside
/// it, unless it may only read: so it may write where the file allows it.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let with = |flags| -> rusqlite::Result<Connection> {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY)?;
        connection.execute_batch("PRAGMA query_only = ON")?;
        Ok(connection)
    };
    let tried = with(OpenFlags::SQLITE_OPEN_READ_WRITE).and_then(|connection| {
        // Only now is it opened.
        connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get::<_, i64>(0))?;
        Ok(connection)
    });
    match tried {
        Ok(connection) => Ok(connection),
        // Other errors come again, and are then said with what was to be done.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Err(error),
        Err(_) => with(OpenFlags::SQLITE_OPEN_READ_ONLY),
    }
}
