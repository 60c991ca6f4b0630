//! Answers made of what is kept.

use bytes::Bytes;
use http::header::{AGE, CONTENT_LENGTH, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, request};
use http_body_util::Full;
use tokio::time::Instant;

use super::conditions::{OF_BODY, is_known, range_applies};
use super::entry::{Entry, Head};
use super::growing::{Growing, Reader};
use super::ranges::{self, Parts};
use super::status::{CACHE_STATUS, Status};
use crate::proxy::body::Body;

impl Head {
    /// A copy of the fields for a client.
    fn fields(&self, status: Status, now: Instant) -> HeaderMap {
        let mut headers = self.headers.clone();
        let age = self.freshness.age(now);
        let is_new = matches!(status, Status::Forwarded { collapsed: false, .. });
        if age == 0 && is_new {
            // It comes from its origin just now, and that is what no age means.
            headers.remove(AGE);
        } else {
            headers.insert(AGE, HeaderValue::from(age));
        }
        headers.insert(CACHE_STATUS, status.value(self.freshness.ttl(now)));
        headers
    }

    /// Whether the client need only be told that it has this already.
    fn is_known_to(&self, request: &request::Parts) -> bool {
        self.status == StatusCode::OK && is_known(&request.headers, &self.headers)
    }
}

impl Entry {
    /// The answer to this request.
    pub(super) fn answer(&self, request: &request::Parts, status: Status, now: Instant) -> Response<Body> {
        let head = &*self.head;
        let mut headers = head.fields(status, now);
        if head.is_known_to(request) {
            return not_modified(headers);
        }
        let mut code = head.status;
        let is_get = request.method == Method::GET;
        let mut body = if is_get { self.body.clone() } else { Bytes::new() };
        if is_get
            && code == StatusCode::OK
            && request.headers.contains_key(RANGE)
            && range_applies(&request.headers, &head.headers)
        {
            let parts = ranges::asked(&request.headers, body.len());
            if parts != Parts::Whole {
                body = ranges::cut(&parts, &mut code, &mut headers, &self.body, rand::random());
            }
        }
        let mut response = Response::new(Body::Full(Full::new(body)));
        *response.status_mut() = code;
        *response.headers_mut() = headers;
        response
    }

    /// The answer as it was, with what its origin says of it now, for one client.
    pub(super) fn to_response(&self, news: &HeaderMap) -> Response<Body> {
        let mut headers = self.head.headers.clone();
        headers.remove(AGE);
        headers.remove(CACHE_STATUS);
        let mut news = news.clone();
        for name in &OF_BODY {
            news.remove(name);
        }
        headers.extend(news);
        let mut response = Response::new(Body::Full(Full::new(self.body.clone())));
        *response.status_mut() = self.head.status;
        *response.headers_mut() = headers;
        response
    }
}

impl Growing {
    /// The answer to this request, as far as it has come and goes on.
    pub(super) fn answer(
        &self,
        reader: Reader,
        request: &request::Parts,
        status: Status,
        now: Instant,
    ) -> Response<Body> {
        let headers = self.head.fields(status, now);
        if self.head.is_known_to(request) {
            return not_modified(headers);
        }
        let mut response = Response::new(Body::Dyn(Box::pin(reader)));
        *response.status_mut() = self.head.status;
        *response.headers_mut() = headers;
        response
    }
}

fn not_modified(mut headers: HeaderMap) -> Response<Body> {
    for name in &OF_BODY {
        headers.remove(name);
    }
    let mut response = Response::new(Body::Full(Full::default()));
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.headers_mut() = headers;
    response
}

/// The answer to a client that wants nothing but what is kept, and nothing is.
pub(super) fn not_kept() -> Response<Body> {
    let text = r#"{"error":"not_cached","message":"only a kept answer was wanted, and none is kept"}"#;
    let mut response = Response::new(Body::Full(Full::from(text)));
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    headers.insert(CACHE_STATUS, HeaderValue::from_static("greenwave"));
    response
}
