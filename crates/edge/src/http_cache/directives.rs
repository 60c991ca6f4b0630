//! `Cache-Control` and its kin, read.

use http::header::{CACHE_CONTROL, PRAGMA};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::dictionary;

/// For this cache alone: read before all others, not passed on.
pub(super) const GREENWAVE_CACHE_CONTROL: HeaderName = HeaderName::from_static("greenwave-cache-control");
/// For caches that an origin's owner runs (RFC 9213).
pub(super) const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
/// Its forerunner, which comes with `Surrogate-Key`.
pub(super) const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

// Longer than any answer is kept; RFC 9111 wants at least 2^31 to be held apart from nonsense.
const LONGEST: u32 = 1 << 31;

/// What an answer says of its reuse.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) max_age: Option<u32>,
    pub(super) s_maxage: Option<u32>,
    pub(super) stale_while_revalidate: Option<u32>,
    pub(super) stale_if_error: Option<u32>,
    /// Fields that `private` and `no-cache` name: they may not be given to others.
    pub(super) withheld: Vec<HeaderName>,
    /// Whether they come from a header for caches like this one, in which case `Cache-Control` and `Expires` don't count.
    pub(super) targeted: bool,
}

impl Directives {
    /// Those that bind this cache: of the first targeted header that is there and well-formed, else of `Cache-Control`.
    pub(super) fn of_answer(headers: &HeaderMap) -> Self {
        [&GREENWAVE_CACHE_CONTROL, &CDN_CACHE_CONTROL, &SURROGATE_CONTROL]
            .into_iter()
            .find_map(|name| Self::targeted(headers, name))
            .unwrap_or_else(|| Self::untargeted(headers))
    }

    fn targeted(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut lines = headers.get_all(name).iter();
        let mut text = lines.next()?.to_str().ok()?.to_owned();
        for line in lines {
            text.push(',');
            text.push_str(line.to_str().ok()?);
        }
        let members = dictionary::parse(&text)?;
        let mut directives = Self { targeted: true, ..Self::default() };
        // `Surrogate-Control` names in a parameter the one cache that a directive is for.
        let ours = |member: &&dictionary::Member<'_>| *name != SURROGATE_CONTROL || !member.has_parameters;
        for member in members.iter().filter(ours) {
            directives.take_member(member);
        }
        (!members.is_empty()).then_some(directives)
    }

    fn take_member(&mut self, member: &dictionary::Member<'_>) {
        use dictionary::Value;
        let on = member.value != Value::Flag(false);
        // A number that is none has no meaning here, other than in `Cache-Control`.
        let number = match member.value {
            Value::Integer(number) => Some(u32::try_from(number.max(0)).unwrap_or(LONGEST).min(LONGEST)),
            _ => None,
        };
        match member.key {
            "no-store" => self.no_store = on,
            "no-cache" => self.no_cache = on,
            "private" => self.private = on,
            "public" => self.public = on,
            "must-revalidate" | "proxy-revalidate" => self.must_revalidate |= on,
            "must-understand" => self.must_understand = on,
            "max-age" => self.max_age = number,
            "s-maxage" => self.s_maxage = number,
            "stale-while-revalidate" => self.stale_while_revalidate = number,
            "stale-if-error" => self.stale_if_error = number,
            _ => {}
        }
    }

    fn untargeted(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for (name, value) in headers.get_all(CACHE_CONTROL).iter().flat_map(items) {
            directives.take(name, value);
        }
        directives
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // What cannot be read means no time at all, and of two the shorter counts: better asked once too often.
        let shortest = |known: Option<u32>| {
            let seconds = value.and_then(seconds).unwrap_or(0);
            Some(known.map_or(seconds, |known| known.min(seconds)))
        };
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            match value {
                Some(fields) if self.withhold(fields) => {}
                _ => self.no_cache = true,
            }
        } else if is("private") {
            match value {
                Some(fields) if self.withhold(fields) => {}
                _ => self.private = true,
            }
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") || is("proxy-revalidate") {
            self.must_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("max-age") {
            self.max_age = shortest(self.max_age);
        } else if is("s-maxage") {
            self.s_maxage = shortest(self.s_maxage);
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate = shortest(self.stale_while_revalidate);
        } else if is("stale-if-error") {
            self.stale_if_error = shortest(self.stale_if_error);
        }
    }

    /// Says whether they are names. Where not, it is unknown what is meant, and all of the answer may be.
    fn withhold(&mut self, fields: &[u8]) -> bool {
        let names = fields.split(|byte| *byte == b',').map(|name| HeaderName::from_bytes(name.trim_ascii()));
        match names.collect::<Result<Vec<_>, _>>() {
            Ok(names) => self.withheld.extend(names),
            Err(_) => return false,
        }
        true
    }
}

/// What a request says of the answers that it would take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) only_if_cached: bool,
    pub(super) max_age: Option<u32>,
    pub(super) min_fresh: Option<u32>,
    /// How much staleness is welcome, in seconds.
    pub(super) max_stale: Option<u32>,
}

impl Wishes {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut wishes = Self::default();
        let Some(_) = headers.get(CACHE_CONTROL) else {
            // From before `Cache-Control`, and without meaning beside it.
            wishes.no_cache = headers
                .get_all(PRAGMA)
                .iter()
                .flat_map(items)
                .any(|(name, _)| name.eq_ignore_ascii_case(b"no-cache"));
            return wishes;
        };
        for (name, value) in headers.get_all(CACHE_CONTROL).iter().flat_map(items) {
            wishes.take(name, value);
        }
        wishes
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("max-age") {
            self.max_age = value.and_then(seconds).or(self.max_age);
        } else if is("min-fresh") {
            self.min_fresh = value.and_then(seconds).or(self.min_fresh);
        } else if is("max-stale") {
            self.max_stale = value.map_or(Some(LONGEST), seconds).or(self.max_stale);
        }
    }
}

/// Digits alone, in seconds; what is beyond all measure is `LONGEST`.
pub(super) fn seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(u64::from(LONGEST));
    u32::try_from(text.iter().fold(0, digit)).ok()
}

/// The directives of a line, each with what stands behind its `=`, without quotes.
fn items(line: &HeaderValue) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    split_unquoted(line.as_bytes()).map(|item| {
        let item = item.trim_ascii();
        let Some(equals) = item.iter().position(|byte| *byte == b'=') else { return (item, None) };
        let value = &item[equals + 1..];
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        (&item[..equals], Some(unquoted.unwrap_or(value)))
    })
}

/// The pieces between commas that stand in no quotes.
pub(super) fn split_unquoted(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |byte| {
        let was_escaped = escaped;
        escaped = quoted && !was_escaped && *byte == b'\\';
        if *byte == b'"' && !was_escaped {
            quoted = !quoted;
        }
        *byte == b',' && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn max_age(value: &str) -> Option<u32> {
        Directives::of_answer(&headers(&[("cache-control", value)])).max_age
    }

    #[test]
    fn ages_are_read_as_strictly_as_is_safe() {
        for (value, expected) in [
            ("max-age=3600", Some(3600)),
            ("MaX-AgE=3600", Some(3600)),
            ("max-age=003600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("a=\"x, max-age=1\", max-age=3600", Some(3600)),
            ("a=\"x\\\", max-age=1\", max-age=3600", Some(3600)),
            ("max-age=99999999999", Some(LONGEST)),
            ("max-age='3600'", Some(0)),
            ("max-age=-1", Some(0)),
            ("max-age=3600.0", Some(0)),
            ("max-age", Some(0)),
            ("max-age=", Some(0)),
            ("max-age=100, max-age=1", Some(1)),
            ("a=\"max-age=3600\"", None),
            ("max-age =3600", None),
            ("", None),
        ] {
            assert_eq!(max_age(value), expected, "{value}");
        }
    }

    #[test]
    fn fields_that_are_named_are_withheld() {
        let read =
            Directives::of_answer(&headers(&[("cache-control", "private=\"Set-Cookie, x\", no-cache=a")]));
        assert_eq!(read.withheld, ["set-cookie", "x", "a"]);
        assert!(!read.private && !read.no_cache);
    }

    #[test]
    fn the_narrowest_target_counts_and_a_malformed_one_does_not() {
        let general = ("cache-control", "no-store, max-age=1");
        for (targeted, no_store, max_age) in [
            (("greenwave-cache-control", "max-age=60"), false, Some(60)),
            (("cdn-cache-control", "max-age=60, no-store=?0"), false, Some(60)),
            (("cdn-cache-control", "no-store;a=1"), true, None),
            (("cdn-cache-control", "max-age=\"60\""), false, None),
            (("cdn-cache-control", "max-age=60 x"), true, Some(1)),
            (("cdn-cache-control", ""), true, Some(1)),
            (("surrogate-control", "max-age=60, no-store;other"), false, Some(60)),
        ] {
            let read = Directives::of_answer(&headers(&[general, targeted]));
            assert_eq!((read.no_store, read.max_age), (no_store, max_age), "{targeted:?}");
        }
        let both = headers(&[("cdn-cache-control", "max-age=1"), ("greenwave-cache-control", "max-age=2")]);
        assert_eq!(Directives::of_answer(&both).max_age, Some(2));
    }

    #[test]
    fn requests_may_wish() {
        let wishes = |name, value| Wishes::of(&headers(&[(name, value)]));
        assert!(wishes("pragma", "No-Cache").no_cache);
        assert!(!Wishes::of(&headers(&[("pragma", "no-cache"), ("cache-control", "x")])).no_cache);
        assert_eq!(wishes("cache-control", "max-stale").max_stale, Some(LONGEST));
        assert_eq!(wishes("cache-control", "max-stale=5, min-fresh=x").max_stale, Some(5));
        assert!(wishes("cache-control", "only-if-cached").only_if_cached);
    }
}
