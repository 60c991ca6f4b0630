//! Answers that the proxy gives itself.

use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::body::{AnswerBody, Body, InFlight};

/// Why a request is answered by the proxy and not by an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Ambiguous,
    NoHost,
    TwoHosts,
    InvalidHost,
    InvalidTarget,
    LongTarget,
    Expectation,
    Connect,
    NoRoute,
    ClientSilent,
    BrokenBody,
    NoUpstream,
    NoConnection,
    UpstreamFailed,
    UpstreamAmbiguous,
    UpstreamSilent,
    Overloaded,
    TooSlow,
}

impl Refusal {
    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::Ambiguous => (S::BAD_REQUEST, "bad_request", "the request can be read in two ways"),
            Self::NoHost => (S::BAD_REQUEST, "bad_request", "the request has no Host header"),
            Self::TwoHosts => (S::BAD_REQUEST, "bad_request", "the request names more than one host"),
            Self::InvalidHost => (S::BAD_REQUEST, "bad_request", "the Host header names no host"),
            Self::InvalidTarget => (S::BAD_REQUEST, "bad_request", "the request target cannot be forwarded"),
            Self::LongTarget => (S::URI_TOO_LONG, "uri_too_long", "the request target is too long"),
            Self::Expectation => {
                (S::EXPECTATION_FAILED, "expectation_failed", "only 100-continue can be expected")
            }
            Self::Connect => (S::METHOD_NOT_ALLOWED, "method_not_allowed", "CONNECT is not supported"),
            Self::NoRoute => (S::NOT_FOUND, "not_found", "no service is configured for this host and path"),
            Self::ClientSilent => {
                (S::REQUEST_TIMEOUT, "request_timeout", "the rest of the request did not arrive")
            }
            Self::BrokenBody => {
                (S::BAD_REQUEST, "bad_request", "the body of the request is malformed or broke off")
            }
            Self::NoUpstream => {
                (S::SERVICE_UNAVAILABLE, "unavailable", "no instance of the service is healthy")
            }
            Self::NoConnection => {
                (S::SERVICE_UNAVAILABLE, "unavailable", "the proxy cannot open another connection now")
            }
            Self::UpstreamFailed => (S::BAD_GATEWAY, "bad_gateway", "the service ended the connection"),
            Self::UpstreamAmbiguous => {
                (S::BAD_GATEWAY, "bad_gateway", "the service sent an ambiguous answer")
            }
            Self::UpstreamSilent => {
                (S::GATEWAY_TIMEOUT, "gateway_timeout", "the service did not answer in time")
            }
            Self::Overloaded => {
                (S::SERVICE_UNAVAILABLE, "overloaded", "the service has more requests than it can answer")
            }
            Self::TooSlow => {
                (S::GATEWAY_TIMEOUT, "gateway_timeout", "the request took longer than is allowed")
            }
        }
    }

    /// Whether an upstream failed to answer, so that a kept answer may stand in (RFC 5861).
    pub(crate) fn is_upstream_failure(self) -> bool {
        matches!(
            self,
            Self::NoUpstream
                | Self::NoConnection
                | Self::UpstreamFailed
                | Self::UpstreamAmbiguous
                | Self::UpstreamSilent
                | Self::Overloaded
        )
    }

    /// Whether what follows on the client's connection cannot be trusted, or is not wanted.
    fn closes(self) -> bool {
        !matches!(
            self,
            Self::NoRoute
                | Self::NoUpstream
                | Self::NoConnection
                | Self::UpstreamFailed
                | Self::UpstreamAmbiguous
                | Self::UpstreamSilent
                | Self::Overloaded
        )
    }

    pub(crate) fn answer(self, in_flight: InFlight) -> Response<AnswerBody> {
        let (status, code, message) = self.parts();
        let http2 = in_flight.connection().http2;
        let text = format!(r#"{{"error":"{code}","message":"{message}"}}"#);
        let mut response =
            Response::new(AnswerBody::new(Body::Full(text.into()), in_flight.answered(status)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self, Self::NoUpstream | Self::NoConnection | Self::Overloaded) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.closes() && !http2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
