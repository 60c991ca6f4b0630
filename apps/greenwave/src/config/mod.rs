//! One TOML file, environment overrides above it, flags above both.

mod load;
mod reference;

use std::{num::NonZeroU16, path::PathBuf, time::Duration};

use greenwave_edge::ProxyConfig;
use greenwave_shop::cli::Defaults;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use load::load;
pub(crate) use reference::reference;

/// Everything that `greenwave.toml` may say.
///
/// Every key may also be set by environment: `GREENWAVE_` and the key in capitals, sections joined by two underscores
/// (`GREENWAVE_EDGE__LISTEN=0.0.0.0:80`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where the embedded database is kept; made if absent. Default: `greenwave-data`.
    pub data_dir: PathBuf,
    /// What is run.
    pub app: App,
    /// Where requests come in, and how they are passed on.
    pub edge: Edge,
    /// The live dashboard.
    pub dashboard: Dashboard,
    /// The reference service, which runs when `app.command` is empty.
    pub shop: Shop,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "greenwave-data".into(),
            app: App::default(),
            edge: Edge::default(),
            dashboard: Dashboard::default(),
            shop: Shop::default(),
        }
    }
}

/// The service that is supervised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct App {
    /// The command and its arguments, in any language; each instance listens on the port in its `PORT`.
    /// Default: `[]`, the shop.
    pub command: Vec<String>,
    /// How many instances run: a number, or "max" for one a core. Default: `2`.
    pub instances: Instances,
    /// What tells that an instance is well: "tcp", or a path that answers 2xx to GET. Default: "tcp" (the shop: "/health").
    pub health: String,
    /// How long a start may take; an instance that takes longer than this, and than a minute, is started anew. Default: `30s`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ready_timeout: Duration,
    /// How long an instance may finish its work after SIGTERM, before SIGKILL. Default: `10s`.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub grace: Duration,
}

impl Default for App {
    fn default() -> Self {
        App {
            command: Vec::new(),
            instances: Instances::Count(NonZeroU16::MIN.saturating_add(1)),
            health: "tcp".into(),
            ready_timeout: Duration::from_secs(30),
            grace: Duration::from_secs(10),
        }
    }
}

/// The load balancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Edge {
    /// The address that clients connect to. Default: `127.0.0.1:8080`.
    pub listen: String,
    /// How patient the balancer is, and how much it takes on.
    pub proxy: ProxyConfig,
}

impl Default for Edge {
    fn default() -> Self {
        Edge { listen: "127.0.0.1:8080".into(), proxy: ProxyConfig::default() }
    }
}

/// The dashboard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Dashboard {
    /// Its address; one that is not loopback needs a token. Default: `127.0.0.1:8090`.
    pub listen: String,
    /// The password that it asks for; empty asks for none. Default: "".
    pub token: String,
}

impl Default for Dashboard {
    fn default() -> Self {
        Dashboard { listen: "127.0.0.1:8090".into(), token: String::new() }
    }
}

/// Where the shop keeps its data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Shop {
    /// `postgres://…` or `sqlite:PATH`; empty is a SQLite file in `data_dir`. `DATABASE_URL` sets it too. Default: "".
    pub database_url: String,
    /// `redis://…`; empty caches in process only. `REDIS_URL` sets it too. Default: "".
    pub redis_url: String,
    /// Switches every technique off, to see what each is worth. Default: `false`.
    pub naive: bool,
}

/// How many instances run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number from 1 to 65535, or \"max\"")]
pub(crate) enum Instances {
    /// So many.
    Count(NonZeroU16),
    /// One a core.
    Max(Max),
}

/// The word `max`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Max {
    /// One a core.
    Max,
}

impl Instances {
    /// The number, on this machine.
    pub(crate) fn count(self) -> usize {
        match self {
            Instances::Count(count) => usize::from(count.get()),
            Instances::Max(_) => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl std::str::FromStr for Instances {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count) => Ok(Instances::Count(count)),
            Err(_) if text == "max" => Ok(Instances::Max(Max::Max)),
            Err(_) => Err("a number from 1 to 65535, or \"max\"".into()),
        }
    }
}

impl Config {
    /// What the shop's own commands do where neither a flag nor the environment says otherwise: the same as `up`.
    pub(crate) fn shop_defaults(&self) -> Defaults {
        let given = |url: &str| Some(url.to_owned()).filter(|url| !url.is_empty());
        let embedded = format!("sqlite:{}", self.data_dir.join("shop.db").display());
        Defaults {
            database_url: Some(given(&self.shop.database_url).unwrap_or(embedded)),
            redis_url: given(&self.shop.redis_url),
        }
    }

    /// The same with its secrets blacked out, to be shown.
    pub(crate) fn redacted(&self) -> Config {
        let mut shown = self.clone();
        if !shown.dashboard.token.is_empty() {
            shown.dashboard.token = "***".into();
        }
        for url in [&mut shown.shop.database_url, &mut shown.shop.redis_url] {
            *url = redact(url);
        }
        shown
    }
}

/// A URL without anything that could be a password: what stands before the last @, and after a ?.
fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    format!("{scheme}://{}", place.split('?').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        assert_eq!(redact("postgres://ann:p@s/s?x@db:5432/shop"), "postgres://db:5432/shop");
        assert_eq!(redact("postgres://db/shop?user=ann&password=hunter2"), "postgres://db/shop");
        assert_eq!(redact("redis://127.0.0.1:6379"), "redis://127.0.0.1:6379");
        assert_eq!(redact("sqlite:shop.db"), "sqlite:shop.db");
    }
}
