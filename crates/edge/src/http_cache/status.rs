//! What the cache did, said to clients (RFC 9211).

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request was sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// Nothing is kept under its URI.
    UriMiss,
    /// What is kept is for other requests.
    VaryMiss,
    /// What is kept is stale.
    Stale,
    /// What is kept is not good enough for the client.
    Request,
    /// No answer to such a method is kept.
    Method,
    /// The cache has no part in it.
    Bypass,
    /// Only a part was asked for, and nothing is kept.
    Partial,
}

impl Forward {
    fn text(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
            Self::Method => "method",
            Self::Bypass => "bypass",
            Self::Partial => "partial",
        }
    }

    /// What is said of an answer that is just passed on.
    pub(super) fn passed(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::UriMiss => "greenwave; fwd=uri-miss",
            Self::VaryMiss => "greenwave; fwd=vary-miss",
            Self::Stale => "greenwave; fwd=stale",
            Self::Request => "greenwave; fwd=request",
            Self::Method => "greenwave; fwd=method",
            Self::Bypass => "greenwave; fwd=bypass",
            Self::Partial => "greenwave; fwd=partial",
        })
    }
}

/// What is said of an answer that the cache gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Hit,
    Forwarded {
        why: Forward,
        /// The status of the origin's answer, where the client gets another.
        status: Option<StatusCode>,
        stored: bool,
        /// Whether another request fetched it.
        collapsed: bool,
    },
}

impl Status {
    pub(super) fn value(self, ttl: i64) -> HeaderValue {
        let mut text = String::with_capacity(64);
        text.push_str("greenwave; ");
        // Writing to a string cannot fail.
        let _ = match self {
            Self::Hit => write!(text, "hit; ttl={ttl}"),
            Self::Forwarded { why, status, stored, collapsed } => {
                text.push_str("fwd=");
                text.push_str(why.text());
                if let Some(status) = status {
                    text.push_str("; fwd-status=");
                    text.push_str(status.as_str());
                }
                text.push_str(if stored { "; stored" } else { "" });
                text.push_str(if collapsed { "; collapsed" } else { "" });
                write!(text, "; ttl={ttl}")
            }
        };
        // It is ASCII all through.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("greenwave"))
    }
}

/// Says that an answer was passed on, behind what caches before this one said.
pub(super) fn passed(headers: &mut HeaderMap, why: Forward) {
    headers.append(CACHE_STATUS, why.passed());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_said_in_the_words_of_the_standard() {
        let forwarded = Status::Forwarded {
            why: Forward::Stale,
            status: Some(StatusCode::NOT_MODIFIED),
            stored: true,
            collapsed: true,
        };
        for (status, ttl, expected) in [
            (Status::Hit, 60, "greenwave; hit; ttl=60"),
            (Status::Hit, -5, "greenwave; hit; ttl=-5"),
            (forwarded, 9, "greenwave; fwd=stale; fwd-status=304; stored; collapsed; ttl=9"),
        ] {
            assert_eq!(status.value(ttl), expected);
        }
        assert_eq!(Forward::UriMiss.passed(), format!("greenwave; fwd={}", Forward::UriMiss.text()));
    }
}
