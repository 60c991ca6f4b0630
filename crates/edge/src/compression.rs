//! Answers made smaller on their way, where the client accepts it and the type gains.

use std::convert::Infallible;
use std::future::ready;

use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, VARY,
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, response};
use serde::{Deserialize, Serialize};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;

use crate::proxy::body::Body;

/// A level at which each of the three makes text a good deal smaller for little time: nginx's for gzip is 1, zstd's own
/// is 3, and brotli's usual one for what is made on the way is 4.
const LEVEL: CompressionLevel = CompressionLevel::Precise(4);

/// When answers are compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CompressionConfig {
    /// Whether answers are compressed at all; false by default.
    pub enabled: bool,
    /// Smallest answer that is compressed, in bytes; 1024 by default.
    pub min_size: u16,
}

impl Default for CompressionConfig {
    fn default() -> Self {
        Self { enabled: false, min_size: 1024 }
    }
}

/// What a client accepts, kept while its answer is fetched.
pub(crate) struct Accepts(Option<Request<()>>);

impl CompressionConfig {
    /// To be taken of a request before it is forwarded; nothing if nothing is compressed.
    pub(crate) fn accepts(&self, headers: &HeaderMap) -> Option<Accepts> {
        if !self.enabled {
            return None;
        }
        let mut accepts = None;
        for value in headers.get_all(ACCEPT_ENCODING) {
            let request = accepts.get_or_insert_with(|| Request::new(()));
            request.headers_mut().append(ACCEPT_ENCODING, value.clone());
        }
        Some(Accepts(accepts))
    }

    /// The answer as the client gets it. Bytes that the upstream has sent are not held back: what is compressed is
    /// flushed whenever more has to be waited for.
    ///
    /// The head that goes with `HEAD` is the one that `GET` would get.
    pub(crate) async fn compress(&self, accepts: Accepts, response: Response<Body>) -> Response<Body> {
        let (mut head, body) = response.into_parts();
        if !self.is_worth_it(&head) {
            return Response::from_parts(head, body);
        }
        // Also for who gets it as it is: what a cache between has kept must not go to all.
        vary(&mut head.headers);
        let Some(request) = accepts.0 else { return Response::from_parts(head, body) };
        let status = head.status;
        let mut response = Some(Response::from_parts(head, body));
        let once = service_fn(move |_| ready(Ok::<_, Infallible>(response.take().unwrap_or_else(nothing))));
        let Ok(response) =
            CompressionLayer::new().quality(LEVEL).compress_when(always).layer(once).oneshot(request).await;
        let (mut head, body) = response.into_parts();
        // An answer that the client would rather not have is better than none.
        head.status = status;
        if head.headers.contains_key(CONTENT_ENCODING) {
            weaken(&mut head.headers);
        }
        Response::from_parts(head, Body::Dyn(Box::pin(body)))
    }

    fn is_worth_it(&self, head: &response::Parts) -> bool {
        let headers = &head.headers;
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        head.status != StatusCode::PARTIAL_CONTENT
            && !head.status.is_informational()
            && head.status != StatusCode::NO_CONTENT
            && head.status != StatusCode::NOT_MODIFIED
            && length.is_none_or(|length| length >= self.min_size.into())
            && !headers.contains_key(CONTENT_ENCODING)
            && !headers.contains_key(CONTENT_RANGE)
            && !has_token(headers, &CACHE_CONTROL, "no-transform")
            && headers.get(CONTENT_TYPE).is_some_and(gains)
    }
}

// Not reached: the service is called once.
fn nothing() -> Response<Body> {
    Response::new(Body::Full(Default::default()))
}

fn always(_: StatusCode, _: http::Version, _: &HeaderMap, _: &http::Extensions) -> bool {
    true
}

/// Whether a type is text of some kind. Events are text too, but come by small pieces that somebody waits for.
fn gains(value: &HeaderValue) -> bool {
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let Some((kind, subtype)) = essence.split_once('/') else { return false };
    match kind {
        "text" => subtype != "event-stream",
        "application" => {
            matches!(
                subtype,
                "javascript" | "x-javascript" | "json" | "x-ndjson" | "xml" | "wasm" | "vnd.ms-fontobject"
            ) || subtype.ends_with("+json")
                || subtype.ends_with("+xml")
        }
        "image" => matches!(subtype, "svg+xml" | "bmp" | "x-icon" | "vnd.microsoft.icon"),
        "font" => matches!(subtype, "ttf" | "otf"),
        _ => false,
    }
}

fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    let tokens = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    tokens.flat_map(|value| value.split(',')).any(|other| other.trim().eq_ignore_ascii_case(token))
}

fn vary(headers: &mut HeaderMap) {
    if !has_token(headers, &VARY, "*") && !has_token(headers, &VARY, "accept-encoding") {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// The bytes are others now, and mean the same: that is what a weak tag says (RFC 9110, section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    if let Some(tag) = headers.get(ETAG)
        && !tag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(ETAG, weak);
    }
}
