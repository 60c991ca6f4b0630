//! How patient the proxy is, and how much it takes on.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::framing::MAX_LINE;
use crate::{
    AccessLogConfig, BalanceConfig, CacheConfig, CompressionConfig, Error, OverloadConfig, RateLimit,
};

/// Deadlines and limits of a [`Proxy`](crate::Proxy).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ProxyConfig {
    /// Threads that serve, each with its own listener; 0, the default, for one a core.
    pub threads: usize,
    /// Time for a request's head to arrive, from its first byte; 10 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub header_timeout: Duration,
    /// Time for which an idle connection of a client is kept; 75 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub idle_timeout: Duration,
    /// Longest silence of a client in the middle of its request's body; 60 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub body_timeout: Duration,
    /// Time to connect to an upstream; 2 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub connect_timeout: Duration,
    /// Time for the head of an answer, once the upstream has the request; 60 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub answer_timeout: Duration,
    /// Longest silence of an upstream in the middle of its answer's body; 10 min by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub answer_body_timeout: Duration,
    /// Longest time for which a client takes nothing of its answer; 60 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub write_timeout: Duration,
    /// Longest time for a whole request, from its head to the end of its answer; 0 s, the default, for no limit.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub total_timeout: Duration,
    /// Time for which a request waits for an upstream to become healthy when none is; 5 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub upstream_wait: Duration,
    /// Time for which an idle connection to an upstream is kept; 4 s by default, which is less than the 5 s
    /// after which Node.js closes it, so that a request seldom meets a connection that is just closing.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub upstream_idle_timeout: Duration,
    /// Idle connections kept for each upstream; 256 by default.
    pub max_idle_per_upstream: usize,
    /// Client connections served at once, beyond which new ones wait to be accepted; 10000 by default.
    pub max_connections: usize,
    /// Largest head of a request in bytes, at most 65536; 32768 by default.
    pub max_head_size: usize,
    /// Header fields that a request may have; 100 by default.
    pub max_headers: usize,
    /// Time for running requests to finish after the proxy was told to stop; 30 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub drain_timeout: Duration,
    /// Time in which, when the proxy stops, an idle connection may still bring a request, its last; 2 s by default.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schemars", schemars(with = "String"))]
    pub drain_idle_timeout: Duration,
    /// TLS towards clients.
    pub tls: TlsConfig,
    /// Whom the proxy believes what they say of their clients.
    pub trust: TrustConfig,
    /// How requests are spread over upstreams.
    pub balance: BalanceConfig,
    /// How much is taken on.
    pub overload: OverloadConfig,
    /// The response cache.
    pub cache: CacheConfig,
    /// Compression of answers.
    pub compression: CompressionConfig,
    /// The access log.
    pub access_log: AccessLogConfig,
    /// Limits on the rate of requests; none by default.
    pub rate_limits: Vec<RateLimit>,
}

/// TLS towards clients, with HTTP/2 where they offer it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate and those that it is signed by; empty, the default, for no TLS. It is read again
    /// when it changes.
    pub certificate: PathBuf,
    /// PEM file with the private key; empty by default.
    pub key: PathBuf,
}

/// Whom the proxy believes what they say of their clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TrustConfig {
    /// Networks, such as `10.0.0.0/8`, of proxies whose `X-Forwarded-…` and `Forwarded` are believed; none by default.
    #[cfg_attr(feature = "schemars", schemars(with = "Vec<String>"))]
    pub proxies: Vec<IpNet>,
    /// Whether connections begin with a PROXY protocol header, version 1 or 2; false by default. It is accepted from
    /// `proxies` alone.
    pub proxy_protocol: bool,
}

impl ProxyConfig {
    /// Whether a proxy can be made of it.
    pub(super) fn check(&self) -> Result<(), Error> {
        let positive = [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("body_timeout", self.body_timeout),
            ("connect_timeout", self.connect_timeout),
            ("answer_timeout", self.answer_timeout),
            ("answer_body_timeout", self.answer_body_timeout),
            ("write_timeout", self.write_timeout),
        ];
        if let Some((key, _)) = positive.into_iter().find(|(_, value)| value.is_zero()) {
            return Err(Error::invalid_config(key, "must be longer than 0 s"));
        }
        if self.max_connections == 0 {
            return Err(Error::invalid_config("max_connections", "must be at least 1"));
        }
        if !(1024..=MAX_LINE).contains(&self.max_head_size) {
            return Err(Error::invalid_config("max_head_size", "must be between 1024 and 65536 bytes"));
        }
        if self.max_headers == 0 {
            return Err(Error::invalid_config("max_headers", "must be at least 1"));
        }
        if self.tls.certificate.as_os_str().is_empty() != self.tls.key.as_os_str().is_empty() {
            return Err(Error::invalid_config("tls", "needs both `certificate` and `key`, or neither"));
        }
        if !self.cache.tag_header.is_empty() && http::HeaderName::try_from(&self.cache.tag_header).is_err() {
            return Err(Error::invalid_config("cache.tag_header", "is no name of a header"));
        }
        if self.trust.proxy_protocol && self.trust.proxies.is_empty() {
            return Err(Error::invalid_config("trust.proxy_protocol", "needs `trust.proxies` to believe"));
        }
        self.overload.check()
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(60),
            answer_body_timeout: Duration::from_secs(600),
            write_timeout: Duration::from_secs(60),
            total_timeout: Duration::ZERO,
            upstream_wait: Duration::from_secs(5),
            upstream_idle_timeout: Duration::from_secs(4),
            max_idle_per_upstream: 256,
            max_connections: 10_000,
            max_head_size: 32 * 1024,
            max_headers: 100,
            drain_timeout: Duration::from_secs(30),
            drain_idle_timeout: Duration::from_secs(2),
            tls: TlsConfig::default(),
            trust: TrustConfig::default(),
            balance: BalanceConfig::default(),
            overload: OverloadConfig::default(),
            cache: CacheConfig::default(),
            compression: CompressionConfig::default(),
            access_log: AccessLogConfig::default(),
            rate_limits: Vec::new(),
        }
    }
}
