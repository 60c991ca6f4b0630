use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use greenwave_shop::seed::SeedSize;
use greenwave_shop::store::Store;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::report::figures;
use crate::{BoxError, Setup};

/// How long a connection may take.
const CONNECTING: Duration = Duration::from_secs(10);

/// How long the copy of a database, or its vacuum, may take.
const COPYING: Duration = Duration::from_secs(600);

/// The URL of a database of the lab's own on a PostgreSQL server.
pub(super) async fn one(setup: &Setup, size: SeedSize, url: &str) -> Result<String, BoxError> {
    let server = Server::new(url)?;
    let [shop] = announce(setup, &server, size, ["shop"]).await?;
    create(setup, &server, &shop, size).await?;
    Ok(server.database(&shop)?)
}

/// Two databases of the lab's own on a PostgreSQL server.
pub(super) async fn copies(
    setup: &Setup,
    size: SeedSize,
    url: &str,
    naive: bool,
) -> Result<(Store, Store), BoxError> {
    let server = Server::new(url)?;
    let [before, after] = announce(setup, &server, size, ["before", "after"]).await?;
    create(setup, &server, &before, size).await?;
    copy(setup, &server, &before, &after).await?;
    let open = async |name, naive| super::open(setup, &server.database(name)?, naive).await;
    Ok((open(&before, naive).await?, open(&after, false).await?))
}

/// The names of the databases to be, whose removal it promises.
async fn announce<const N: usize>(
    setup: &Setup,
    server: &Server,
    size: SeedSize,
    names: [&str; N],
) -> Result<[String; N], BoxError> {
    let run = rand::random::<u32>();
    let names = names.map(|name| format!("greenwave_lab_{run:08x}_{name}"));
    let version: String = {
        let mut db = server.connect(None).await?;
        within(CONNECTING, sqlx::query_scalar("SHOW server_version").fetch_one(&mut db)).await?
    };
    setup.fact("database", format!("PostgreSQL {version}, in processes of its own"));
    for name in &names {
        let (server, name) = (server.clone(), name.clone());
        let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        setup.on_end(format!("drop the database {name}"), async move { server.run(None, drop).await });
    }
    let (what, are) = if N == 1 { ("database", "is") } else { ("databases", "are") };
    setup.note(&format!(
        "creating the {what} {}, which {are} dropped at the end, and seeding {} orders",
        names.join(" and "),
        figures::count(size.orders.unsigned_abs())
    ));
    Ok(names)
}

/// Creates and fills a database.
async fn create(setup: &Setup, server: &Server, name: &str, size: SeedSize) -> Result<(), BoxError> {
    shielded(setup, server, None, format!("CREATE DATABASE {name}")).await.map_err(|error| {
        anyhow::anyhow!(error).context("could not create a database: may this role? (ALTER ROLE … CREATEDB)")
    })?;
    super::seed(setup.clone(), server.database(name)?, size).await?;
    // Now rather than by autovacuum in the middle of a round.
    shielded(setup, server, Some(name), "VACUUM (ANALYZE)".to_owned()).await
}

/// Creates `after` as a copy of `before`: the same pages, the same statistics.
async fn copy(setup: &Setup, server: &Server, before: &str, after: &str) -> Result<(), BoxError> {
    // A template must have no visitors, and the pools that seeded it close their connections when they like.
    let leave = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{before}'");
    shielded(setup, server, None, leave).await?;
    shielded(setup, server, None, format!("CREATE DATABASE {after} TEMPLATE {before}")).await
}

/// Shielded: a server that nobody waits for goes on creating, past the clean-up.
async fn shielded(
    setup: &Setup,
    server: &Server,
    database: Option<&str>,
    statement: String,
) -> Result<(), BoxError> {
    let (server, database) = (server.clone(), database.map(str::to_owned));
    setup.shield(async move { server.run(database, statement).await }).await
}

/// A PostgreSQL server, by the URL of any of its databases.
#[derive(Clone)]
struct Server {
    url: String,
    options: PgConnectOptions,
}

impl Server {
    fn new(url: &str) -> anyhow::Result<Self> {
        let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        anyhow::ensure!(is_postgres, "--database: write postgres://USER:PASSWORD@HOST:PORT/DATABASE");
        let options = PgConnectOptions::from_str(url).context("--database is not a URL of PostgreSQL")?;
        Ok(Server { url: url.to_owned(), options: options.disable_statement_logging() })
    }

    /// The URL of another database of this server.
    fn database(&self, name: &str) -> anyhow::Result<String> {
        let url = with_database(&self.url, name);
        // What is done there would ruin a database that is not the lab's own: see that sqlx reads it the same way.
        let options = PgConnectOptions::from_str(&url)?;
        anyhow::ensure!(
            options.get_database() == Some(name),
            "--database: name the database as in postgres://HOST/DATABASE, so that the lab can use another one"
        );
        Ok(url)
    }

    async fn connect(&self, database: Option<&str>) -> Result<PgConnection, BoxError> {
        let options = match database {
            Some(name) => self.options.clone().database(name),
            None => self.options.clone(),
        };
        let connection = within(CONNECTING, PgConnection::connect_with(&options)).await;
        connection.map_err(|error| anyhow::anyhow!(error).context("could not connect to --database").into())
    }

    /// Runs one statement; the names in it are the lab's own.
    async fn run(&self, database: Option<String>, statement: String) -> Result<(), BoxError> {
        let mut db = self.connect(database.as_deref()).await?;
        within(COPYING, sqlx::query(AssertSqlSafe(statement)).execute(&mut db)).await?;
        db.close().await?;
        Ok(())
    }
}

/// The id of the first process of a PostgreSQL server on this machine.
pub(in crate::experiments) async fn postmaster(url: &str) -> Result<u32, BoxError> {
    let mut db = Server::new(url)?.connect(None).await?;
    let backend: i32 =
        within(CONNECTING, sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut db)).await?;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{backend}/{file}")).unwrap_or_default();
    let status = read("status");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    match parent {
        Some(parent) if read("comm").starts_with("postgres") => Ok(parent),
        _ => Err("--database must be on this machine: its server's CPU time is counted".into()),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = sqlx::Result<T>>) -> Result<T, BoxError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_elapsed) => Err(format!("PostgreSQL gave no answer within {limit:?}").into()),
    }
}

/// The same URL with another database.
fn with_database(url: &str, name: &str) -> String {
    let url = url.split('#').next().unwrap_or(url);
    let (address, parameters) = match url.split_once('?') {
        // A parameter `dbname`, however it is written, wins over the path; the last one wins over all.
        Some((address, parameters)) => (address, format!("?{parameters}&dbname={name}")),
        None => (url, String::new()),
    };
    let host = address.find("://").map_or(0, |at| at + 3);
    let host_end = address[host..].find('/').map_or(address.len(), |at| host + at);
    format!("{}/{name}{parameters}", &address[..host_end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gets_another_database_and_keeps_the_rest() {
        for (url, expected) in [
            ("postgres://ada:s3cret@db:5432/shop", "postgres://ada:s3cret@db:5432/lab"),
            ("postgres://db", "postgres://db/lab"),
            ("postgres://db/?sslmode=disable", "postgres://db/lab?sslmode=disable&dbname=lab"),
            ("postgresql:///shop?host=/run/postgresql", "postgresql:///lab?host=/run/postgresql&dbname=lab"),
        ] {
            assert_eq!(with_database(url, "lab"), expected);
        }
    }

    #[test]
    fn wherever_a_url_names_its_database_the_labs_own_takes_its_place() {
        for url in [
            "postgres://db/shop",
            "postgres://db?dbname=shop",
            "postgres://db/shop?dbname=shop&sslmode=disable",
            "postgres://db/?dbname=shop&dbname=shop&",
            "postgres://db/?db%6Eame=shop",
            "postgres://db/shop?sslmode=disable#dbname",
            "postgres://db/shop#?dbname=shop",
        ] {
            let other = Server::new(url).unwrap().database("lab").unwrap();
            let options = PgConnectOptions::from_str(&other).unwrap();
            assert_eq!(options.get_database(), Some("lab"), "{url} became {other}");
        }
    }

    #[test]
    fn what_is_no_postgres_url_is_refused_in_words() {
        let error = Server::new("mysql://db").err().unwrap().to_string();
        assert_eq!(error, "--database: write postgres://USER:PASSWORD@HOST:PORT/DATABASE");
    }
}
