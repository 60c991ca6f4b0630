//! Conditions of requests, answered from what is kept (RFC 9110, section 13).

use std::time::SystemTime;

use http::header::{
    CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MATCH,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::directives::split_unquoted;
use super::policy::date;

/// Conditions and ranges, which the cache applies to a whole answer by itself.
pub(super) const CONDITIONS: [HeaderName; 6] =
    [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_MATCH, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE];

/// What describes a body, in an answer that has none.
pub(super) const OF_BODY: [HeaderName; 5] =
    [CONTENT_LENGTH, CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_RANGE];

/// Whether the client has this answer already.
pub(super) fn is_known(request: &HeaderMap, answer: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let tag = answer.get(ETAG).map(opaque);
        let mut asked =
            request.get_all(IF_NONE_MATCH).iter().flat_map(|line| split_unquoted(line.as_bytes()));
        return asked.any(|asked| {
            let asked = asked.trim_ascii();
            asked == b"*" || tag.is_some_and(|tag| strip_weak(asked) == tag)
        });
    }
    let Some(since) = date(request, &IF_MODIFIED_SINCE) else { return false };
    // Without a date of its own it cannot have been modified after it was made.
    modified(answer).or_else(|| date(answer, &DATE)).is_some_and(|modified| modified <= since)
}

/// Whether a range of this answer continues what the client has, or no condition says that it has to.
pub(super) fn range_applies(request: &HeaderMap, answer: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    if condition.as_bytes().contains(&b'"') {
        // Only what is the same byte for byte can be continued.
        return answer
            .get(ETAG)
            .is_some_and(|tag| tag == condition && !condition.as_bytes().starts_with(b"W/"));
    }
    date(request, &IF_RANGE).is_some_and(|asked| modified(answer) == Some(asked))
}

fn modified(answer: &HeaderMap) -> Option<SystemTime> {
    date(answer, &LAST_MODIFIED)
}

fn opaque(tag: &HeaderValue) -> &[u8] {
    strip_weak(tag.as_bytes().trim_ascii())
}

fn strip_weak(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
    const LATER: &str = "Fri, 02 Jan 2026 00:00:00 GMT";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_client_is_told_that_it_has_the_answer() {
        for (request, answer, expected) in [
            (&[("if-none-match", "\"a\"")][..], &[("etag", "\"a\"")][..], true),
            (&[("if-none-match", "\"b\", \"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"b, \\\"a\\\"\"")], &[("etag", "\"a\"")], false),
            (&[("if-none-match", "W/\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"a\"")], &[("etag", "W/\"a\"")], true),
            (&[("if-none-match", "*")], &[], true),
            (&[("if-none-match", "\"a\"")], &[], false),
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", LATER)],
                &[("etag", "\"a\""), ("last-modified", EARLIER)],
                false,
            ),
            (&[("if-modified-since", EARLIER)], &[("last-modified", EARLIER)], true),
            (&[("if-modified-since", LATER)], &[("last-modified", EARLIER)], true),
            (&[("if-modified-since", EARLIER)], &[("last-modified", LATER)], false),
            (&[("if-modified-since", "nonsense")], &[("last-modified", EARLIER)], false),
            (&[("if-modified-since", LATER)], &[("date", EARLIER)], true),
            (&[], &[("etag", "\"a\"")], false),
        ] {
            assert_eq!(is_known(&headers(request), &headers(answer)), expected, "{request:?} {answer:?}");
        }
    }

    #[test]
    fn a_range_continues_only_what_is_the_same() {
        for (condition, answer, expected) in [
            ("\"a\"", &[("etag", "\"a\"")][..], true),
            ("\"a\"", &[("etag", "\"b\"")], false),
            ("W/\"a\"", &[("etag", "W/\"a\"")], false),
            (EARLIER, &[("last-modified", EARLIER)], true),
            (LATER, &[("last-modified", EARLIER)], false),
        ] {
            let request = headers(&[("if-range", condition)]);
            assert_eq!(range_applies(&request, &headers(answer)), expected, "{condition} {answer:?}");
        }
        assert!(range_applies(&HeaderMap::new(), &HeaderMap::new()));
    }
}
