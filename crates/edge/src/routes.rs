//! Which group of upstreams a request goes to.

use std::cmp::Ordering;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::load_balancer::Released;
use crate::load_balancer::sticky::Sticky;
use crate::retry_budget::RetryBudget;
use crate::{BalanceConfig, Error, LoadBalancer, OverloadConfig, Upstreams};

/// Upstreams that answer alike, and which requests are theirs.
///
/// ```
/// use greenwave_edge::{Group, Route, Upstreams};
///
/// let api = Upstreams::fixed(["127.0.0.1:3000".parse()?]).into_watch();
/// let mut group = Group::new("api", api);
/// group.routes = vec![Route { host: "*.example.com".into(), path: "/api".into() }];
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Group {
    /// Its name, for logs and metrics; no two have the same.
    pub name: String,
    /// The requests that it answers; none for all that no other group does.
    pub routes: Vec<Route>,
    /// Its upstreams. Those that drain are released for each group apart, so no server should be in two.
    pub upstreams: watch::Receiver<Upstreams>,
    /// How requests are spread over them.
    pub balance: BalanceConfig,
}

impl Group {
    /// A group for all requests, balanced as by default.
    pub fn new(name: impl Into<String>, upstreams: watch::Receiver<Upstreams>) -> Self {
        Self { name: name.into(), routes: Vec::new(), upstreams, balance: BalanceConfig::default() }
    }
}

/// Requests for one host or several, below one path.
///
/// Of several routes that fit, the one with the most specific host counts: a name before `*.` before any; among those
/// the one with the longest path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Route {
    /// A host without its port, `*.` and a domain for all hosts below it, or nothing, the default, for any host.
    pub host: String,
    /// Where paths begin, up to a `/` or their end: `/api` is for `/api` and `/api/1` and not for `/apis`; nothing, the
    /// default, is for all. It is compared as it was sent, without decoding.
    pub path: String,
}

/// A group at work.
#[derive(Debug)]
pub(crate) struct ActiveGroup {
    pub(crate) name: String,
    pub(crate) balancer: LoadBalancer,
    pub(crate) sticky: Sticky,
    pub(crate) retries: RetryBudget,
}

/// All groups of a proxy.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<Arc<ActiveGroup>>,
    // The most specific first.
    routes: Vec<(Host, String, Arc<ActiveGroup>)>,
    released: Released,
}

/// Declared in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Name(String),
    /// With its dot in front.
    Below(String),
    Any,
}

impl Groups {
    pub(crate) fn new(groups: Vec<Group>, overload: &OverloadConfig) -> Result<Self, Error> {
        let released = Released::default();
        let mut all: Vec<Arc<ActiveGroup>> = Vec::new();
        let mut routes: Vec<(Host, String, Arc<ActiveGroup>)> = Vec::new();
        for mut group in groups {
            if all.iter().any(|other| other.name == group.name) {
                return Err(Error::DuplicateGroup { group: group.name });
            }
            if group.routes.is_empty() {
                group.routes.push(Route::default());
            }
            let active = Arc::new(ActiveGroup {
                name: group.name,
                sticky: Sticky::new(&group.balance.sticky)?,
                retries: RetryBudget::new(&group.balance),
                balancer: LoadBalancer::limited(
                    group.balance,
                    overload.clone(),
                    group.upstreams,
                    Arc::clone(&released),
                ),
            });
            for route in group.routes {
                let (host, path) = parse(&route)?;
                if let Some((.., other)) = routes.iter().find(|(of, at, _)| *of == host && *at == path) {
                    let groups = [other.name.clone(), active.name.clone()];
                    return Err(Error::DuplicateRoute { host: route.host, path: route.path, groups });
                }
                routes.push((host, path, Arc::clone(&active)));
            }
            all.push(active);
        }
        routes.sort_by(|(host, path, _), (other, at, _)| host.order(other).then(at.len().cmp(&path.len())));
        Ok(Self { groups: all, routes, released })
    }

    /// The group for a request to this host, with or without its port, and this path, without its query.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<&Arc<ActiveGroup>> {
        // The usual case: one group for everything.
        if let [(Host::Any, prefix, group)] = &self.routes[..]
            && prefix.is_empty()
        {
            return Some(group);
        }
        let host = without_port(host);
        let fits = |(of, prefix, _): &&(Host, String, _)| of.fits(host) && is_below(path, prefix);
        self.routes.iter().find(fits).map(|(.., group)| group)
    }

    /// Addresses that drain and have nothing in flight.
    pub(crate) fn released(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.released.subscribe()
    }

    /// Takes over changes of the groups' lists as they happen. Runs until it is dropped, on the caller's runtime.
    pub(crate) async fn follow(&self) {
        let mut followers = JoinSet::new();
        for group in &self.groups {
            let group = Arc::clone(group);
            followers.spawn(async move { group.balancer.follow().await });
        }
        while followers.join_next().await.is_some() {}
        // There may be no group.
        std::future::pending().await
    }
}

impl Host {
    fn fits(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Name(name) => host.eq_ignore_ascii_case(name),
            Self::Below(domain) => {
                let at = host.len().saturating_sub(domain.len());
                at > 0 && host.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(domain))
            }
        }
    }

    /// Names first, then domains, the longest first.
    fn order(&self, other: &Self) -> Ordering {
        let rank = |host: &Self| match host {
            Self::Name(_) => (0, 0),
            Self::Below(domain) => (1, usize::MAX - domain.len()),
            Self::Any => (2, 0),
        };
        rank(self).cmp(&rank(other))
    }
}

/// Checks a route and brings it into the form in which it is compared.
fn parse(route: &Route) -> Result<(Host, String), Error> {
    let invalid = |reason| Error::InvalidRoute { host: route.host.clone(), path: route.path.clone(), reason };
    let host = match route.host.as_str() {
        "" => Host::Any,
        host if host.contains('/') || without_port(host) != host => {
            return Err(invalid("its host must be a name without scheme, port and final dot"));
        }
        host => match host.strip_prefix('*') {
            None if host.contains('*') => {
                return Err(invalid("`*` stands only before a domain, as in *.example.com"));
            }
            None => Host::Name(host.to_ascii_lowercase()),
            Some(domain) if domain.len() > 1 && domain.starts_with('.') && !domain.contains('*') => {
                Host::Below(domain.to_ascii_lowercase())
            }
            Some(_) => return Err(invalid("`*` stands only before a domain, as in *.example.com")),
        },
    };
    if !route.path.is_empty() && !route.path.starts_with('/') {
        return Err(invalid("its path must begin with /"));
    }
    if route.path.contains(['?', '#', '*']) {
        return Err(invalid("its path is a plain prefix, without pattern or query"));
    }
    // `/api/` and `/api` are the same.
    Ok((host, route.path.trim_end_matches('/').to_owned()))
}

fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn group(name: &str, routes: &[(&str, &str)]) -> Group {
        let mut group = Group::new(name, Upstreams::default().into_watch());
        group.routes =
            routes.iter().map(|(host, path)| Route { host: (*host).into(), path: (*path).into() }).collect();
        group
    }

    fn all(groups: Vec<Group>) -> Result<Groups, Error> {
        Groups::new(groups, &OverloadConfig::default())
    }

    fn check(groups: &Groups, host: &str, path: &str, expected: &str) {
        let found = groups.find(host, path).map_or("none", |group| &group.name);
        assert_eq!(found, expected, "{host}{path}");
    }

    #[test]
    fn one_group_without_routes_answers_everything() {
        let groups = all(vec![group("all", &[])]).unwrap();
        check(&groups, "example.com", "/", "all");
        check(&groups, "", "*", "all");
    }

    #[test]
    fn the_most_specific_host_and_then_the_longest_path_counts() {
        let groups = all(vec![
            group("any", &[]),
            group("below", &[("*.example.com", "")]),
            group("deep", &[("*.eu.example.com", ""), ("*.example.com", "/deep")]),
            group("api", &[("www.example.com", "/api"), ("", "/api")]),
            group("v2", &[("www.example.com", "/api/v2/")]),
        ])
        .unwrap();
        for (host, path, expected) in [
            ("www.example.com", "/api", "api"),
            ("WWW.Example.com:8080", "/api/1", "api"),
            ("www.example.com.", "/api/v2", "v2"),
            ("www.example.com", "/api/v2/x", "v2"),
            ("www.example.com", "/apis", "below"),
            ("www.example.com", "/", "below"),
            ("a.eu.example.com", "/api", "deep"),
            ("b.example.com", "/deep/er", "deep"),
            ("example.com", "/", "any"),
            (".example.com", "/", "any"),
            ("badexample.com", "/api/x", "api"),
            ("[::1]:8080", "/api", "api"),
        ] {
            check(&groups, host, path, expected);
        }
    }

    #[test]
    fn without_a_fitting_route_there_is_no_group() {
        let groups = all(vec![group("api", &[("[::1]", "/api")])]).unwrap();
        check(&groups, "[::1]:80", "/api", "api");
        check(&groups, "[::1]", "/", "none");
        check(&groups, "[::2]", "/api", "none");
    }

    fn refused(groups: Vec<Group>, expected: Expect) {
        expected.assert_eq(&all(groups).unwrap_err().to_string());
    }

    #[test]
    fn two_groups_for_the_same_requests_are_refused() {
        refused(
            vec![group("a", &[("Example.com", "/x/")]), group("b", &[("example.com", "/x")])],
            expect![[r#"two groups, a and b, have the same route: host "example.com", path "/x""#]],
        );
        refused(
            vec![group("a", &[]), group("b", &[])],
            expect![[r#"two groups, a and b, have the same route: host "", path """#]],
        );
        refused(
            vec![group("a", &[]), group("a", &[("", "/a")])],
            expect!["two groups are called a; give each its own name"],
        );
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for (host, path) in [
            ("http://example.com", ""),
            ("example.com:80", ""),
            ("*", ""),
            ("*example.com", ""),
            ("a.*.com", ""),
            ("*.", ""),
            ("", "api"),
            ("", "/api/*"),
            ("", "/api?x=1"),
        ] {
            assert!(all(vec![group("a", &[(host, path)])]).is_err(), "{host}{path}");
        }
        refused(
            vec![group("a", &[("", "api")])],
            expect![[r#"the route with host "" and path "api" is invalid: its path must begin with /"#]],
        );
    }
}
