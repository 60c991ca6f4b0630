//! An answer that is kept.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, Entry as MapEntry, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::CacheConfig;
use super::directives::{GREENWAVE_CACHE_CONTROL, SURROGATE_CONTROL};
use super::policy::{Arrival, Freshness, Policy};
use super::status::CACHE_STATUS;
use super::vary::Vary;

pub(super) const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
pub(super) const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");

// What describes the kept bytes, and not what a validation says of them (RFC 9111, section 3.2).
const NOT_UPDATED: [HeaderName; 5] = [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_MD5, CONTENT_RANGE, ETAG];
// Roughly what an entry takes besides its bytes, and a field besides its text.
const ENTRY_OVERHEAD: usize = 512;
const FIELD_OVERHEAD: usize = 72;

/// The head of a kept answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    /// As clients get it, with places for `Age` and `Cache-Status`, so that a copy has room for them.
    pub(super) headers: HeaderMap,
    /// Fields for this cache alone, which clients don't get.
    pub(super) hidden: HeaderMap,
    pub(super) vary: Vary,
    pub(super) tags: Box<[Box<str>]>,
    pub(super) freshness: Freshness,
    /// What hits were told last. It changes once a second, and hits are many.
    pub(super) told: ArcSwapOption<Told>,
}

/// What hits are told at an age.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) age: u32,
    pub(super) age_value: HeaderValue,
    pub(super) cache_status: HeaderValue,
}

/// A kept answer. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) head: Arc<Head>,
    pub(super) body: Bytes,
}

impl Head {
    /// The head of an answer that may be kept, without what concerns a connection alone; none where it may not be kept.
    pub(super) fn new(
        config: &CacheConfig,
        request: &HeaderMap,
        status: StatusCode,
        mut headers: HeaderMap,
        arrival: Arrival,
    ) -> Option<Self> {
        let policy = Policy::of(config, request, status, &headers, arrival)?;
        let vary = Vary::of(&headers, request).ok()?;
        for name in policy.withheld.iter().chain([&PROXY_AUTHENTICATION_INFO, &CACHE_STATUS]) {
            headers.remove(name);
        }
        let hidden = hide(config, &mut headers);
        let tags = tags(config, &hidden);
        if let MapEntry::Vacant(place) = headers.entry(DATE)
            && let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(arrival.wall))
        {
            place.insert(date);
        }
        headers.insert(AGE, HeaderValue::from_static("0"));
        headers.insert(CACHE_STATUS, HeaderValue::from_static("greenwave"));
        Some(Self {
            status,
            headers,
            hidden,
            vary,
            tags,
            freshness: policy.freshness,
            told: ArcSwapOption::empty(),
        })
    }

    /// The same with a length, once that is known.
    pub(super) fn with_length(self: &Arc<Self>, length: usize) -> Arc<Self> {
        if self.headers.contains_key(CONTENT_LENGTH) || self.status == StatusCode::NO_CONTENT {
            return Arc::clone(self);
        }
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        Arc::new(Self {
            status: self.status,
            headers,
            hidden: self.hidden.clone(),
            vary: self.vary.clone(),
            tags: self.tags.clone(),
            freshness: self.freshness,
            told: ArcSwapOption::empty(),
        })
    }

    fn size(&self) -> usize {
        let fields = self.headers.iter().chain(&self.hidden);
        let fields: usize =
            fields.map(|(name, value)| FIELD_OVERHEAD + name.as_str().len() + value.len()).sum();
        fields + self.vary.size() + self.tags.iter().map(|tag| 16 + tag.len()).sum::<usize>()
    }
}

impl Entry {
    /// What it counts against the cache's bytes.
    pub(super) fn weight(&self) -> u64 {
        (ENTRY_OVERHEAD + self.head.size() + self.body.len()) as u64
    }

    /// Whether a 304 speaks of it.
    pub(super) fn is_meant_by(&self, answer: &HeaderMap) -> bool {
        // Also a weak tag has to be the same: what was asked about is this entry alone.
        let validator = if answer.contains_key(ETAG) { ETAG } else { LAST_MODIFIED };
        self.agrees(answer, &validator)
    }

    /// Whether the answer to a HEAD speaks of the same content.
    pub(super) fn is_same_as(&self, answer: &HeaderMap) -> bool {
        [ETAG, LAST_MODIFIED, CONTENT_LENGTH].iter().all(|name| self.agrees(answer, name))
    }

    fn agrees(&self, answer: &HeaderMap, name: &HeaderName) -> bool {
        let theirs = answer.get(name);
        theirs.is_none() || theirs == self.head.headers.get(name)
    }

    /// The entry as its origin says that it is now; none where that may not be kept.
    pub(super) fn updated(
        &self,
        config: &CacheConfig,
        request: &HeaderMap,
        news: &HeaderMap,
        arrival: Arrival,
    ) -> Option<Self> {
        let mut headers = self.head.headers.clone();
        headers.remove(AGE);
        if !news.contains_key(DATE) {
            headers.remove(DATE);
        }
        headers.extend(self.head.hidden.clone());
        let mut news = news.clone();
        for name in &NOT_UPDATED {
            news.remove(name);
        }
        // Fields of one name come one behind the other; `extend` replaces what the map had of that name.
        headers.extend(news);
        let head = Head::new(config, request, self.head.status, headers, arrival)?;
        Some(Self { head: Arc::new(head), body: self.body.clone() })
    }
}

/// Drops what is for this cache and not for clients, without room for what is seldom there.
pub(super) fn drop_hidden(config: &CacheConfig, headers: &mut HeaderMap) {
    for name in [&SURROGATE_KEY, &CACHE_TAG, &SURROGATE_CONTROL, &GREENWAVE_CACHE_CONTROL] {
        headers.remove(name);
    }
    if !config.tag_header.is_empty() {
        headers.remove(&config.tag_header);
    }
}

/// Takes out what is for this cache and not for clients.
pub(super) fn hide(config: &CacheConfig, headers: &mut HeaderMap) -> HeaderMap {
    let mut hidden = HeaderMap::new();
    let mut take = |name: &HeaderName| {
        if let MapEntry::Occupied(place) = headers.entry(name) {
            let name = place.key().clone();
            for value in place.remove_entry_mult().1 {
                hidden.append(name.clone(), value);
            }
        }
    };
    for name in [&SURROGATE_KEY, &CACHE_TAG, &SURROGATE_CONTROL, &GREENWAVE_CACHE_CONTROL] {
        take(name);
    }
    if let Ok(name) = HeaderName::try_from(&config.tag_header) {
        take(&name);
    }
    hidden
}

pub(super) fn tags(config: &CacheConfig, hidden: &HeaderMap) -> Box<[Box<str>]> {
    let own = HeaderName::try_from(&config.tag_header).ok();
    let names = [Some(SURROGATE_KEY), Some(CACHE_TAG), own];
    let lines =
        names.iter().flatten().flat_map(|name| hidden.get_all(name)).filter_map(|line| line.to_str().ok());
    // Between the keys of `Surrogate-Key` are spaces, between those of `Cache-Tag` commas.
    lines
        .flat_map(|line| line.split([' ', '\t', ',']))
        .filter(|tag| !tag.is_empty())
        .map(Into::into)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn head(config: &CacheConfig, fields: &[(&'static str, &'static str)]) -> Option<Head> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let arrival = Arrival::now(Instant::now());
        Head::new(config, &HeaderMap::new(), StatusCode::OK, headers, arrival)
    }

    #[tokio::test]
    async fn what_is_for_one_client_or_for_this_cache_is_not_given_to_clients() {
        let config = CacheConfig { tag_header: "X-Tags".into(), ..CacheConfig::default() };
        let head = head(
            &config,
            &[
                ("cache-control", "max-age=9, private=\"a\", no-cache=b"),
                ("a", "1"),
                ("b", "1"),
                ("c", "1"),
                ("proxy-authentication-info", "1"),
                ("surrogate-key", "t1  t2"),
                ("cache-tag", "t3, t4"),
                ("x-tags", "t5"),
                ("surrogate-key", "t6"),
            ],
        )
        .unwrap();
        let mut names: Vec<&str> = head.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["age", "c", "cache-control", "cache-status", "date"]);
        let tags: Vec<&str> = head.tags.iter().map(|tag| &**tag).collect();
        assert_eq!(tags, ["t1", "t2", "t6", "t3", "t4", "t5"]);
    }

    #[tokio::test]
    async fn an_update_changes_what_it_names_and_keeps_the_rest() {
        let config = CacheConfig::default();
        let kept = [("cache-control", "max-age=9"), ("a", "1"), ("a", "2"), ("b", "1"), ("etag", "\"1\"")];
        let head = head(&config, &kept).unwrap();
        let entry = Entry { head: Arc::new(head), body: Bytes::from_static(b"body") };
        let mut news = HeaderMap::new();
        for (name, value) in [("a", "3"), ("a", "4"), ("content-length", "99"), ("etag", "\"2\"")] {
            news.append(name, HeaderValue::from_static(value));
        }
        let updated = entry.updated(&config, &HeaderMap::new(), &news, Arrival::now(Instant::now())).unwrap();
        let all = |name: &str| updated.head.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(all("a"), ["3", "4"]);
        assert_eq!(all("b"), ["1"]);
        assert_eq!(all("etag"), ["\"1\""]);
        assert!(all("content-length").is_empty());
        assert_eq!(updated.body, "body");
    }
}
