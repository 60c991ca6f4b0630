//! What answers are kept under.

use std::borrow::Cow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::header::HOST;
use http::{HeaderMap, Uri};
use quick_cache::Equivalent;

use super::CacheConfig;

/// An effective URI, in the one form in which it is looked up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) secure: bool,
    pub(super) host: Box<str>,
    pub(super) target: Box<str>,
}

/// A key that borrows from a request, so that a hit allocates none.
#[derive(Debug)]
pub(super) struct KeyRef<'a> {
    pub(super) secure: bool,
    host: Cow<'a, str>,
    target: Cow<'a, str>,
}

impl<'a> KeyRef<'a> {
    /// The key of a request; none where it names no host that is text.
    pub(super) fn of(
        uri: &'a Uri,
        headers: &'a HeaderMap,
        secure: bool,
        config: &CacheConfig,
    ) -> Option<Self> {
        let host = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => headers.get(HOST)?.to_str().ok()?,
        };
        Some(Self::new(secure, host, uri.path_and_query().map_or("/", |target| target.as_str()), config))
    }

    /// The key of an absolute URI.
    pub(super) fn of_uri(uri: &'a Uri, secure: bool, config: &CacheConfig) -> Option<Self> {
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Some(Self::new(secure, uri.authority()?.as_str(), target, config))
    }

    fn new(secure: bool, host: &'a str, target: &'a str, config: &CacheConfig) -> Self {
        Self { secure, host: normal_host(host, secure), target: normal_target(target, config) }
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn to_key(&self) -> Key {
        Key { secure: self.secure, host: self.host.as_ref().into(), target: self.target.as_ref().into() }
    }
}

impl Key {
    pub(super) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { secure: self.secure, host: Cow::Borrowed(&self.host), target: Cow::Borrowed(&self.target) }
    }
}

/// Lower case, without the port that the scheme has anyway.
pub(super) fn normal_host(host: &str, secure: bool) -> Cow<'_, str> {
    let host = host.strip_suffix(if secure { ":443" } else { ":80" }).unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Cow::Owned(host.to_ascii_lowercase());
    }
    Cow::Borrowed(host)
}

fn normal_target<'a>(target: &'a str, config: &CacheConfig) -> Cow<'a, str> {
    if config.ignore_query.is_empty() && !config.sort_query {
        return Cow::Borrowed(target);
    }
    let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
    let name = |parameter: &&'a str| parameter.split_once('=').map_or(*parameter, |(name, _)| name);
    let is_ignored = |parameter: &&'a str| {
        config.ignore_query.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name(parameter).starts_with(beginning),
            None => name(parameter) == pattern,
        })
    };
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| !is_ignored(parameter)).collect();
    if config.sort_query {
        // Stable: parameters of one name are a list, whose order may matter.
        parameters.sort_by_key(name);
    }
    let mut normal = path.to_owned();
    for (index, parameter) in parameters.into_iter().enumerate() {
        normal.push(if index == 0 { '?' } else { '&' });
        normal.push_str(parameter);
    }
    Cow::Owned(normal)
}

fn hash(secure: bool, host: &str, target: &str, state: &mut impl Hasher) {
    state.write_u8(u8::from(secure));
    host.hash(state);
    target.hash(state);
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.secure, &self.host, &self.target, state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.secure, &self.host, &self.target, state);
    }
}

impl Equivalent<Arc<Key>> for KeyRef<'_> {
    fn equivalent(&self, key: &Arc<Key>) -> bool {
        self.secure == key.secure && *self.target == *key.target && *self.host == *key.host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_resource_has_one_key() {
        let key = |ignore: &[&str], sort_query, host, target| {
            let ignore_query = ignore.iter().map(ToString::to_string).collect();
            let config = CacheConfig { ignore_query, sort_query, ..CacheConfig::default() };
            let key = KeyRef::new(false, host, target, &config);
            format!("{}{}", key.host, key.target)
        };
        for (ignore, sort, host, target, expected) in [
            (&[][..], false, "Example.COM:80", "/A?b&a", "example.com/A?b&a"),
            (&[], false, "a:8080", "/", "a:8080/"),
            (&["utm_*", "x"], false, "a", "/?utm_source=1&y=2&x&xx=3", "a/?y=2&xx=3"),
            (&["*"], false, "a", "/?b=1", "a/"),
            (&[], true, "a", "/?b=2&a=9&b=1&a", "a/?a=9&a&b=2&b=1"),
            (&["x"], true, "a", "/path", "a/path"),
        ] {
            assert_eq!(key(ignore, sort, host, target), expected);
        }
    }
}
