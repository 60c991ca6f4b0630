//! What a proxy that is believed says of a request. Upstreams get it and may answer by it, so it counts in the key; what
//! has no place there keeps an answer out of the cache.

use http::header::{FORWARDED, HOST};
use http::{HeaderMap, HeaderValue, Uri};

use super::directives::split_unquoted;

/// What upstreams are told of a request besides the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    /// Whether the client spoke TLS.
    pub(super) secure: bool,
    /// Whether all else is as the key has it.
    pub(super) plain: bool,
}

impl Claims {
    /// Reads what stands in a request over such a proxy's connection, which itself is `secure` or not.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap, secure: bool) -> Self {
        let host = match uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes),
        };
        let scheme = headers.get("x-forwarded-proto").map(HeaderValue::as_bytes);
        let secure = scheme.map_or(secure, |scheme| scheme.eq_ignore_ascii_case(b"https"));
        let is_scheme =
            |text: &[u8]| text.eq_ignore_ascii_case(if secure { &b"https"[..] } else { &b"http"[..] });
        let is_host = |text: &[u8]| text.eq_ignore_ascii_case(host);
        let own_port = host.rsplit(|byte| *byte == b':').next().unwrap_or_default();
        let is_port = |text: &[u8]| text == if secure { b"443" } else { &b"80"[..] } || text == own_port;
        let all = |name: &str, is: &dyn Fn(&[u8]) -> bool| {
            headers.get_all(name).iter().all(|line| is(line.as_bytes().trim_ascii()))
        };
        let plain = all("x-forwarded-proto", &is_scheme)
            && all("x-forwarded-scheme", &is_scheme)
            && all("x-forwarded-host", &is_host)
            && all("x-forwarded-port", &is_port)
            && !headers.contains_key("x-forwarded-prefix")
            && pairs(headers).all(|(name, value)| match name {
                name if name.eq_ignore_ascii_case(b"host") => is_host(value),
                name if name.eq_ignore_ascii_case(b"proto") => is_scheme(value),
                _ => true,
            });
        Self { secure, plain }
    }
}

/// The pairs in `Forwarded` (RFC 7239), whichever hop they are of.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let lines = headers.get_all(FORWARDED).iter();
    let pairs = lines
        .flat_map(|line| split_unquoted(line.as_bytes()).flat_map(|hop| hop.split(|byte| *byte == b';')));
    pairs.filter_map(|pair| {
        let (name, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
        let value = value[1..].trim_ascii();
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some((name.trim_ascii(), unquoted.unwrap_or(value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_proxy_says_is_in_the_key_or_keeps_an_answer_out() {
        for (name, value, expected) in [
            ("x-other", "x", (false, true)),
            ("x-forwarded-proto", "HTTPS", (true, true)),
            ("x-forwarded-proto", "http", (false, true)),
            ("x-forwarded-proto", "https, http", (false, false)),
            ("x-forwarded-scheme", "https", (false, false)),
            ("x-forwarded-host", "Shop.example:81", (false, true)),
            ("x-forwarded-host", "evil.example", (false, false)),
            ("x-forwarded-port", "81", (false, true)),
            ("x-forwarded-port", "80", (false, true)),
            ("x-forwarded-port", "10", (false, false)),
            ("x-forwarded-prefix", "/evil", (false, false)),
            ("forwarded", "for=1.2.3.4;host=\"shop.example:81\" ; proto=http, for=\"[::1]\"", (false, true)),
            ("forwarded", "for=1.2.3.4, Host=evil.example", (false, false)),
            ("forwarded", "proto=https", (false, false)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("shop.example:81"));
            headers.insert(name, HeaderValue::from_static(value));
            let claims = Claims::of(&Uri::from_static("/"), &headers, false);
            assert_eq!((claims.secure, claims.plain), expected, "{name}: {value}");
        }
    }
}
