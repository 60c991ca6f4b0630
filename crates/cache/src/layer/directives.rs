use std::time::Duration;

use http::{
    HeaderMap, HeaderValue,
    header::{AGE, CACHE_CONTROL},
};

/// What a response's `Cache-Control` says to this cache.
pub(super) struct Directives {
    pub(super) refuse: bool,
    /// How long it is still fresh, if it says so.
    pub(super) ttl: Option<Duration>,
}

impl Directives {
    pub(super) fn of(headers: &HeaderMap) -> Directives {
        let (mut refuse, mut shared, mut any) = (false, None, None);
        for value in headers.get_all(CACHE_CONTROL) {
            // What can't be read may be a refusal.
            let Ok(value) = HeaderValue::to_str(value) else {
                refuse = true;
                continue;
            };
            for directive in value.split(',') {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-store" | "no-cache" | "private" => refuse = true,
                    "s-maxage" => shorten(&mut shared, argument),
                    "max-age" => shorten(&mut any, argument),
                    _ => {}
                }
            }
        }
        Directives { refuse, ttl: shared.or(any).map(|ttl: Duration| ttl.saturating_sub(age(headers))) }
    }
}

/// Of two lifetimes the shorter holds, and one that can't be read is none: stale is safer (RFC 9111, section 4.2.1).
fn shorten(ttl: &mut Option<Duration>, argument: &str) {
    let said = seconds(argument.trim().trim_matches('"')).unwrap_or_default();
    *ttl = Some(ttl.map_or(said, |ttl| ttl.min(said)));
}

/// How old a response is said to be. What can't be read is ignored, and so is all but the first (RFC 9111, section
/// 5.1).
pub(super) fn age(headers: &HeaderMap) -> Duration {
    headers.get(AGE).and_then(|age| seconds(age.to_str().ok()?.trim())).unwrap_or_default()
}

/// More than 2^31 counts as that (RFC 9111, section 1.2.2).
fn seconds(digits: &str) -> Option<Duration> {
    let valid = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    valid.then(|| Duration::from_secs(digits.parse().unwrap_or(u64::MAX).min(1 << 31)))
}
