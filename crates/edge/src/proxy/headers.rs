//! What a request must have, and what changes in the heads that pass.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, request};

use super::answer::Refusal;
use super::context::{Connection, RequestContext};
use super::framing::digits;

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

// Longer targets are refused with 414; RFC 9112 wants at least 8000 bytes taken.
const MAX_TARGET: usize = 16 * 1024;

/// Whether the request can be forwarded at all, in one meaning only.
pub(super) fn check_request(head: &request::Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host),
        (None, _) if head.version == Version::HTTP_11 => return Err(Refusal::NoHost),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Refusal::TwoHosts),
    };
    if host.is_some_and(|host| !is_host(host.as_bytes())) {
        return Err(Refusal::InvalidHost);
    }
    check_target(head, host)?;
    // hyper and h2 let some of this pass: in HTTP/2 a repeated length, in HTTP/1.1 what is followed in `framing`.
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => {}
        (Some(length), None) if digits(length.as_bytes(), 10).is_some() => {}
        _ => return Err(Refusal::Ambiguous),
    }
    let met = |expected: &HeaderValue| expected.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if head.headers.get_all(EXPECT).iter().all(met) { Ok(()) } else { Err(Refusal::Expectation) }
}

fn check_target(head: &request::Parts, host: Option<&HeaderValue>) -> Result<(), Refusal> {
    if let Some(authority) = head.uri.authority() {
        // `GET http://name/ HTTP/1.1`: the name stands in two places, and only one reading is to be possible.
        let name = authority.as_str().as_bytes();
        if host.is_some_and(|host| !name.eq_ignore_ascii_case(host.as_bytes())) {
            return Err(Refusal::TwoHosts);
        }
        if !is_host(name) {
            return Err(Refusal::InvalidHost);
        }
        if !matches!(head.uri.scheme_str(), Some("http" | "https")) {
            return Err(Refusal::InvalidTarget);
        }
    } else if host.is_none() && head.version > Version::HTTP_11 {
        return Err(Refusal::NoHost);
    }
    let path = head.uri.path();
    if path.len() + head.uri.query().map_or(0, str::len) > MAX_TARGET {
        return Err(Refusal::LongTarget);
    }
    let asterisk = path == "*" && head.method == Method::OPTIONS;
    if path.starts_with('/') || asterisk { Ok(()) } else { Err(Refusal::InvalidTarget) }
}

/// Whom a request that was checked is for; empty where it does not say.
pub(super) fn host(head: &request::Parts) -> &str {
    match head.headers.get(HOST) {
        Some(host) => host.to_str().unwrap_or_default(),
        None => head.uri.authority().map_or("", |authority| authority.as_str()),
    }
}

/// A name or an address, and perhaps a port. Names that no resolver knows are no loss, nor are those in disguise (`%2e`).
fn is_host(text: &[u8]) -> bool {
    let is_port = |port: &[u8]| port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    if let Some(address) = text.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', address) else { return false };
        let is_address = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
        let rest = &address[end + 1..];
        return end > 0
            && address[..end].iter().all(is_address)
            && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port));
    }
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let (name, port) = match memchr::memchr(b':', text) {
        Some(colon) => (&text[..colon], &text[colon + 1..]),
        None => (text, &b""[..]),
    };
    !name.is_empty() && name.iter().all(is_name) && is_port(port)
}

/// The last address in `X-Forwarded-For` that is not one of the proxies that are believed.
pub(super) fn client_behind(headers: &HeaderMap, trusts: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let mut client = None;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for hop in value.to_str().ok()?.rsplit(',') {
            // Who believes a proxy believes it up to the first thing that it cannot have written.
            let Some(ip) = hop_address(hop.trim()) else { return client };
            client = Some(ip.to_canonical());
            if !trusts(ip.to_canonical()) {
                return client;
            }
        }
    }
    client
}

fn hop_address(hop: &str) -> Option<IpAddr> {
    let address = hop.parse().ok().or_else(|| hop.parse().ok().map(|address: SocketAddr| address.ip()));
    address.or_else(|| hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
}

pub(super) fn address_value(ip: IpAddr) -> HeaderValue {
    value(ip.to_string()).unwrap_or_else(|| HeaderValue::from_static("unknown"))
}

fn value(text: String) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text)).ok()
}

/// Makes a client's head into the one that an upstream gets.
pub(super) fn to_upstream(head: &mut request::Parts, context: &RequestContext) {
    let connection = &context.connection;
    let headers = &mut head.headers;
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    // The switch that the client asks for. What is no HTTP/1.1 has none, and HTTP/2 is not spoken by this door. Of a list
    // it is not known which one becomes of it.
    let upgrade = headers.get(UPGRADE).filter(|to| {
        let to = to.as_bytes().to_ascii_lowercase();
        head.version == Version::HTTP_11 && !to.starts_with(b"h2") && !to.contains(&b',')
    });
    let upgrade = upgrade.filter(|_| connection_names(headers, "upgrade")).cloned();
    let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    remove(headers, |name| is_hop_by_hop(name) || *name == EXPECT || is_claim(name, connection.trusted));
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    } else if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if chunked {
        // A body of unknown length with GET would be sent as no body at all.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let host = headers.get(HOST).cloned().or_else(|| {
        // HTTP/2 has it in the target. HTTP/1.0 may have none at all; then it means where it connected to.
        let authority = head.uri.authority().map(|authority| authority.as_str().to_owned());
        let host = value(authority.unwrap_or_else(|| connection.local.to_string()))?;
        headers.insert(HOST, host.clone());
        Some(host)
    });
    if head.version > Version::HTTP_11 {
        join_cookies(headers);
    }
    if let Some(host) = host {
        claim(headers, context, host);
    }
    head.version = Version::HTTP_11;
}

/// Says whom the request comes from.
fn claim(headers: &mut HeaderMap, context: &RequestContext, host: HeaderValue) {
    let connection = &context.connection;
    let peer = connection.peer_value();
    let forwarded = forwarded(connection, &host);
    let client = if connection.trusted { address_value(context.client) } else { peer.clone() };
    headers.insert(X_REAL_IP, client);
    if connection.trusted {
        append(headers, X_FORWARDED_FOR, peer.clone());
        append(headers, FORWARDED, forwarded);
        headers.entry(X_FORWARDED_HOST).or_insert(host);
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(connection.scheme()));
    } else {
        headers.insert(X_FORWARDED_FOR, peer.clone());
        headers.insert(FORWARDED, forwarded);
        headers.insert(X_FORWARDED_HOST, host);
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(connection.scheme()));
    }
}

/// What this proxy says in `Forwarded` (RFC 7239).
fn forwarded(connection: &Connection, host: &HeaderValue) -> HeaderValue {
    if let Some((known, forwarded)) = &*connection.forwarded.borrow()
        && known == host
    {
        return forwarded.clone();
    }
    let peer = match connection.peer.ip().to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("\"[{ip}]\""),
    };
    // The host was checked: it holds no quotes.
    let name = host.to_str().unwrap_or_default();
    let text = format!("for={peer};host=\"{name}\";proto={}", connection.scheme());
    let forwarded = value(text).unwrap_or_else(|| HeaderValue::from_static("for=unknown"));
    *connection.forwarded.borrow_mut() = Some((host.clone(), forwarded.clone()));
    forwarded
}

/// One line with what was there and this behind it.
fn append(headers: &mut HeaderMap, name: HeaderName, last: HeaderValue) {
    let joined = join(headers.get_all(&name).iter().chain([&last]), b", ");
    headers.insert(name, joined.unwrap_or(last));
}

/// HTTP/2 may cut cookies apart; for HTTP/1.1 they stand on one line.
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_some()
        && let Some(joined) = join(headers.get_all(COOKIE).iter(), b"; ")
    {
        headers.insert(COOKIE, joined);
    }
}

fn join<'v>(values: impl Iterator<Item = &'v HeaderValue>, between: &[u8]) -> Option<HeaderValue> {
    let mut all = Vec::new();
    for value in values {
        if !all.is_empty() {
            all.extend_from_slice(between);
        }
        all.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_maybe_shared(Bytes::from(all)).ok()
}

/// What a client says in the words of a proxy.
fn is_claim(name: &HeaderName, trusted: bool) -> bool {
    let text = name.as_str();
    // CGI, WSGI and PHP read `X_Real_IP` and `X-Real-IP` as one variable.
    text.contains('_')
        || (!trusted
            && (*name == FORWARDED || (text.starts_with("x-forwarded-") && *name != X_FORWARDED_FOR)))
}

/// What concerns one connection and not the message (RFC 9110, section 7.6.1).
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

fn remove(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    // Without these the message would mean something else.
    let stays = |name: &HeaderName| *name == HOST || *name == CONTENT_LENGTH || *name == CONTENT_TYPE;
    let mut named = Vec::new();
    for names in headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok()) {
        for name in names.split(',').map(str::trim) {
            // By far the most frequent name no header.
            if !name.eq_ignore_ascii_case("keep-alive") && !name.eq_ignore_ascii_case("close") {
                named.extend(name.parse().ok().filter(|name| !stays(name)));
            }
        }
    }
    // Usually nothing is to be removed, and then nothing is allocated.
    named.extend(headers.keys().filter(|name| goes(name)).cloned());
    for name in &named {
        headers.remove(name);
    }
}

fn connection_names(headers: &HeaderMap, wanted: &str) -> bool {
    let mut values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.any(|names| names.split(',').any(|name| name.trim().eq_ignore_ascii_case(wanted)))
}

/// Removes from trailers what would change the meaning of the message that they end.
pub(super) fn clean_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |name| {
        is_hop_by_hop(name)
            || is_claim(name, false)
            || matches!(
                name.as_str(),
                "host"
                    | "content-length"
                    | "content-type"
                    | "content-encoding"
                    | "content-range"
                    | "authorization"
                    | "cookie"
                    | "set-cookie"
                    | "cache-control"
                    | "expect"
                    | "trailer"
                    | "x-forwarded-for"
                    | "x-real-ip"
            )
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for host in ["a", "a.example:8080", "127.0.0.1", "[::1]", "[::1]:80", "under_score", "a:"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a b", "a@b", "a/b", "a,b", "a:b", "a:123456", "[::1", "[]", "[::1]x", "a?b", "a#b",
            "a%2eb", "ä", "a\\b",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn the_client_is_the_last_whom_no_believed_proxy_stands_for() {
        let trusts = |ip: IpAddr| ip.to_string().starts_with("10.");
        let client = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_static(value));
            });
            client_behind(&headers, trusts).map(|ip| ip.to_string())
        };
        assert_eq!(client(&[]), None);
        assert_eq!(client(&["6.6.6.6, 1.2.3.4, 10.0.0.2"]).as_deref(), Some("1.2.3.4"));
        assert_eq!(client(&["6.6.6.6", "1.2.3.4:99", "10.0.0.2"]).as_deref(), Some("1.2.3.4"));
        assert_eq!(client(&["[2001:db8::1]"]).as_deref(), Some("2001:db8::1"));
        assert_eq!(client(&["10.0.0.1, 10.0.0.2"]).as_deref(), Some("10.0.0.1"));
        assert_eq!(client(&["1.2.3.4, garbage, 10.0.0.2"]).as_deref(), Some("10.0.0.2"));
    }
}
