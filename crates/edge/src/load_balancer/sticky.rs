//! Keeps a client at one upstream, without a table of clients.

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::Error;

/// What in a request tells one client from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sticky {
    Nothing,
    Header(HeaderName),
    Cookie(String),
}

/// What a request says of its client, and the cookie that the client is to be given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stickiness {
    /// For [`pick`](crate::LoadBalancer::pick).
    pub(crate) key: Option<u64>,
    cookie: Option<HeaderValue>,
}

/// A cookie on its way to the client, past the response cache, which must neither keep nor fear it.
#[derive(Clone, Debug)]
struct NewCookie(HeaderValue);

impl Sticky {
    /// Parses `header:NAME`, `cookie:NAME` or nothing.
    pub(crate) fn new(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidSticky { text: text.to_owned() };
        match text.split_once(':') {
            None if text.is_empty() => Ok(Self::Nothing),
            Some(("header", name)) => Ok(Self::Header(name.parse().map_err(|_| invalid())?)),
            // A cookie's name is a token, as a header's is, but its case counts.
            Some(("cookie", name)) if name.parse::<HeaderName>().is_ok() => Ok(Self::Cookie(name.to_owned())),
            _ => Err(invalid()),
        }
    }

    /// Looks at a request. A client without the cookie gets a new one, which already decides where this request goes.
    pub(crate) fn of(&self, headers: &HeaderMap, secure: bool) -> Stickiness {
        match self {
            Self::Nothing => Stickiness::default(),
            Self::Header(name) => {
                Stickiness { key: headers.get(name).map(|value| hash(value.as_bytes())), cookie: None }
            }
            Self::Cookie(name) => match cookie(headers, name) {
                Some(value) => Stickiness { key: Some(hash(value)), cookie: None },
                None => {
                    let value = format!("{:016x}", rand::random::<u64>());
                    let key = Some(hash(value.as_bytes()));
                    let secure = if secure { "; Secure" } else { "" };
                    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax{secure}");
                    Stickiness { key, cookie: HeaderValue::try_from(cookie).ok() }
                }
            },
        }
    }
}

impl Stickiness {
    /// Lets [`set_cookie`] know what the client of this answer is to be given.
    pub(crate) fn mark<B>(self, response: &mut Response<B>) {
        if let Some(cookie) = self.cookie {
            response.extensions_mut().insert(NewCookie(cookie));
        }
    }
}

/// Sets the cookie that [`Stickiness::mark`] left, if any: after the response cache, so that it reaches this client alone.
pub(crate) fn set_cookie<B>(response: &mut Response<B>) {
    if let Some(NewCookie(cookie)) = response.extensions_mut().remove() {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs =
        headers.get_all(COOKIE).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    pairs
        .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .find(|value| !value.is_empty())
}

/// FNV-1a, mixed: the same in every process and every release, which the standard library's hashes are not.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fnv))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(cookies: &[&'static str]) -> HeaderMap {
        cookies.iter().map(|cookie| (COOKIE, HeaderValue::from_static(cookie))).collect()
    }

    #[test]
    fn what_makes_clients_sticky_is_one_word_and_a_name() {
        assert_eq!(Sticky::new("").unwrap(), Sticky::Nothing);
        assert_eq!(Sticky::new("cookie:Who").unwrap(), Sticky::Cookie("Who".to_owned()));
        assert_eq!(Sticky::new("header:X-Who").unwrap(), Sticky::Header(HeaderName::from_static("x-who")));
        for text in ["cookie", "cookie:", "header:a b", "cookie:a=b", "address"] {
            assert!(Sticky::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_client_is_known_by_its_cookie_wherever_that_stands() {
        let sticky = Sticky::new("cookie:who").unwrap();
        let alone = sticky.of(&headers(&["who=7"]), false);
        assert_eq!(alone, sticky.of(&headers(&["a=1; who=7; b=2"]), false));
        assert_eq!(alone, sticky.of(&headers(&["whose=8; Who=9", "x; who=7"]), false));
        assert_ne!(alone.key, sticky.of(&headers(&["who=8"]), false).key);
        assert_eq!(alone.cookie, None);
    }

    #[test]
    fn a_client_without_a_cookie_is_given_one_that_leads_to_the_same_upstream() {
        let sticky = Sticky::new("cookie:who").unwrap();
        let new = sticky.of(&headers(&["other=1; who="]), true);
        let key = new.key;
        let mut response = Response::new(());
        new.mark(&mut response);
        assert!(response.headers().is_empty(), "the response cache would see it");
        set_cookie(&mut response);
        let cookie = response.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax; Secure"), "{cookie}");
        let pair = HeaderValue::try_from(cookie.split(';').next().unwrap()).unwrap();
        assert_eq!(sticky.of(&HeaderMap::from_iter([(COOKIE, pair)]), true).key, key);
    }

    #[test]
    fn without_the_header_a_request_goes_anywhere() {
        let sticky = Sticky::new("header:x-who").unwrap();
        assert_eq!(sticky.of(&HeaderMap::new(), false), Stickiness::default());
    }
}
