//! Where the remote is: what its URL says.

use std::{fmt, fs};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, ProtocolVersion, RedisError,
    TlsCertificates, io::tcp::TcpSettings,
};

use crate::{Error, RemoteConfig};

pub(super) enum Target {
    Single(ConnectionInfo),
    /// The primary of this name, which one of the sentinels tells; `node` is how to connect to it.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        primary: String,
        node: ConnectionInfo,
    },
    Cluster {
        nodes: Vec<ConnectionInfo>,
        certificates: Option<TlsCertificates>,
    },
}

const SCHEMES: [&str; 9] = [
    "redis",
    "rediss",
    "valkey",
    "valkeys",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
];
const SENTINEL_PORT: u16 = 26_379;

impl Target {
    pub(super) fn parse(url: &str, config: &RemoteConfig) -> Result<Target, Error> {
        let certificates = certificates(config)?;
        let (scheme, rest) = url.split_once(':').unwrap_or_default();
        let scheme = scheme.to_ascii_lowercase();
        if !SCHEMES.contains(&scheme.as_str()) {
            return Err(invalid(format!("it must begin with one of {}", SCHEMES.join(":, ")) + ":"));
        }
        match scheme.split_once('+') {
            None => Ok(Target::Single(info(url, certificates.as_ref())?)),
            Some((scheme, kind)) => Parts::of(scheme, rest)?.target(kind == "cluster", certificates),
        }
    }

    /// Whether connecting needs a provider of cryptography.
    pub(super) fn is_encrypted(&self) -> bool {
        let (Target::Single(info) | Target::Sentinel { node: info, .. }) = self else {
            let Target::Cluster { nodes, .. } = self else { return false };
            return nodes.iter().any(is_encrypted);
        };
        is_encrypted(info)
    }
}

/// A URL that names several hosts, taken apart.
struct Parts<'a> {
    scheme: &'a str,
    /// With its `@`; or empty.
    user: &'a str,
    hosts: Vec<&'a str>,
    path: Vec<&'a str>,
    query: &'a str,
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    fn of(scheme: &'a str, rest: &'a str) -> Result<Parts<'a>, Error> {
        let rest = rest.strip_prefix("//").ok_or_else(|| invalid("`//` must follow its scheme".into()))?;
        let (rest, fragment) = split(rest, '#');
        let (rest, query) = split(rest, '?');
        let (authority, path) = split(rest, '/');
        let (user, hosts) = match authority.rfind('@') {
            Some(at) => authority.split_at(at + 1),
            None => ("", authority),
        };
        let hosts: Vec<&str> = hosts.split(',').collect();
        if hosts.iter().any(|host| host.is_empty()) {
            return Err(invalid("it must name its hosts, separated by commas".into()));
        }
        let path = path.split('/').filter(|part| !part.is_empty()).collect();
        Ok(Parts { scheme, user, hosts, path, query, fragment })
    }

    fn target(&self, is_cluster: bool, certificates: Option<TlsCertificates>) -> Result<Target, Error> {
        let certificates_of = certificates.as_ref();
        let all = |user: &str, database: &str, port: Option<u16>| -> Result<Vec<ConnectionInfo>, Error> {
            let url = |host: &&str| {
                let port =
                    port.filter(|_| !has_port(host)).map(|port| format!(":{port}")).unwrap_or_default();
                let Parts { scheme, fragment, .. } = self;
                let fragment = if fragment.is_empty() { String::new() } else { format!("#{fragment}") };
                format!("{scheme}://{user}{host}{port}/{database}{fragment}")
            };
            self.hosts.iter().map(|host| info(&url(host), certificates_of)).collect()
        };
        match (is_cluster, self.path.as_slice()) {
            (true, []) => Ok(Target::Cluster { nodes: all(self.user, "", None)?, certificates }),
            (true, _) => Err(invalid("a cluster has one database, so its URL ends after the hosts".into())),
            (false, [primary, database @ ..]) if database.len() <= 1 => {
                let database = database.first().copied().unwrap_or_default();
                let nodes = all(self.user, database, None)?;
                let node = nodes.into_iter().next();
                let node = node.ok_or_else(|| invalid("it must name the sentinels".into()))?;
                let sentinels = all(&self.sentinel_user(), "", Some(SENTINEL_PORT))?;
                Ok(Target::Sentinel { sentinels, primary: (*primary).to_owned(), node })
            }
            (false, _) => Err(invalid(
                "after the sentinels it must name the primary, as in redis+sentinel://h1,h2/mymaster/0"
                    .into(),
            )),
        }
    }

    /// Who the sentinels are told this is: of `sentinel_user` and `sentinel_password` in the query.
    fn sentinel_user(&self) -> String {
        let value = |name: &str| {
            let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.clone().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
        };
        match (value("sentinel_user"), value("sentinel_password")) {
            ("", "") => String::new(),
            (user, password) => format!("{user}:{password}@"),
        }
    }
}

fn split(text: &str, at: char) -> (&str, &str) {
    text.split_once(at).unwrap_or((text, ""))
}

/// An IPv6 address has colons too, within brackets.
fn has_port(host: &str) -> bool {
    host.rsplit(']').next().is_some_and(|end| end.contains(':'))
}

fn info(url: &str, certificates: Option<&TlsCertificates>) -> Result<ConnectionInfo, Error> {
    let info: ConnectionInfo = url.parse().map_err(Error::RemoteUrl)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    // A request is one write, and waits for nothing that could go with it.
    let info = info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
    match certificates {
        Some(certificates) if is_encrypted(&info) => {
            let client = Client::build_with_tls(info, certificates.clone()).map_err(Error::RemoteTls)?;
            Ok(client.get_connection_info().clone())
        }
        _ => Ok(info),
    }
}

fn is_encrypted(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

fn certificates(config: &RemoteConfig) -> Result<Option<TlsCertificates>, Error> {
    let read = |path: &std::path::PathBuf| {
        fs::read(path).map_err(|source| Error::RemoteCertificate { path: path.clone(), source })
    };
    let RemoteConfig { tls_ca, tls_certificate, tls_key, .. } = config;
    let root_cert = tls_ca.as_ref().map(read).transpose()?;
    let client_tls = match (tls_certificate, tls_key) {
        (Some(certificate), Some(key)) => {
            Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
        }
        (None, None) => None,
        _ => {
            let what = "tls_certificate and tls_key go together";
            return Err(Error::RemoteTls(RedisError::from((ErrorKind::InvalidClientConfig, what))));
        }
    };
    Ok((root_cert.is_some() || client_tls.is_some()).then_some(TlsCertificates { client_tls, root_cert }))
}

fn invalid(what: String) -> Error {
    let kind = ErrorKind::InvalidClientConfig;
    Error::RemoteUrl(RedisError::from((kind, "the URL is not understood", what)))
}

/// Without the password that the URL may hold.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |infos: &[ConnectionInfo]| {
            infos.iter().map(|info| info.addr().to_string()).collect::<Vec<_>>().join(",")
        };
        match self {
            Target::Single(info) => info.addr().fmt(f),
            Target::Sentinel { sentinels, primary, .. } => write!(f, "{primary} by {}", list(sentinels)),
            Target::Cluster { nodes, .. } => list(nodes).fmt(f),
        }
    }
}
