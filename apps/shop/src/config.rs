use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use greenwave_db::PoolConfig;

use crate::Error;

/// Where the data is kept when nothing else is said.
pub const DEFAULT_DATABASE_URL: &str = "sqlite:greenwave-data/shop.db";

/// Where the API listens when nothing else is said.
pub const DEFAULT_PORT: u16 = 8000;

/// How a shop is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// The database. Default: [`DEFAULT_DATABASE_URL`].
    pub database: DatabaseUrl,
    /// Redis behind the cache of users, as a URL. Default: none, users are cached in this process only.
    pub redis_url: Option<String>,
    /// Switches every technique off. Default: false.
    pub naive: bool,
    /// Fills an SQLite database that is empty with a small set. Default: true.
    pub sample_data: bool,
    /// The pool that requests share. Default: that of `greenwave-db`.
    pub pool: PoolConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            database: DatabaseUrl::default(),
            redis_url: None,
            naive: false,
            sample_data: true,
            pool: PoolConfig::default(),
        }
    }
}

/// The loopback address of this port: the shop is for the machine it runs on, and for the balancer before it.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A database of one of the two kinds. Its text shows no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    Postgres(Secret),
    /// `sqlite:PATH`.
    Sqlite(PathBuf),
}

/// A text that no debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Default for DatabaseUrl {
    fn default() -> DatabaseUrl {
        DatabaseUrl::Sqlite(PathBuf::from("greenwave-data/shop.db"))
    }
}

impl FromStr for DatabaseUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<DatabaseUrl, Error> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(DatabaseUrl::Postgres(Secret(text.to_owned())));
        }
        let Some(path) = text.strip_prefix("sqlite:") else {
            return Err(Error::Url(
                "DATABASE_URL: write postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH",
            ));
        };
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains(":memory:") {
            return Err(Error::Url("DATABASE_URL: name a file, as in sqlite:greenwave-data/shop.db"));
        }
        Ok(DatabaseUrl::Sqlite(PathBuf::from(path)))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // What stands before the last @ is user and password; what stands after a ? may be a password too.
            DatabaseUrl::Postgres(Secret(url)) => {
                let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                // A password with one of those in it: where it ends is anybody's guess, and nobody can connect by it.
                if path.contains('@') {
                    return f.write_str("postgres://…");
                }
                let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
                write!(f, "postgres://{place}{}", path.split(['?', '#']).next().unwrap_or_default())
            }
            DatabaseUrl::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_url_is_shown_without_user_and_password() {
        for (url, shown) in [
            ("postgres://ada:s3c@ret@db.example:5432/shop?password=x", "postgres://db.example:5432/shop"),
            ("postgresql:///shop", "postgres:///shop"),
            ("postgres://ada:s?3cret@db/x", "postgres://…"),
            ("postgres://ada:s/3cret@db/x", "postgres://…"),
            ("postgres://ada:s#3cret@db/x", "postgres://…"),
            ("postgres://db/x?password=s@3cret", "postgres://…"),
            ("postgres://db?password=3cret", "postgres://db"),
            ("sqlite:a/b.db", "sqlite:a/b.db"),
            ("sqlite:///tmp/b.db", "sqlite:/tmp/b.db"),
        ] {
            let url: DatabaseUrl = url.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("s3c"));
        }
    }

    #[test]
    fn what_is_no_database_is_refused() {
        for url in ["", "mysql://x", "shop.db", "sqlite:", "sqlite::memory:"] {
            assert!(url.parse::<DatabaseUrl>().is_err(), "{url}");
        }
    }

    #[test]
    fn the_default_is_what_it_says() {
        assert_eq!(DEFAULT_DATABASE_URL.parse::<DatabaseUrl>().unwrap(), DatabaseUrl::default());
    }
}
