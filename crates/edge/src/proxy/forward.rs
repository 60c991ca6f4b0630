//! One request from its head to the head of its answer.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Parts as UriParts, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, request};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Instant, Sleep};

use super::Shared;
use super::answer::Refusal;
use super::body::{Body, BoxError, RequestBody};
use super::context::RequestContext;
use super::headers;
use crate::Pick;
use crate::local::is_local;
use crate::overload::Priority;
use crate::routes::ActiveGroup;
use crate::telemetry::{self, PROXY_TARGET};

type UpstreamClient = Client<HttpConnector, RequestBody>;

/// Sends requests to upstreams, over connections that it keeps.
#[derive(Clone)]
pub(super) struct Forwarder(Rc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    client: UpstreamClient,
}

/// Why an attempt brought no answer.
enum Failure {
    /// No connection: the upstream has seen nothing of the request.
    Unreachable(hyper_util::client::legacy::Error),
    /// This side could not open a connection, to whichever upstream.
    Local(hyper_util::client::legacy::Error),
    /// The connection ended before the head of an answer.
    Died(hyper_util::client::legacy::Error),
    /// It cannot be known whether trying again would help.
    Final(Refusal),
}

impl Forwarder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let config = &shared.config;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        // The tasks that drive its connections end with the client.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.upstream_idle_timeout)
            .pool_max_idle_per_host(config.max_idle_per_upstream)
            .build(connector);
        Self(Rc::new(Inner { shared, client }))
    }
}

impl Forwarder {
    /// Tries the upstreams of a group until one answers or a second try could do harm.
    pub(super) async fn forward(
        &self,
        request: Request<RequestBody>,
        group: &ActiveGroup,
        _context: &Rc<RequestContext>,
    ) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        let replayable = body.is_empty() && matches!(head.method, Method::GET | Method::HEAD);
        let limit = self.0.shared.config.answer_body_timeout;
        let response = self.0.send(&head, &body, group, replayable).await?;
        Ok(response.map(|body| Body::Dyn(Box::pin(Patient { body, limit, patience: None }))))
    }
}

/// The body of an upstream's answer. One that falls silent in the middle of it is given up.
struct Patient {
    body: Incoming,
    limit: Duration,
    patience: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.patience = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = self.limit;
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(patience.as_mut().poll(cx));
        Poll::Ready(Some(Err("the upstream fell silent in the middle of its answer".into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Inner {
    /// Tries upstreams until one answers or a second try could do harm.
    async fn send(
        &self,
        head: &request::Parts,
        body: &RequestBody,
        group: &ActiveGroup,
        replayable: bool,
    ) -> Result<Response<Incoming>, Refusal> {
        let wait_until = Instant::now() + self.shared.config.upstream_wait;
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut died = false;
        loop {
            let mut upstream = group.balancer.pick(None, &tried, wait_until, Priority::Normal).await?;
            if !tried.is_empty() {
                metrics::counter!(telemetry::RETRIES).increment(1);
            }
            match self.attempt(head, body, &upstream).await {
                Ok(response) => {
                    upstream.answered(response.status());
                    return Ok(response);
                }
                Err(Failure::Unreachable(error)) if body.is_whole() => {
                    upstream.refused();
                    report(&upstream, &error, "upstream is unreachable");
                }
                Err(Failure::Died(error)) if replayable && !died => {
                    died = true;
                    upstream.died();
                    report(&upstream, &error, "upstream died over a request, which is sent again");
                }
                Err(Failure::Unreachable(error) | Failure::Died(error)) => {
                    upstream.died();
                    report(&upstream, &error, "upstream died over a request");
                    return Err(Refusal::UpstreamFailed);
                }
                Err(Failure::Local(error)) => {
                    report(&upstream, &error, "no connection to an upstream could be opened");
                    return Err(Refusal::NoConnection);
                }
                Err(Failure::Final(refusal)) => return Err(refusal),
            }
            tried.push(upstream.address());
        }
    }

    async fn attempt(
        &self,
        head: &request::Parts,
        body: &RequestBody,
        upstream: &Pick,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(body.clone());
        *request.method_mut() = head.method.clone();
        *request.uri_mut() =
            target(&head.uri, upstream.address()).ok_or(Failure::Final(Refusal::InvalidTarget))?;
        *request.headers_mut() = head.headers.clone();
        let response = self.head_of(request, body).await?;
        // Nobody asked to switch protocols.
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switches || !headers::has_one_length(response.headers()) {
            return Err(Failure::Final(Refusal::UpstreamAmbiguous));
        }
        Ok(response)
    }

    /// Waits for the head of the answer: as long as the client's body moves, and then for `answer_timeout`.
    async fn head_of(
        &self,
        request: Request<RequestBody>,
        body: &RequestBody,
    ) -> Result<Response<Incoming>, Failure> {
        let answer = self.client.request(request);
        tokio::pin!(answer);
        let begun = Instant::now();
        loop {
            let last_move = body.moved_at().map_or(begun, |moved_at| moved_at.max(begun));
            let starved = body.is_starved();
            let deadline = last_move
                + if starved { self.shared.config.body_timeout } else { self.shared.config.answer_timeout };
            let now = Instant::now();
            if now >= deadline {
                let silent = if starved { Refusal::ClientSilent } else { Refusal::UpstreamSilent };
                return Err(Failure::Final(silent));
            }
            // Who has to move next may change meanwhile, and with it the deadline: look at least this often.
            let look_again = now + self.shared.config.body_timeout.min(self.shared.config.answer_timeout);
            match tokio::time::timeout_at(deadline.min(look_again), &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(failure(error)),
                Err(_) => {}
            }
        }
    }
}

fn failure(error: hyper_util::client::legacy::Error) -> Failure {
    if error.is_connect() {
        return if is_local(&error) { Failure::Local(error) } else { Failure::Unreachable(error) };
    }
    let source = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
    if source.is_some_and(hyper::Error::is_parse) {
        return Failure::Final(Refusal::UpstreamAmbiguous);
    }
    // What hyper calls the user here is the body, and the body is the client's.
    if source.is_some_and(hyper::Error::is_user) {
        return Failure::Final(Refusal::BrokenBody);
    }
    Failure::Died(error)
}

fn report(upstream: &Pick, error: &hyper_util::client::legacy::Error, what: &'static str) {
    // The outermost error says only that something failed.
    let mut cause: &dyn StdError = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    tracing::warn!(target: PROXY_TARGET, upstream = upstream.name(), address = %upstream.address(), %cause, "{what}");
}

/// The same path at the upstream's address.
fn target(uri: &Uri, address: SocketAddr) -> Option<Uri> {
    let mut parts = UriParts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(address.to_string().parse().ok()?);
    parts.path_and_query =
        Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).ok()
}
