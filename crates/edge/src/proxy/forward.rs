//! One request from its head to the head of its answer.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};

use http::uri::{Parts as UriParts, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use super::ProxyConfig;
use super::answer::Refusal;
use super::body::{AnswerBody, InFlight, RequestBody};
use super::headers;
use crate::local::is_local;
use crate::overload::Priority;
use crate::telemetry::{self, PROXY_TARGET};
use crate::{LoadBalancer, Pick};

type UpstreamClient = Client<HttpConnector, RequestBody>;

/// Sends requests to upstreams, over connections that it keeps.
pub(super) struct Forwarder {
    config: ProxyConfig,
    balancer: LoadBalancer,
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
    pub(super) fn new(config: ProxyConfig, balancer: LoadBalancer) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        // The tasks that drive its connections end with the client.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.upstream_idle_timeout)
            .pool_max_idle_per_host(config.max_idle_per_upstream)
            .build(connector);
        Self { config, balancer, client }
    }

    pub(super) fn balancer(&self) -> &LoadBalancer {
        &self.balancer
    }

    /// Answers a request; `sound` says whether its length can be read in one way only.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        sound: bool,
    ) -> Response<AnswerBody> {
        let in_flight = InFlight::begin();
        match self.forward(request, peer, sound).await {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                headers::remove_hop_by_hop(&mut head.headers);
                head.version = Version::HTTP_11;
                let in_flight = in_flight.answered(head.status);
                Response::from_parts(
                    head,
                    AnswerBody::upstream(body, self.config.answer_body_timeout, in_flight),
                )
            }
            Err(refusal) => {
                tracing::debug!(target: PROXY_TARGET, ?refusal, "request answered by the proxy");
                refusal.answer(in_flight)
            }
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        sound: bool,
    ) -> Result<Response<Incoming>, Refusal> {
        let (mut head, body) = request.into_parts();
        if !sound {
            return Err(Refusal::Ambiguous);
        }
        headers::check_request(&head)?;
        headers::to_upstream(&mut head, peer);
        let body = RequestBody::new(body);
        let replayable = body.is_empty() && matches!(head.method, Method::GET | Method::HEAD);
        self.send(&head, &body, replayable).await
    }

    /// Tries upstreams until one answers or a second try could do harm.
    async fn send(
        &self,
        head: &request::Parts,
        body: &RequestBody,
        replayable: bool,
    ) -> Result<Response<Incoming>, Refusal> {
        let wait_until = Instant::now() + self.config.upstream_wait;
        let mut tried: Vec<SocketAddr> = Vec::new();
        let mut died = false;
        loop {
            let mut upstream = self.balancer.pick(None, &tried, wait_until, Priority::Normal).await?;
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
            let deadline =
                last_move + if starved { self.config.body_timeout } else { self.config.answer_timeout };
            let now = Instant::now();
            if now >= deadline {
                let silent = if starved { Refusal::ClientSilent } else { Refusal::UpstreamSilent };
                return Err(Failure::Final(silent));
            }
            // Who has to move next may change meanwhile, and with it the deadline: look at least this often.
            let look_again = now + self.config.body_timeout.min(self.config.answer_timeout);
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
