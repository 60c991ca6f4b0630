//! The groups of upstreams among which requests are shared out: the supervisor's apps, and servers elsewhere.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use greenwave_edge::{BalanceConfig, Group, Health, HealthChecker, Proxy, Route, Target, Upstreams};
use tokio::sync::watch;

use crate::config::{Config, UpstreamGroup};

/// Refuses what no edge could serve with, these apps taking requests.
pub(crate) fn check(config: &Config, apps: &[&str]) -> Result<()> {
    let apps = apps.iter().map(|name| ((*name).to_owned(), Upstreams::default()));
    let groups = Groups::new(config, apps.collect())?;
    for (name, group) in &config.upstreams {
        parsed(name, group)?;
    }
    let elsewhere = config.upstreams.keys().map(|name| (name.clone(), Upstreams::default().into_watch()));
    groups.proxy(config, &elsewhere.collect()).map(drop)
}

/// The lists of the apps' instances, kept up to date, and the checks of servers elsewhere.
pub(super) struct Groups {
    apps: BTreeMap<String, watch::Sender<Upstreams>>,
    routes: BTreeMap<String, Vec<Route>>,
    balance: BalanceConfig,
    // Held for their drop, which ends the checks.
    checkers: BTreeMap<String, HealthChecker>,
}

impl Groups {
    fn new(config: &Config, apps: BTreeMap<String, Upstreams>) -> Result<Groups> {
        let routes = config.routes_by_target(&apps.keys().map(String::as_str).collect::<Vec<_>>())?;
        let apps = apps.into_iter().map(|(name, list)| (name, watch::Sender::new(list))).collect();
        Ok(Groups { apps, routes, balance: config.edge.proxy.balance.clone(), checkers: BTreeMap::new() })
    }

    /// Starts to check the servers elsewhere, and makes a proxy for all.
    pub(super) fn start(config: &Config, apps: BTreeMap<String, Upstreams>) -> Result<(Groups, Proxy)> {
        let mut groups = Groups::new(config, apps)?;
        for (name, group) in &config.upstreams {
            let (targets, health) = parsed(name, group)?;
            groups.checkers.insert(name.clone(), HealthChecker::start(targets, health, group.check.clone()));
        }
        let lists = groups.checkers.iter().map(|(name, checker)| (name.clone(), checker.upstreams()));
        let proxy = groups.proxy(config, &lists.collect())?;
        Ok((groups, proxy))
    }

    fn proxy(
        &self,
        config: &Config,
        elsewhere: &BTreeMap<String, watch::Receiver<Upstreams>>,
    ) -> Result<Proxy> {
        let list = |name: &str| {
            let app = self.apps.get(name).map(watch::Sender::subscribe);
            app.or_else(|| elsewhere.get(name).cloned())
        };
        let group = |(name, routes): (&String, &Vec<Route>)| {
            let mut group = Group::new(name, list(name)?);
            group.routes = routes.clone();
            group.balance = self.balance.clone();
            Some(group)
        };
        let groups = self.routes.iter().filter_map(group).collect();
        Proxy::with_groups(config.edge.proxy.clone(), groups).context("edge.proxy")
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

fn parsed(name: &str, group: &UpstreamGroup) -> Result<(Vec<Target>, Health)> {
    ensure!(!group.addresses.is_empty(), "upstreams.{name}.addresses: name a server, as HOST:PORT");
    let targets = group.addresses.iter().map(|address| address.parse()).collect::<Result<_, _>>();
    let targets = targets.with_context(|| format!("upstreams.{name}.addresses"))?;
    let health = group.health.parse().with_context(|| format!("upstreams.{name}.health"))?;
    Ok((targets, health))
}
