//! Which requests go where.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use greenwave_edge::CheckConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Config;

/// Servers that run elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct UpstreamGroup {
    /// Where they listen, as HOST:PORT, and `weight=3` after it where one gets a larger share. A name is looked up again
    /// and again, and stands for all its addresses.
    pub addresses: Vec<String>,
    /// What tells that one is well: "tcp", a path that answers 2xx to GET, or "none". Default: "tcp".
    pub health: String,
    /// When they are checked.
    pub check: CheckConfig,
}

impl Default for UpstreamGroup {
    fn default() -> Self {
        UpstreamGroup { addresses: Vec::new(), health: "tcp".into(), check: CheckConfig::default() }
    }
}

/// Which requests go to an app or a group of servers. Of several routes that fit, the one with the most specific host
/// counts, and among those the one with the longest path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Route {
    /// A host without its port, or `*.` and a domain for all hosts below it. Default: "", any host.
    pub host: String,
    /// What their path begins with, up to a `/` or its end. Default: "", any path.
    pub path: String,
    /// The name of the app, or of the group in `upstreams`; must be given.
    pub to: String,
}

impl Config {
    /// The routes of each target, these apps and the groups of upstreams. A target without any gets no request, unless
    /// it is the only one.
    pub(crate) fn routes_by_target(
        &self,
        apps: &[&str],
    ) -> Result<BTreeMap<String, Vec<greenwave_edge::Route>>> {
        let groups = self.upstreams.keys().map(String::as_str);
        let names: Vec<&str> = apps.iter().copied().chain(groups).collect();
        if let [only] = names[..]
            && self.routes.is_empty()
        {
            return Ok([(only.to_owned(), Vec::new())].into());
        }
        if self.routes.is_empty() && !names.is_empty() {
            bail!("routes: say with [[routes]] which requests go to each of {}", names.join(", "));
        }
        let mut routes = BTreeMap::<String, Vec<greenwave_edge::Route>>::new();
        for (index, Route { host, path, to }) in self.routes.iter().enumerate() {
            if !names.contains(&to.as_str()) {
                bail!(
                    "routes[{index}].to: nothing that takes requests is called {to:?}; there is {}",
                    names.join(", ")
                );
            }
            let route = greenwave_edge::Route { host: host.clone(), path: path.clone() };
            routes.entry(to.clone()).or_default().push(route);
        }
        Ok(routes)
    }
}
