//! One line for each request.

mod writer;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version, request};
use serde::{Deserialize, Serialize};

use crate::trace_context::TraceId;

pub(crate) use writer::AccessLog;

/// The access log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AccessLogConfig {
    /// `off`, `common` or `json`; `off` by default.
    pub format: AccessLogFormat,
    /// The file that lines are appended to; standard output by default.
    pub file: String,
    /// Whether a request's query is written too; false by default, as what stands there is often a secret.
    pub query: bool,
}

/// How a request is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AccessLogFormat {
    /// Not at all.
    #[default]
    Off,
    /// The Common Log Format of the first web servers, with the time taken.
    Common,
    /// One JSON object a line.
    Json,
}

/// What is written of a request; noted while it is answered.
pub(crate) struct Entry {
    method: Method,
    target: Option<PathAndQuery>,
    version: Version,
    host: Option<HeaderValue>,
    trace: TraceId,
    client: IpAddr,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) cache: Option<HeaderValue>,
    pub(crate) bytes: u64,
    /// None if the client has left first.
    status: Option<StatusCode>,
    duration: Duration,
    ended: SystemTime,
}

impl Entry {
    pub(crate) fn new(head: &request::Parts, client: IpAddr, trace: TraceId) -> Box<Self> {
        Box::new(Self {
            method: head.method.clone(),
            target: head.uri.path_and_query().cloned(),
            version: head.version,
            host: head.headers.get(HOST).cloned(),
            trace,
            client,
            upstream: None,
            cache: None,
            bytes: 0,
            status: None,
            duration: Duration::ZERO,
            ended: SystemTime::UNIX_EPOCH,
        })
    }

    /// The request has ended, so or because its client has left.
    pub(crate) fn end(&mut self, status: Option<StatusCode>, duration: Duration) {
        self.status = status;
        self.duration = duration;
        self.ended = SystemTime::now();
    }
}
