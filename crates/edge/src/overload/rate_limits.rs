//! How many requests of one kind are let through in a time.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, request};
use tokio::time::Instant;

use super::RateLimit;
use crate::Error;
use crate::proxy::answer::Refusal;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Keys of one limit that are told apart at once: 1 MiB.
const SLOTS: usize = 64 * 1024;
/// Where a key may stand.
const WAYS: usize = 8;
/// As long a time as a limit may look into the future.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The limits of a proxy, as all its threads share them.
#[derive(Debug)]
pub(crate) struct RateLimits {
    rules: Vec<Rule>,
    hasher: RandomState,
    epoch: Instant,
}

/// What a client is told of the limits that its request counts for.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    policies: String,
    states: String,
}

/// A limit by the generic cell rate algorithm (ITU-T I.371), which is a token bucket that needs one number a key: when
/// the bucket will be full again. A key whose bucket is full need not be remembered, so that forgetting those first
/// costs nothing.
#[derive(Debug)]
struct Rule {
    by: By,
    path: String,
    /// The policy's name, as a string of RFC 9651.
    name: String,
    /// Its name, quota and window.
    policy: String,
    /// Nanoseconds in which one request's worth comes back, and in which all of the bucket does.
    interval: u64,
    full: u64,
    slots: Box<[Slot]>,
}

#[derive(Debug)]
enum By {
    Client,
    Header(HeaderName),
    Route,
}

#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    /// Nanoseconds after the epoch at which the key's bucket is full.
    full_at: AtomicU64,
}

impl RateLimits {
    /// # Errors
    /// When a limit limits nothing, or names what cannot be counted by.
    pub(crate) fn new(config: &[RateLimit]) -> Result<Self, Error> {
        let rule = |(index, limit)| {
            Rule::new(limit).map_err(|(key, problem)| {
                Error::invalid_config(format!("rate_limits[{index}].{key}"), problem)
            })
        };
        let rules = config.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
        Ok(Self { rules, hasher: RandomState::new(), epoch: Instant::now() })
    }

    /// Counts a request of this client. Returns what it is to be told, if a limit concerns it, and whether it may pass.
    pub(crate) fn check(
        &self,
        head: &request::Parts,
        client: IpAddr,
    ) -> (Option<Quotas>, Result<(), Refusal>) {
        if self.rules.is_empty() {
            return (None, Ok(()));
        }
        // 64 bits of nanoseconds are 584 years.
        let now = self.epoch.elapsed().as_nanos() as u64;
        let path = head.uri.path();
        let mut quotas = None;
        let mut charged: Vec<(&Rule, &Slot)> = Vec::new();
        for rule in self.rules.iter().filter(|rule| is_under(path, &rule.path)) {
            let slot = rule.slot(self.key(rule, head, client), now);
            let quotas = quotas.get_or_insert_with(Quotas::default);
            match rule.charge(slot, now) {
                Ok(full_at) => {
                    charged.push((rule, slot));
                    quotas.add(rule, full_at.saturating_sub(now));
                }
                Err(wait) => {
                    // A request that does not pass counts nowhere.
                    charged.iter().for_each(|(rule, slot)| rule.refund(slot));
                    quotas.add(rule, rule.full);
                    let seconds = wait.div_ceil(1_000_000_000).try_into().unwrap_or(u32::MAX);
                    return (Some(std::mem::take(quotas)), Err(Refusal::Limited(seconds)));
                }
            }
        }
        (quotas, Ok(()))
    }

    fn key(&self, rule: &Rule, head: &request::Parts, client: IpAddr) -> u64 {
        let hash = match &rule.by {
            By::Route => 0,
            By::Client => self.hasher.hash_one(network(client)),
            // Who leaves the header out is not free of the limit.
            By::Header(name) => match head.headers.get(name) {
                Some(value) => self.hasher.hash_one((1, value.as_bytes())),
                None => self.hasher.hash_one(network(client)),
            },
        };
        // Zero is a slot that nobody has.
        hash.max(1)
    }
}

impl Rule {
    fn new(config: &RateLimit) -> Result<Self, (&'static str, String)> {
        let by = match config.by.split_once(':') {
            None if config.by == "client" => By::Client,
            None if config.by == "route" => By::Route,
            Some(("header", name)) => By::Header(
                name.parse().map_err(|_| ("by", format!("names no header that there can be: {name:?}")))?,
            ),
            _ => {
                return Err(("by", format!("must be client, route or header:NAME, and not {:?}", config.by)));
            }
        };
        if !config.path.starts_with('/') || !config.path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(("path", format!("must begin with / and be as in a request: {:?}", config.path)));
        }
        if config.requests == 0 {
            return Err(("requests", "must be at least 1".to_owned()));
        }
        let burst = if config.burst == 0 { config.requests } else { config.burst };
        let interval = config.per.as_nanos() / u128::from(config.requests);
        let full = interval * u128::from(burst);
        if interval == 0 || full > LONGEST.as_nanos() {
            return Err((
                "per",
                "must be longer than 1 ns a request, and a burst's at most 1 day".to_owned(),
            ));
        }
        // Both fit, as they are at most a day.
        let (interval, full) = (interval as u64, full as u64);
        let path = if config.path == "/" { String::new() } else { format!(" {}", config.path) };
        let name = format!("{}{path}", config.by).replace('\\', r"\\").replace('"', r#"\""#);
        let name = format!("\"{name}\"");
        let policy = format!("{name};q={burst};w={}", full.div_ceil(1_000_000_000));
        let slots = if matches!(by, By::Route) { WAYS } else { SLOTS };
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Ok(Self { by, path: config.path.clone(), name, policy, interval, full, slots })
    }

    /// The key's slot, or one that it may have. Where two threads take one slot for two keys at the same time, one
    /// request is counted for the wrong one.
    fn slot(&self, key: u64, now: u64) -> &Slot {
        let set = key as usize % (self.slots.len() / WAYS) * WAYS;
        let ways = &self.slots[set..set + WAYS];
        if let Some(slot) = ways.iter().find(|slot| slot.key.load(Ordering::Relaxed) == key) {
            return slot;
        }
        let full_at = |slot: &&Slot| slot.full_at.load(Ordering::Relaxed);
        // There are as many as `WAYS`.
        let slot = ways.iter().min_by_key(full_at).unwrap_or(&ways[0]);
        slot.key.store(key, Ordering::Relaxed);
        slot.full_at.store(now, Ordering::Relaxed);
        slot
    }

    /// When the bucket will be full, with this request taken from it; or how long it is until there is one to take.
    fn charge(&self, slot: &Slot, now: u64) -> Result<u64, u64> {
        let mut full_at = slot.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now) + self.interval;
            if next - now > self.full {
                return Err(next - now - self.full);
            }
            let swapped =
                slot.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                Ok(_) => return Ok(next),
                Err(other) => full_at = other,
            }
        }
    }

    fn refund(&self, slot: &Slot) {
        let less = |full_at: u64| Some(full_at.saturating_sub(self.interval));
        // It always gives something.
        let _ = slot.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

impl Quotas {
    fn add(&mut self, rule: &Rule, until_full: u64) {
        use std::fmt::Write;
        if !self.policies.is_empty() {
            self.policies.push_str(", ");
            self.states.push_str(", ");
        }
        self.policies.push_str(&rule.policy);
        let remaining = (rule.full - until_full.min(rule.full)) / rule.interval;
        let seconds = until_full.div_ceil(1_000_000_000);
        // Writing to a string does not fail.
        let _ = write!(self.states, "{};r={remaining};t={seconds}", rule.name);
    }

    /// Adds the fields of draft-ietf-httpapi-ratelimit-headers to an answer.
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        for (name, value) in [(POLICY, self.policies), (STATE, self.states)] {
            // Of what may stand in a path all may stand in a header.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(name, value);
            }
        }
    }
}

/// What is one client: an IPv4 address, or an IPv6 network of the size that one subscriber gets (RFC 6177).
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

/// Whether the path is the prefix, or below it.
pub(super) fn is_under(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn limits(limit: RateLimit) -> RateLimits {
        RateLimits::new(&[limit]).unwrap()
    }

    fn head(path: &str, key: Option<&str>) -> request::Parts {
        let mut request = Request::builder().uri(path);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn passes(limits: &RateLimits, path: &str, key: Option<&str>, client: &str) -> bool {
        limits.check(&head(path, key), client.parse().unwrap()).1.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_so_many_a_second() {
        let limits = limits(RateLimit { requests: 10, burst: 3, ..RateLimit::default() });
        let passed = |count: usize| (0..count).filter(|_| passes(&limits, "/", None, "192.0.2.1")).count();
        assert_eq!(passed(9), 3);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(passed(9), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(passed(9), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn the_client_is_told_what_is_left_and_when_to_come_back() {
        let limits = limits(RateLimit {
            requests: 2,
            per: Duration::from_secs(10),
            path: "/api".into(),
            ..RateLimit::default()
        });
        let mut told = Vec::new();
        for _ in 0..3 {
            let (quotas, passes) = limits.check(&head("/api/x", None), "192.0.2.1".parse().unwrap());
            let mut headers = HeaderMap::new();
            quotas.unwrap().tell(&mut headers);
            told.push(format!("{} {passes:?}", headers["ratelimit"].to_str().unwrap()));
            assert_eq!(headers["ratelimit-policy"], r#""client /api";q=2;w=10"#);
        }
        assert_eq!(
            told,
            [
                r#""client /api";r=1;t=5 Ok(())"#,
                r#""client /api";r=0;t=10 Ok(())"#,
                r#""client /api";r=0;t=10 Err(Limited(5))"#
            ]
        );
        assert!(limits.check(&head("/apix", None), "192.0.2.1".parse().unwrap()).0.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_networks_and_keys_are_counted_apart() {
        let one = RateLimit { requests: 1, ..RateLimit::default() };
        let by_client = limits(one.clone());
        assert!(passes(&by_client, "/", None, "192.0.2.1"));
        assert!(!passes(&by_client, "/", None, "::ffff:192.0.2.1"), "the same address");
        assert!(passes(&by_client, "/", None, "192.0.2.2"));
        assert!(passes(&by_client, "/", None, "2001:db8::1"));
        assert!(!passes(&by_client, "/", None, "2001:db8::2"), "the same /64");
        assert!(passes(&by_client, "/", None, "2001:db8:0:1::1"));
        let by_key = limits(RateLimit { by: "header:X-Api-Key".into(), ..one.clone() });
        assert!(passes(&by_key, "/", Some("a"), "192.0.2.1"));
        assert!(!passes(&by_key, "/", Some("a"), "192.0.2.2"));
        assert!(passes(&by_key, "/", None, "192.0.2.1"));
        assert!(!passes(&by_key, "/", None, "192.0.2.1"), "without a key the address counts");
        let by_route = limits(RateLimit { by: "route".into(), ..one });
        assert!(passes(&by_route, "/", None, "192.0.2.1"));
        assert!(!passes(&by_route, "/", None, "192.0.2.2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_one_limit_refuses_counts_for_no_other() {
        let wide = RateLimit { requests: 3, ..RateLimit::default() };
        let narrow = RateLimit { requests: 1, path: "/login".into(), ..RateLimit::default() };
        let limits = RateLimits::new(&[wide, narrow]).unwrap();
        assert!(passes(&limits, "/login", None, "192.0.2.1"));
        assert!((0..5).all(|_| !passes(&limits, "/login", None, "192.0.2.1")));
        assert!(passes(&limits, "/", None, "192.0.2.1"));
        assert!(passes(&limits, "/", None, "192.0.2.1"));
        assert!(!passes(&limits, "/", None, "192.0.2.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_keys_does_not_free_one_that_is_at_its_limit() {
        let limits = limits(RateLimit { requests: 100, ..RateLimit::default() });
        while passes(&limits, "/", None, "192.0.2.1") {}
        for address in 0..100_000_u32 {
            passes(&limits, "/", None, &IpAddr::from(address.to_be_bytes()).to_string());
        }
        assert!(!passes(&limits, "/", None, "192.0.2.1"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let problem = |limit: RateLimit| RateLimits::new(&[limit]).unwrap_err().to_string();
        let some = RateLimit::default;
        assert_eq!(
            problem(RateLimit { by: "cookie".into(), ..some() }),
            r#"`rate_limits[0].by` must be client, route or header:NAME, and not "cookie""#
        );
        assert!(problem(RateLimit { by: "header:a b".into(), ..some() }).contains("names no header"));
        assert!(problem(RateLimit { path: "api".into(), ..some() }).contains("must begin with /"));
        assert!(problem(RateLimit { requests: 0, ..some() }).contains("at least 1"));
        assert!(problem(RateLimit { per: Duration::ZERO, ..some() }).contains("`rate_limits[0].per`"));
        assert!(problem(RateLimit { per: Duration::MAX, ..some() }).contains("`rate_limits[0].per`"));
    }

    proptest! {
        #[test]
        fn no_more_pass_in_any_time_than_burst_and_rate_allow(
            requests in 1..50_u32, burst in 1..50_u32, gaps in prop::collection::vec(0..200_000_000_u64, 1..200),
        ) {
            let rule = Rule::new(&RateLimit { requests, burst, ..RateLimit::default() }).unwrap();
            let (mut now, mut passed) = (1, 0_u64);
            let slot = rule.slot(7, now);
            for gap in gaps {
                now += gap;
                passed += u64::from(rule.charge(slot, now).is_ok());
                prop_assert!(passed <= u64::from(burst) + now / rule.interval);
            }
        }
    }
}
