//! Whether a server answers: one check, what a run of checks means, and a checker for fixed addresses.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::local::is_local;
use crate::{Error, Upstream, Upstreams};

/// How a server shows that it can take requests.
///
/// In text and configuration: `tcp`, `none`, or the path of the HTTP check, such as `/health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Health {
    /// It accepts a connection.
    #[default]
    Tcp,
    /// It answers `GET path` with a 2xx status.
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

/// When servers are checked, and how many results make a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CheckConfig {
    /// Time between two checks of a server; 1 s by default. One that is starting is checked more often.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub interval: Duration,
    /// Time after which a check without an answer has failed; 1 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub timeout: Duration,
    /// Checks that a sick server must pass in a row to be healthy; 1 by default.
    pub healthy_after: u32,
    /// Checks that a healthy server must fail in a row to be sick; 3 by default.
    pub unhealthy_after: u32,
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 3,
        }
    }
}

/// Turns single results into a verdict.
#[derive(Debug)]
pub(crate) struct Judge {
    healthy_after: u32,
    unhealthy_after: u32,
    healthy: bool,
    // Results in a row that speak against the present verdict.
    against: u32,
}

impl Judge {
    pub(crate) fn new(config: &CheckConfig) -> Self {
        Self {
            healthy_after: config.healthy_after.max(1),
            unhealthy_after: config.unhealthy_after.max(1),
            healthy: false,
            against: 0,
        }
    }

    /// Takes in one result and says whether the server now counts as healthy.
    pub(crate) fn record(&mut self, result: &Result<(), CheckFailure>) -> bool {
        let passed = result.is_ok();
        if matches!(result, Err(CheckFailure::Connect(error)) if is_local(error)) {
            // The server was not asked.
        } else if passed == self.healthy {
            self.against = 0;
        } else {
            self.against += 1;
            let needed = if self.healthy { self.unhealthy_after } else { self.healthy_after };
            if self.against >= needed {
                self.healthy = passed;
                self.against = 0;
            }
        }
        self.healthy
    }
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckFailure {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("no HTTP answer: {0}")]
    Http(hyper::Error),
    #[error("not a path: {0}")]
    Path(http::Error),
    #[error("status {0}")]
    Status(StatusCode),
}

/// One check.
pub(crate) async fn check(health: &Health, address: SocketAddr, limit: Duration) -> Result<(), CheckFailure> {
    let checked = async {
        match health {
            Health::None => Ok(()),
            Health::Tcp => TcpStream::connect(address).await.map(drop).map_err(CheckFailure::Connect),
            Health::Http { path } => check_http(path, address).await,
        }
    };
    tokio::time::timeout(limit, checked).await.unwrap_or(Err(CheckFailure::Timeout(limit)))
}

async fn check_http(path: &str, address: SocketAddr) -> Result<(), CheckFailure> {
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "greenwave-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(CheckFailure::Path)?;
    let stream = TcpStream::connect(address).await.map_err(CheckFailure::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(CheckFailure::Http)?;
    let answer = sender.send_request(request);
    // The connection is driven here and not in a task of its own, so that it ends with the check.
    tokio::pin!(answer, connection);
    let response = tokio::select! {
        biased;
        response = &mut answer => response,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let status = response.map_err(CheckFailure::Http)?.status();
    if status.is_success() { Ok(()) } else { Err(CheckFailure::Status(status)) }
}

/// Checks servers at fixed addresses, for a proxy without a supervisor.
///
/// Dropping it ends the checks; the list then stays as it was last.
///
/// ```no_run
/// use greenwave_edge::{CheckConfig, Health, HealthChecker, Proxy, ProxyConfig};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let addresses = ["10.0.0.1:3000".parse()?, "10.0.0.2:3000".parse()?];
/// let checker = HealthChecker::start(addresses, "/health".parse::<Health>()?, CheckConfig::default());
/// let proxy = Proxy::new(ProxyConfig::default(), checker.upstreams())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct HealthChecker {
    upstreams: watch::Receiver<Upstreams>,
    // Held for its drop, which aborts the checks.
    _checks: JoinSet<()>,
}

impl HealthChecker {
    /// Starts checking at once. A server counts as sick until it has passed; with [`Health::None`] all
    /// count as healthy and nothing is checked.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        addresses: impl IntoIterator<Item = SocketAddr>,
        health: Health,
        config: CheckConfig,
    ) -> Self {
        let mut list = Upstreams::fixed(addresses);
        let mut checks = JoinSet::new();
        if health == Health::None {
            return Self { upstreams: list.into_watch(), _checks: checks };
        }
        let addresses: Vec<SocketAddr> = list.iter().map(|upstream| upstream.address).collect();
        for index in 0..addresses.len() {
            list.get_mut(index).into_iter().for_each(|upstream| upstream.healthy = false);
        }
        let (sender, upstreams) = watch::channel(list);
        let sender = Arc::new(sender);
        for (index, address) in addresses.into_iter().enumerate() {
            let (sender, health, config) = (Arc::clone(&sender), health.clone(), config.clone());
            checks.spawn(async move {
                let mut judge = Judge::new(&config);
                loop {
                    let result = check(&health, address, config.timeout).await;
                    let healthy = judge.record(&result);
                    sender.send_if_modified(|list| note(list.get_mut(index), healthy, result.is_ok()));
                    tokio::time::sleep(config.interval).await;
                }
            });
        }
        Self { upstreams, _checks: checks }
    }

    /// The list as the checks see it.
    pub fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.upstreams.clone()
    }
}

/// Writes a result down; says whether anything changed.
fn note(upstream: Option<&mut Upstream>, healthy: bool, passed: bool) -> bool {
    let Some(upstream) = upstream else { return false };
    let changed = passed || upstream.healthy != healthy;
    upstream.healthy = healthy;
    upstream.checks += u64::from(passed);
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_does_not_make_a_healthy_server_sick() {
        let mut judge = Judge::new(&CheckConfig::default());
        let results = [true, false, false, true, false, false, false, true];
        let verdicts = results.map(|passed| judge.record(&if passed { Ok(()) } else { failed() }));
        assert_eq!(verdicts, [true, true, true, true, true, true, false, true]);
    }

    fn failed() -> Result<(), CheckFailure> {
        Err(CheckFailure::Timeout(Duration::ZERO))
    }

    #[test]
    fn a_check_that_this_side_could_not_make_changes_no_verdict() {
        let no_descriptor = std::io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        let not_made = Err(CheckFailure::Connect(no_descriptor));
        let mut judge = Judge::new(&CheckConfig { unhealthy_after: 1, ..CheckConfig::default() });
        let verdicts = [&not_made, &Ok(()), &not_made, &failed()].map(|result| judge.record(result));
        assert_eq!(verdicts, [false, true, true, false]);
    }

    #[test]
    fn a_health_check_is_one_word_or_a_path() {
        for text in ["tcp", "none", "/health?deep=1"] {
            assert_eq!(text.parse::<Health>().unwrap().to_string(), text);
        }
        assert!("http".parse::<Health>().is_err());
        assert!("/with space".parse::<Health>().is_err());
    }
}
