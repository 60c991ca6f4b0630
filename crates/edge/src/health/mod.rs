//! Whether a server answers: one check, what a run of checks means, and a checker for servers that nobody supervises.

mod check;
mod checker;
mod config;
mod judge;
mod target;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub(crate) use check::check;
pub use checker::HealthChecker;
pub use config::{CheckConfig, Statuses};
pub(crate) use judge::Judge;
pub use target::Target;

use crate::Error;

/// How a server shows that it can take requests.
///
/// In text and configuration: `tcp`, `none`, or the path of the HTTP check, such as `/health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Health {
    /// It accepts a connection.
    #[default]
    Tcp,
    /// It answers `GET path` with a status that is [expected](CheckConfig::expect).
    Http {
        /// The path, with its leading slash.
        path: String,
    },
    /// It has no port: a worker. It is ready when it has stayed alive for a moment.
    None,
}

impl FromStr for Health {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "none" => Ok(Self::None),
            path if path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok() => {
                Ok(Self::Http { path: path.to_owned() })
            }
            other => Err(Error::InvalidHealth { text: other.to_owned() }),
        }
    }
}

impl TryFrom<String> for Health {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Health> for String {
    fn from(health: Health) -> Self {
        health.to_string()
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Http { path } => f.write_str(path),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_check_is_one_word_or_a_path() {
        for text in ["tcp", "none", "/health?deep=1"] {
            assert_eq!(text.parse::<Health>().unwrap().to_string(), text);
        }
        assert!("http".parse::<Health>().is_err());
        assert!("/with space".parse::<Health>().is_err());
    }
}
