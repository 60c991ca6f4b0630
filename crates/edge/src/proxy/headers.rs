//! What a request must have, and what changes in the heads that pass.

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, request};

use super::answer::Refusal;
use super::context::RequestContext;

const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

// What concerns one connection and not the message (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("te"),
    HeaderName::from_static("trailer"),
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Whether the request can be forwarded at all.
pub(super) fn check_request(head: &request::Parts) -> Result<(), Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host),
        (None, _) if head.version < Version::HTTP_11 => None,
        (None, _) => return Err(Refusal::NoHost),
        (Some(_), Some(_)) => return Err(Refusal::TwoHosts),
    };
    if host.is_some_and(|host| !is_host(host)) {
        return Err(Refusal::InvalidHost);
    }
    // `GET http://name/ HTTP/1.1`: the name stands in two places, and only one reading is to be possible.
    if let (Some(authority), Some(host)) = (head.uri.authority(), host)
        && !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes())
    {
        return Err(Refusal::TwoHosts);
    }
    Ok(())
}

fn is_host(value: &HeaderValue) -> bool {
    let text = value.to_str().unwrap_or("@");
    text.is_empty() || (!text.contains('@') && text.parse::<Authority>().is_ok())
}

/// Makes a client's head into the one that an upstream gets.
pub(super) fn to_upstream(head: &mut request::Parts, context: &RequestContext) {
    let chunked = head.headers.contains_key(TRANSFER_ENCODING);
    if head.version < Version::HTTP_11
        && !head.headers.contains_key(HOST)
        && let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(HOST, host);
    }
    let protocol = upgrade(head);
    remove_hop_by_hop(&mut head.headers);
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
    }
    remove_claims(&mut head.headers);
    // Answered by this proxy when it begins to read the body.
    head.headers.remove(EXPECT);
    if chunked {
        // hyper would send a body of unknown length with GET as no body at all.
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let peer = context.client.to_string();
    let mut forwarded_for = Vec::new();
    for value in head.headers.get_all(X_FORWARDED_FOR) {
        forwarded_for.extend_from_slice(value.as_bytes());
        forwarded_for.extend_from_slice(b", ");
    }
    forwarded_for.extend_from_slice(peer.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(forwarded_for)) {
        head.headers.insert(X_FORWARDED_FOR, value);
    }
    if let Ok(value) = HeaderValue::from_str(&peer) {
        head.headers.insert(X_REAL_IP, value);
    }
    if let Some(host) = head.headers.get(HOST).cloned() {
        head.headers.insert(X_FORWARDED_HOST, host);
    }
    head.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    head.version = Version::HTTP_11;
}

/// The protocol to which the client asks its connection to be switched.
///
/// Not another HTTP: its requests would pass this proxy unseen. And not behind a body, whose end would have to be found
/// first. Ignoring such a wish is what any server may do.
fn upgrade(head: &request::Parts) -> Option<HeaderValue> {
    let wished = head.version == Version::HTTP_11
        && !head.headers.contains_key(CONTENT_LENGTH)
        && !head.headers.contains_key(TRANSFER_ENCODING);
    let mut protocols = head.headers.get_all(UPGRADE).iter().filter(|_| wished);
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else { return None };
    let tokens = head.headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let named = tokens.into_iter().any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let text = protocol.to_str().ok()?.to_ascii_lowercase();
    let hidden = |name: &str| name.trim().starts_with("h2") || name.trim().starts_with("http") || name.trim().starts_with("tls");
    (named && !text.split(',').any(hidden)).then(|| protocol.clone())
}

/// Removes what a client says about itself in the words of a proxy, apart from `X-Forwarded-For`.
fn remove_claims(headers: &mut HeaderMap) {
    let is_claim = |name: &HeaderName| {
        // CGI, WSGI and PHP read `X_Real_IP` and `X-Real-IP` as one variable.
        name.as_str().contains('_')
            || *name == FORWARDED
            || (name.as_str().starts_with("x-forwarded-") && *name != X_FORWARDED_FOR)
    };
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in &claims {
        headers.remove(name);
    }
}

/// Removes what concerns the connection alone, also what `Connection` names so.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Without these the message would mean something else.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}
