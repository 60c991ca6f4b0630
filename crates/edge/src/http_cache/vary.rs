//! Which requests an answer is for: secondary keys (RFC 9111, section 4.1).

use http::header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, VARY};
use http::{HeaderMap, HeaderName};

// This proxy writes them after the cache, for each client others.
const OF_CLIENT: [&str; 3] = ["x-forwarded-for", "x-real-ip", "forwarded"];

/// The request fields that an answer was chosen by, with their values in the request that it answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Vary(Box<[Field]>);

type Field = (HeaderName, Option<Box<[u8]>>);

/// The answer is for no other request: `Vary: *`, or it varies by the client's address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unique;

impl Vary {
    pub(super) fn of(answer: &HeaderMap, request: &HeaderMap) -> Result<Self, Unique> {
        let mut names: Vec<HeaderName> = Vec::new();
        for line in answer.get_all(VARY) {
            for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if name.is_empty() {
                    continue;
                }
                // `*` is a valid name of a field. A name that is none varies by what nobody can know.
                let name = HeaderName::from_bytes(name).map_err(|_| Unique)?;
                if name.as_str() == "*" || OF_CLIENT.contains(&name.as_str()) {
                    return Err(Unique);
                }
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(Self::by(names, request))
    }

    fn by(names: impl IntoIterator<Item = HeaderName>, request: &HeaderMap) -> Self {
        let with_value = |name: HeaderName| {
            let value = normal(&name, request).map(Vec::into_boxed_slice);
            (name, value)
        };
        Self(names.into_iter().map(with_value).collect())
    }

    /// The same fields, with another request's values.
    pub(super) fn with_values_of(&self, request: &HeaderMap) -> Self {
        Self::by(self.0.iter().map(|(name, _)| name.clone()), request)
    }

    /// Whether the answer is also for this request.
    pub(super) fn matches(&self, request: &HeaderMap) -> bool {
        self.0.iter().all(|(name, value)| {
            let mut lines = request.get_all(name).iter();
            match (value, lines.next(), lines.next()) {
                (None, None, _) => true,
                (Some(value), Some(line), None) if **value == *line.as_bytes() => true,
                (Some(value), Some(_), _) => normal(name, request).is_some_and(|other| *other == **value),
                _ => false,
            }
        })
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = (&HeaderName, Option<&[u8]>)> {
        self.0.iter().map(|(name, value)| (name, value.as_deref()))
    }

    pub(super) fn from_fields(fields: Vec<Field>) -> Self {
        Self(fields.into())
    }

    /// Whether both are chosen by the same fields.
    pub(super) fn has_fields_of(&self, other: &Self) -> bool {
        self.fields().map(|(name, _)| name).eq(other.fields().map(|(name, _)| name))
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        self.fields().map(|(name, value)| 64 + name.as_str().len() + value.map_or(0, <[u8]>::len)).sum()
    }
}

/// All lines of a field as one; of fields that are known to be lists also without differences that mean nothing.
fn normal(name: &HeaderName, request: &HeaderMap) -> Option<Vec<u8>> {
    let mut lines = request.get_all(name).iter();
    let mut joined = lines.next()?.as_bytes().to_vec();
    for line in lines {
        joined.extend_from_slice(b", ");
        joined.extend_from_slice(line.as_bytes());
    }
    if [&ACCEPT, &ACCEPT_CHARSET, &ACCEPT_ENCODING, &ACCEPT_LANGUAGE].contains(&name) {
        joined.retain(|byte| !byte.is_ascii_whitespace());
        joined.make_ascii_lowercase();
    }
    Some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn an_answer_is_for_requests_that_agree_in_what_it_varies_by() {
        for (vary, first, second, expected) in [
            ("foo", &[("foo", "1")][..], &[("foo", "1")][..], true),
            ("foo", &[("foo", "1")], &[("foo", "2")], false),
            ("foo", &[("foo", "1")], &[], false),
            ("foo", &[], &[("foo", "1")], false),
            ("foo", &[], &[], true),
            ("Foo, BAR,", &[("foo", "1"), ("bar", "2")], &[("bar", "2"), ("foo", "1")], true),
            ("foo, bar", &[("foo", "1"), ("bar", "2")], &[("foo", "1"), ("bar", "3")], false),
            ("foo", &[("foo", "1, 2")], &[("foo", "1"), ("foo", "2")], true),
            ("foo", &[("foo", "1")], &[("foo", "1"), ("foo", "2")], false),
            ("foo", &[("foo", "1,2")], &[("foo", "1, 2")], false),
            ("accept-encoding", &[("accept-encoding", "gzip,BR")], &[("accept-encoding", "gzip, br")], true),
            ("accept-encoding", &[("accept-encoding", "gzip")], &[("accept-encoding", "gzip, br")], false),
        ] {
            let kept = Vary::of(&headers(&[("vary", vary)]), &headers(first)).unwrap();
            assert_eq!(kept.matches(&headers(second)), expected, "{vary}: {first:?} {second:?}");
        }
    }

    #[test]
    fn a_star_anywhere_makes_an_answer_unique() {
        for lines in [
            &["*"][..],
            &["*, *"],
            &[", *"],
            &["", "*"],
            &["foo, *"],
            &["*", "foo"],
            &["a b"],
            &["X-Real-IP"],
            &["a, forwarded"],
            &["x-forwarded-for"],
        ] {
            let mut answer = HeaderMap::new();
            for line in lines {
                answer.append(VARY, HeaderValue::from_static(line));
            }
            assert_eq!(Vary::of(&answer, &HeaderMap::new()), Err(Unique), "{lines:?}");
        }
    }
}
