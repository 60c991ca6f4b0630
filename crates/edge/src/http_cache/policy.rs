//! Whether an answer may be kept, and for how long it is good (RFC 9111, sections 3 and 4.2).

use std::time::{Duration, SystemTime};

use http::header::{AGE, CACHE_CONTROL, DATE, ETAG, EXPIRES, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::time::Instant;

use super::CacheConfig;
use super::directives::{CDN_CACHE_CONTROL, Directives, GREENWAVE_CACHE_CONTROL, SURROGATE_CONTROL, seconds};

/// When an answer was asked for, and when its head was there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) asked: Instant,
    pub(super) came: Instant,
    pub(super) wall: SystemTime,
}

impl Arrival {
    /// An answer whose head has just come.
    pub(super) fn now(asked: Instant) -> Self {
        Self { asked, came: Instant::now(), wall: SystemTime::now() }
    }
}

/// How an answer may be reused. Ages and times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// When it came.
    pub(super) came: Instant,
    /// How old it was then.
    pub(super) initial_age: u32,
    /// From which age on it is stale.
    pub(super) lifetime: u32,
    /// Whether it may be given only when its origin says that it still holds.
    pub(super) always_validate: bool,
    /// Whether a client may take it when it is stale.
    pub(super) may_be_stale: bool,
    pub(super) stale_while_revalidate: u32,
    pub(super) stale_if_error: u32,
}

impl Freshness {
    pub(super) fn age(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.came).as_secs();
        self.initial_age.saturating_add(u32::try_from(since).unwrap_or(u32::MAX))
    }

    /// Seconds until it is stale; below zero since it is.
    pub(super) fn ttl(&self, now: Instant) -> i64 {
        i64::from(self.lifetime) - i64::from(self.age(now))
    }

    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        !self.always_validate && self.lifetime > self.age(now)
    }

    /// Whether it may be given while a new one is fetched.
    pub(super) fn covers_revalidation(&self, now: Instant) -> bool {
        !self.always_validate && self.ttl(now) + i64::from(self.stale_while_revalidate) > 0
    }

    /// Whether it may be given where no new one is to be had.
    pub(super) fn covers_error(&self, now: Instant) -> bool {
        !self.always_validate && self.ttl(now) + i64::from(self.stale_if_error) > 0
    }
}

/// What a kept answer is good for, and what of it may not be kept.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) freshness: Freshness,
    pub(super) withheld: Vec<HeaderName>,
}

impl Policy {
    /// The policy for an answer to a GET; none where it may not or need not be kept.
    pub(super) fn of(
        config: &CacheConfig,
        request: &HeaderMap,
        status: StatusCode,
        headers: &HeaderMap,
        arrival: Arrival,
    ) -> Option<Self> {
        let directives = Directives::of_answer(headers);
        if !may_keep(&directives, request, status, headers) {
            return None;
        }
        let freshness = freshness(config, &directives, headers, arrival);
        // Also what is stale from the start is worth keeping, where asking again is cheap or a failure likely.
        let useful = freshness.lifetime > freshness.initial_age
            || headers.contains_key(ETAG)
            || headers.contains_key(LAST_MODIFIED)
            || freshness.stale_while_revalidate > 0
            || freshness.stale_if_error > 0;
        let explicit = directives.max_age.is_some()
            || directives.s_maxage.is_some()
            || directives.no_cache
            || directives.public
            || headers.contains_key(EXPIRES);
        (useful && explicit).then_some(Self { freshness, withheld: directives.withheld })
    }
}

/// Whether an answer says nothing of caching, so that it is not kept, whatever the request.
pub(super) fn is_silent(headers: &HeaderMap) -> bool {
    ![CACHE_CONTROL, EXPIRES, GREENWAVE_CACHE_CONTROL, CDN_CACHE_CONTROL, SURROGATE_CONTROL]
        .iter()
        .any(|name| headers.contains_key(name))
}

fn may_keep(directives: &Directives, request: &HeaderMap, status: StatusCode, headers: &HeaderMap) -> bool {
    // Parts of a whole and answers about another are not kept, nor what is not final.
    if status.is_informational() || matches!(status.as_u16(), 206 | 304) {
        return false;
    }
    if directives.must_understand && !is_understood(status) {
        return false;
    }
    // `must-understand` comes with a `no-store` for caches that don't know it.
    if directives.private || (directives.no_store && !directives.must_understand) {
        return false;
    }
    let meant_for_all = directives.public || directives.s_maxage.is_some();
    if request.contains_key(http::header::AUTHORIZATION) && !(meant_for_all || directives.must_revalidate) {
        return false;
    }
    // RFC 9111 would allow it, but a cookie is one client's, also where a framework puts one on an answer that is
    // public: whoever means the rest of it for all says `private="set-cookie"`.
    !headers.contains_key(SET_COOKIE) || directives.withheld.contains(&SET_COOKIE)
}

/// The status codes whose rules this cache follows.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203
            | 204
            | 300
            | 301
            | 302
            | 303
            | 307
            | 308
            | 400
            | 401
            | 403
            | 404
            | 405
            | 406
            | 408
            | 409
            | 410
            | 411
            | 412
            | 413
            | 414
            | 415
            | 417
            | 421
            | 422
            | 426
            | 429
            | 500
            | 501
            | 502
            | 503
            | 504
            | 505
    )
}

fn freshness(
    config: &CacheConfig,
    directives: &Directives,
    headers: &HeaderMap,
    arrival: Arrival,
) -> Freshness {
    let date = date(headers, &DATE);
    let (age_given, is_age_sound) = given_age(headers);
    let apparent_age =
        date.and_then(|date| arrival.wall.duration_since(date).ok()).map_or(0, |age| age.as_secs());
    let delay = arrival.came.saturating_duration_since(arrival.asked).as_secs();
    let initial_age = apparent_age.max(u64::from(age_given) + delay);
    let explicit = directives.s_maxage.or(directives.max_age);
    let expires = || {
        if directives.targeted || !headers.contains_key(EXPIRES) {
            return 0;
        }
        // One that cannot be read has passed.
        let lifetime = self::date(headers, &EXPIRES)
            .and_then(|expires| expires.duration_since(date.unwrap_or(arrival.wall)).ok());
        lifetime.map_or(0, |lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX))
    };
    let lifetime = if is_age_sound { explicit.unwrap_or_else(expires) } else { 0 };
    // What an answer says of itself counts more than what was configured for all, also beside `s-maxage`, which alone
    // forbids staleness.
    let may_be_stale = !directives.must_revalidate && !directives.no_cache;
    let extra = |said: Option<u32>, configured: Duration| match said {
        _ if !may_be_stale => 0,
        Some(said) => said,
        None if directives.s_maxage.is_some() => 0,
        None => u32::try_from(configured.as_secs()).unwrap_or(u32::MAX),
    };
    Freshness {
        came: arrival.came,
        initial_age: u32::try_from(initial_age).unwrap_or(u32::MAX),
        lifetime,
        always_validate: directives.no_cache,
        may_be_stale: may_be_stale && directives.s_maxage.is_none(),
        stale_while_revalidate: extra(directives.stale_while_revalidate, config.stale_while_revalidate),
        stale_if_error: extra(directives.stale_if_error, config.stale_if_error),
    }
}

/// The `Age` that an answer brings, and whether there is at most one and that a number. Where not, somebody has kept it
/// for a time that cannot be known.
fn given_age(headers: &HeaderMap) -> (u32, bool) {
    let mut lines = headers.get_all(AGE).iter();
    match (lines.next(), lines.next()) {
        (None, _) => (0, true),
        (Some(line), None) => match seconds(line.as_bytes().trim_ascii()) {
            Some(age) => (age, true),
            None => (0, false),
        },
        (Some(_), Some(_)) => (0, false),
    }
}

/// The date in a header that occurs once.
pub(super) fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut lines = headers.get_all(name).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    httpdate::parse_http_date(line.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn policy(
        status: u16,
        request: &[(&'static str, &str)],
        answer: &[(&'static str, &str)],
    ) -> Option<Policy> {
        let arrival = Arrival { wall: SystemTime::UNIX_EPOCH, ..Arrival::now(Instant::now()) };
        let status = StatusCode::from_u16(status).unwrap();
        Policy::of(&CacheConfig::default(), &headers(request), status, &headers(answer), arrival)
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_be_shared_is_kept() {
        let (auth, cookie) = (("authorization", "x"), ("set-cookie", "a=b"));
        let control = |value| ("cache-control", value);
        for (status, request, answer, expected) in [
            (200, &[][..], &[control("max-age=9")][..], true),
            (200, &[], &[control("no-store, max-age=9")], false),
            (200, &[], &[control("private, max-age=9")], false),
            (200, &[], &[control("private=x, max-age=9")], true),
            (200, &[], &[("etag", "\"a\"")], false),
            (200, &[], &[], false),
            (200, &[], &[control("no-cache")], false),
            (200, &[], &[control("no-cache"), ("etag", "\"a\"")], true),
            (200, &[], &[control("max-age=0")], false),
            (200, &[], &[control("max-age=0, stale-if-error=9")], true),
            (206, &[], &[control("max-age=9")], false),
            (304, &[], &[control("max-age=9")], false),
            (599, &[], &[control("max-age=9")], true),
            (599, &[], &[control("max-age=9, must-understand")], false),
            (200, &[], &[control("max-age=9, must-understand, no-store")], true),
            (200, &[auth], &[control("max-age=9")], false),
            (200, &[auth], &[control("max-age=9, public")], true),
            (200, &[auth], &[control("s-maxage=9")], true),
            (200, &[auth], &[control("max-age=9, must-revalidate")], true),
            (200, &[auth], &[control("max-age=9"), ("cdn-cache-control", "max-age=9")], false),
            (200, &[], &[cookie, control("max-age=9")], false),
            (200, &[], &[cookie, control("max-age=9, public")], false),
            (200, &[], &[cookie, control("max-age=9, no-cache=set-cookie")], true),
            (200, &[], &[cookie, ("cdn-cache-control", "max-age=9")], false),
            (200, &[], &[control("no-store"), ("surrogate-control", "max-age=9")], true),
        ] {
            let kept = policy(status, request, answer).is_some();
            assert_eq!(kept, expected, "{status} {request:?} {answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_fresh_for_as_long_as_it_says() {
        let epoch = "Thu, 01 Jan 1970 00:00:00 GMT";
        let later = "Thu, 01 Jan 1970 00:00:09 GMT";
        let validator = ("etag", "\"a\"");
        for (answer, lifetime, age) in [
            (&[("cache-control", "max-age=5")][..], 5, 0),
            (&[("cache-control", "max-age=5, s-maxage=7")], 7, 0),
            (&[("cache-control", "max-age=5"), ("expires", later)], 5, 0),
            (&[("cache-control", "max-age=5"), ("age", "3")], 5, 3),
            (&[("cache-control", "max-age=5"), ("age", "abc"), validator], 0, 0),
            (&[("cache-control", "max-age=5"), ("age", "1"), ("age", "1"), validator], 0, 0),
            (&[("expires", later), ("date", epoch)], 9, 0),
            (&[("expires", later)], 9, 0),
            (&[("expires", later), ("date", "nonsense")], 9, 0),
            (&[("expires", "0"), validator], 0, 0),
            (&[("expires", later), ("expires", later), validator], 0, 0),
            (&[("expires", epoch), ("date", later), validator], 0, 0),
            (&[("expires", later), ("cdn-cache-control", "no-cache"), validator], 0, 0),
            (&[("cache-control", "max-age=1"), ("cdn-cache-control", "max-age=7")], 7, 0),
        ] {
            let freshness = policy(200, &[], answer).unwrap().freshness;
            assert_eq!((freshness.lifetime, freshness.initial_age), (lifetime, age), "{answer:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn staleness_is_allowed_by_the_answer_and_forbidden_by_it() {
        let config = CacheConfig { stale_if_error: Duration::from_secs(60), ..CacheConfig::default() };
        for (control, expected) in [
            ("max-age=1", 60),
            ("max-age=1, stale-if-error=5", 5),
            ("max-age=1, must-revalidate, stale-if-error=5", 0),
            ("max-age=1, proxy-revalidate", 0),
            ("s-maxage=1", 0),
            ("s-maxage=1, stale-if-error=5", 5),
        ] {
            let answer = headers(&[("cache-control", control)]);
            let arrival = Arrival::now(Instant::now());
            let policy = Policy::of(&config, &HeaderMap::new(), StatusCode::OK, &answer, arrival).unwrap();
            assert_eq!(policy.freshness.stale_if_error, expected, "{control}");
        }
    }
}
