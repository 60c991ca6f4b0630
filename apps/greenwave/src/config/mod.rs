//! One TOML file, environment overrides above it, flags above both.

mod app;
mod load;
mod reference;
mod routes;

use std::{collections::BTreeMap, path::PathBuf};

use greenwave_edge::{LogFileConfig, ProxyConfig, RateLimit};
use greenwave_shop::cli::Defaults;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use app::{App, Instances, Port};
pub(crate) use load::{data_dir, load};
pub(crate) use reference::reference;
use routes::Route;
pub(crate) use routes::UpstreamGroup;

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
    /// Several services, each under a name; none by default. Each has the keys of `app`.
    pub apps: BTreeMap<String, App>,
    /// Servers that run elsewhere, in groups; none by default.
    pub upstreams: BTreeMap<String, UpstreamGroup>,
    /// Which requests go where; none by default: all go to the one app or group that there is.
    pub routes: Vec<Route>,
    /// Where the lines go that instances write: to standard error, or to a file where `path` names one.
    pub logs: LogFileConfig,
    /// Where requests come in, and how they are passed on.
    pub edge: Edge,
    /// The live dashboard.
    pub dashboard: Dashboard,
    /// The queues of jobs that `greenwave jobs` and the dashboard's page of jobs look into.
    pub jobs: Jobs,
    /// The reference service, which runs when nothing else is configured.
    pub shop: Shop,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "greenwave-data".into(),
            app: App::default(),
            apps: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            routes: Vec::new(),
            logs: LogFileConfig::default(),
            edge: Edge::default(),
            dashboard: Dashboard::default(),
            jobs: Jobs::default(),
            shop: Shop::default(),
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

/// The queues of jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Jobs {
    /// The database in which they are: `postgres://…` or `sqlite:PATH`; empty is the shop's, where the shop runs or has one.
    /// Default: "".
    pub database: String,
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

/// The name that stands for any in [`Config::template`].
pub(crate) const ANY: &str = "NAME";

impl Config {
    /// The defaults, with one entry in each map and list: what keys there are.
    fn template() -> Config {
        let mut template = Config::default();
        template.app.env.insert(ANY.into(), String::new());
        template.apps.insert(ANY.into(), template.app.clone());
        template.upstreams.insert(ANY.into(), UpstreamGroup::default());
        template.routes.push(Route::default());
        template.edge.proxy.rate_limits.push(RateLimit::default());
        template
    }

    /// Whether the shop runs: nothing else does.
    pub(crate) fn runs_shop(&self) -> bool {
        self.app.command.is_empty() && self.apps.is_empty() && self.upstreams.is_empty()
    }

    /// What the shop's own commands do where neither a flag nor the environment says otherwise: the same as `up`.
    pub(crate) fn shop_defaults(&self) -> Defaults {
        let given = |url: &str| Some(url.to_owned()).filter(|url| !url.is_empty());
        let embedded = format!("sqlite:{}", self.data_dir.join("shop.db").display());
        Defaults {
            database_url: Some(given(&self.shop.database_url).unwrap_or(embedded)),
            redis_url: given(&self.shop.redis_url),
        }
    }

    /// Where the jobs are, if any are known of.
    pub(crate) fn jobs_database(&self) -> Option<String> {
        if !self.jobs.database.is_empty() {
            return Some(self.jobs.database.clone());
        }
        let shop = self.runs_shop() || !self.shop.database_url.is_empty();
        self.shop_defaults().database_url.filter(|_| shop)
    }

    /// The same with its secrets blacked out, to be shown.
    pub(crate) fn redacted(&self) -> Config {
        let mut shown = self.clone();
        if !shown.dashboard.token.is_empty() {
            shown.dashboard.token = "***".into();
        }
        // Nobody can tell which of them are secrets.
        for app in shown.apps.values_mut().chain([&mut shown.app]) {
            app.env.values_mut().for_each(|value| *value = "***".into());
        }
        for url in [&mut shown.jobs.database, &mut shown.shop.database_url, &mut shown.shop.redis_url] {
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
