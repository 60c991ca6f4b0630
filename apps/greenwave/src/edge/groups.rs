//! The groups of upstreams among which requests are shared out: the supervisor's apps, and servers elsewhere.

use std::collections::BTreeMap;

use anyhow::Result;
use greenwave_edge::{BalanceConfig, Group, Route, Upstreams};
use tokio::sync::watch;

use crate::config::Config;

/// Refuses what no edge could serve with.
pub(crate) fn check(config: &Config, apps: &[&str]) -> Result<()> {
    config.routes_by_target(apps)?;
    Ok(())
}

/// The lists of upstreams, kept up to date.
pub(super) struct Groups {
    apps: BTreeMap<String, watch::Sender<Upstreams>>,
    routes: BTreeMap<String, Vec<Route>>,
    balance: BalanceConfig,
}

impl Groups {
    pub(super) fn start(config: &Config, apps: BTreeMap<String, Upstreams>) -> Result<Groups> {
        let routes = config.routes_by_target(&apps.keys().map(String::as_str).collect::<Vec<_>>())?;
        let apps = apps.into_iter().map(|(name, list)| (name, watch::Sender::new(list))).collect();
        Ok(Groups { apps, routes, balance: config.edge.proxy.balance.clone() })
    }

    /// For a proxy.
    pub(super) fn list(&self) -> Vec<Group> {
        self.routes
            .iter()
            .filter_map(|(name, routes)| {
                let mut group = Group::new(name, self.apps.get(name)?.subscribe());
                group.routes = routes.clone();
                group.balance = self.balance.clone();
                Some(group)
            })
            .collect()
    }

    /// Takes over the supervisor's lists. An app that is new is for a successor.
    pub(super) fn update(&self, lists: BTreeMap<String, Upstreams>) {
        for (name, list) in lists {
            if let Some(sender) = self.apps.get(&name) {
                sender.send_if_modified(|now| {
                    let changed = *now != list;
                    *now = list;
                    changed
                });
            }
        }
    }
}
