//! Who may look.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

pub(super) struct Doors {
    token: Option<String>,
}

impl Doors {
    pub(super) fn new(token: Option<String>) -> Doors {
        Doors { token }
    }

    fn refusal(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        match &self.token {
            Some(_) if path == "/health" => None,
            Some(token) if shown_token(headers).is_some_and(|shown| same(&shown, token.as_bytes())) => None,
            Some(_) => {
                // With this header a browser asks its user.
                let ask = [(header::WWW_AUTHENTICATE, "Basic realm=\"Greenwave\", charset=\"UTF-8\"")];
                let say =
                    "Give the dashboard's token as a bearer token, or as the password (any user name).\n";
                Some((StatusCode::UNAUTHORIZED, ask, say).into_response())
            }
            None if is_local(headers) => None,
            None => {
                let say = "Without a token the dashboard answers only to localhost and loopback addresses.\n";
                Some((StatusCode::FORBIDDEN, say).into_response())
            }
        }
    }
}

pub(super) async fn check(State(doors): State<Arc<Doors>>, request: Request, next: Next) -> Response {
    let mut response = match doors.refusal(request.uri().path(), request.headers()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(value);
    }
    response
}

const ALWAYS: [(HeaderName, HeaderValue); 7] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];

/// The bearer token, or the password of HTTP Basic.
fn shown_token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, shown) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(shown.trim().as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(shown.trim()).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    Some(pair[colon + 1..].to_vec())
}

/// Compares in a time that tells only the length. An empty token opens nothing.
fn same(shown: &[u8], token: &[u8]) -> bool {
    if shown.len() != token.len() || token.is_empty() {
        return false;
    }
    let difference =
        shown.iter().zip(token).fold(0, |difference, (a, b)| std::hint::black_box(difference | (a ^ b)));
    difference == 0
}

/// A page of another site can point its own name at 127.0.0.1, but its requests then carry that name.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(value: &'static str) -> bool {
        is_local(&HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(value))]))
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for local in ["localhost", "LOCALHOST:8090", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8090"] {
            assert!(host(local), "{local}");
        }
        for foreign in [
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com:8090",
            "10.0.0.1",
            "[::2]",
            "",
            "a@localhost",
        ] {
            assert!(!host(foreign), "{foreign}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }

    #[test]
    fn an_empty_token_opens_nothing() {
        assert!(same(b"sesame", b"sesame"));
        assert!(!same(b"sesamE", b"sesame"));
        assert!(!same(b"sesam", b"sesame"));
        assert!(!same(b"", b""));
    }
}
