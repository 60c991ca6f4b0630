use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{AGE, CONNECTION, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
    response::Parts,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};

use super::directives::age;

/// Headers of a connection, and not of the response that came over it.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// A whole response: the value of the cache that a [`CacheLayer`](crate::CacheLayer) keeps.
///
/// It can be serialised, so that it may live in Redis too. It is a copy of what the handler answered but for
/// extensions, trailers, the headers that belong to a connection, and `Age`, which [`age`](CachedResponse::age) tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct CachedResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    /// When it was made, in seconds since 1970; earlier by the age that it had then.
    at: u64,
}

impl CachedResponse {
    pub(super) fn new(parts: &Parts, body: Bytes) -> CachedResponse {
        let mut headers = parts.headers.clone();
        let named = parts.headers.get_all(CONNECTION).iter().filter_map(|names| names.to_str().ok());
        for name in named.flat_map(|names| names.split(',')) {
            headers.remove(name.trim());
        }
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
        headers.remove(AGE);
        let at = now().saturating_sub(age(&parts.headers).as_secs());
        CachedResponse { status: parts.status, headers, body, at }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// About how many bytes it takes: for [`CacheBuilder::weigher`](crate::CacheBuilder::weigher).
    pub fn bytes(&self) -> u64 {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        (headers + self.body.len()) as u64
    }

    /// How long ago the handler made it, by the clock of this machine, and the `Age` that it had then.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.at))
    }

    /// The response to send: with its `Age`, as RFC 9111 asks of a cache, so that caches further out count on from it.
    pub(super) fn to_response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        let age = self.age().as_secs();
        if age > 0 {
            response.headers_mut().insert(AGE, HeaderValue::from(age));
        }
        response
    }
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

/// What is serialised.
#[derive(Clone, Serialize, Deserialize)]
struct Wire {
    status: u16,
    headers: Vec<(String, Blob)>,
    body: Blob,
    at: u64,
}

impl From<CachedResponse> for Wire {
    fn from(response: CachedResponse) -> Wire {
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.as_str().to_owned(), Blob(Bytes::copy_from_slice(value.as_bytes())))
        };
        Wire {
            status: response.status.as_u16(),
            headers: response.headers.iter().map(header).collect(),
            body: Blob(response.body),
            at: response.at,
        }
    }
}

impl TryFrom<Wire> for CachedResponse {
    type Error = http::Error;

    fn try_from(wire: Wire) -> Result<CachedResponse, http::Error> {
        let mut headers = HeaderMap::with_capacity(wire.headers.len());
        for (name, value) in wire.headers {
            let value = HeaderValue::from_maybe_shared(value.0)?;
            headers.try_append(HeaderName::try_from(name)?, value).map_err(http::Error::from)?;
        }
        Ok(CachedResponse {
            status: StatusCode::from_u16(wire.status)?,
            headers,
            body: wire.body.0,
            at: wire.at,
        })
    }
}

/// Bytes that are serialised as such. By default serde takes them for a list of numbers.
#[derive(Clone)]
struct Blob(Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        deserializer.deserialize_byte_buf(BlobVisitor)
    }
}

struct BlobVisitor;

impl<'de> Visitor<'de> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(Blob(Bytes::from(bytes)))
    }

    // A format that has no bytes, like JSON, gives a list of numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Blob, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = list.next_element()? {
            bytes.push(byte);
        }
        Ok(Blob(Bytes::from(bytes)))
    }
}
