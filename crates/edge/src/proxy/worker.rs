//! What one thread of the proxy does with each request.

use std::cell::{Cell, OnceCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, request};
use hyper::body::Incoming;
use metrics::{Gauge, Histogram, histogram};

use super::answer::Refusal;
use super::body::{AnswerBody, Body, InFlight, RequestBody};
use super::context::{Connection, RequestContext};
use super::fetch::Fetch;
use super::forward::Forwarder;
use super::sweep::Deadline;
use super::{ProxyConfig, Shared, headers};
use crate::compression::Accepts;
use crate::load_balancer::sticky::set_cookie;
use crate::overload::{Priority, Quotas};
use crate::routes::ActiveGroup;
use crate::telemetry::{self, PROXY_TARGET};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What the connections of one thread share.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    forwarder: Forwarder,
    metrics: WorkerMetrics,
    draining: Cell<bool>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let forwarder = Forwarder::new(Arc::clone(&shared));
        let metrics = WorkerMetrics::new(shared.active.clone());
        Self { shared, forwarder, metrics, draining: Cell::new(false) }
    }

    pub(crate) fn config(&self) -> &ProxyConfig {
        &self.shared.config
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Does what is due every now and then.
    pub(super) fn sweep(&self) {
        self.metrics.tell();
        self.forwarder.sweep();
    }

    pub(crate) fn metrics(&self) -> &WorkerMetrics {
        &self.metrics
    }

    /// From now on each answer is its connection's last.
    pub(super) fn begin_drain(&self) {
        self.draining.set(true);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// How long a connection without a request is kept.
    pub(super) fn idle_patience(&self, usually: Duration) -> Duration {
        if self.is_draining() { usually.min(self.config().drain_idle_timeout) } else { usually }
    }

    /// Whether that is a proxy that is believed.
    pub(super) fn trusts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.config().trust.proxies.iter().any(|network| network.contains(&ip))
    }

    /// Answers a request, whatever happens.
    pub(super) async fn answer(
        request: Request<Incoming>,
        connection: Rc<Connection>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let sound = connection.take_up();
        // The head is a large part of this future, in which it has room once for each place that it is borrowed in.
        let (context, quotas, routed) = {
            let (mut head, body) = request.into_parts();
            let context = RequestContext::new(&mut head, connection);
            let worker = &context.connection.worker;
            let (quotas, allowed) = worker.limit(&head, &context);
            let routed = allowed.and_then(|()| worker.route(head, body, sound, &context));
            (context, quotas, routed)
        };
        let in_flight = InFlight::begin(Rc::clone(&context));
        let worker = &context.connection.worker;
        let deadline = worker.total_deadline();
        // Pinned where it is made, as it is too large to be moved for nothing.
        let answer = pin!(worker.stack(routed, &context));
        let mut response = match or_expired(answer, deadline.as_ref()).await {
            Ok(response) => {
                if let Some(entry) = &mut *context.entry.borrow_mut() {
                    entry.cache = response.headers().get(CACHE_STATUS).cloned();
                }
                worker.hand_over(response, in_flight, deadline)
            }
            Err(refusal) => {
                tracing::debug!(target: PROXY_TARGET, ?refusal, "request answered by the proxy");
                refusal.answer(in_flight)
            }
        };
        if let Some(quotas) = quotas {
            quotas.tell(response.headers_mut());
        }
        if worker.is_draining() && !context.connection.http2 && !response.status().is_informational() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// Counts a request, unless it goes first.
    fn limit(
        &self,
        head: &request::Parts,
        context: &RequestContext,
    ) -> (Option<Quotas>, Result<(), Refusal>) {
        match self.config().overload.priority(head.uri.path()) {
            Priority::High => (None, Ok(())),
            Priority::Normal => self.shared.rate_limits.check(head, context.client),
        }
    }

    fn total_deadline(&self) -> Option<Deadline> {
        let limit = self.config().total_timeout;
        (!limit.is_zero()).then(|| {
            let deadline = Deadline::new();
            deadline.set(limit);
            deadline
        })
    }

    /// Gives an answer to the client's connection.
    fn hand_over(
        &self,
        response: Response<Body>,
        in_flight: InFlight,
        deadline: Option<Deadline>,
    ) -> Response<AnswerBody> {
        let in_flight = in_flight.answered(response.status());
        let (head, body) = response.into_parts();
        match body {
            Body::Switched(upstream) => {
                let connection = Rc::clone(in_flight.connection());
                // It lasts as long as the connection; what hyper gets has no end to record.
                let body = AnswerBody::empty();
                *connection.upgrade.borrow_mut() = Some((upstream, in_flight));
                Response::from_parts(head, body)
            }
            body => Response::from_parts(head, AnswerBody::new(body, in_flight).until(deadline)),
        }
    }

    /// Which way a request goes.
    fn route(
        &self,
        head: request::Parts,
        body: Incoming,
        sound: bool,
        context: &Rc<RequestContext>,
    ) -> Result<Routed, Refusal> {
        if !sound {
            return Err(Refusal::Ambiguous);
        }
        headers::check_request(&head)?;
        let group = self.shared.groups.find(headers::host(&head), head.uri.path()).ok_or(Refusal::NoRoute)?;
        let (forwarder, group) = (self.forwarder.clone(), Arc::clone(group));
        let accepts = self.config().compression.accepts(&head.headers);
        let fetch = Onward { forwarder, group, context: Rc::clone(context) };
        let request = Request::from_parts(head, RequestBody::new(body));
        Ok(Routed { request, fetch, accepts })
    }

    /// The way of a request, from behaviour to behaviour.
    async fn stack(
        &self,
        routed: Result<Routed, Refusal>,
        context: &Rc<RequestContext>,
    ) -> Result<Response<Body>, Refusal> {
        let Routed { request, fetch, accepts } = routed?;
        let mut response = self.shared.cache.answer(request, context, fetch).await?;
        set_cookie(&mut response);
        match accepts {
            Some(accepts) => Ok(Box::pin(self.config().compression.compress(accepts, response)).await),
            None => Ok(response),
        }
    }
}

/// A request, and what lies on its way.
struct Routed {
    request: Request<RequestBody>,
    fetch: Onward,
    accepts: Option<Accepts>,
}

/// The way to an upstream: what concerns a connection alone ends here, in both directions.
#[derive(Clone)]
struct Onward {
    forwarder: Forwarder,
    group: Arc<ActiveGroup>,
    context: Rc<RequestContext>,
}

impl Fetch for Onward {
    fn fetch(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Body>, Refusal>> + 'static {
        let this = self.clone();
        async move {
            let (mut head, body) = request.into_parts();
            headers::to_upstream(&mut head, &this.context);
            let request = Request::from_parts(head, body);
            this.forwarder.forward(request, &this.group, &this.context).await
        }
    }
}

/// What the future gives, or that it was too slow.
async fn or_expired<T>(
    mut future: Pin<&mut impl Future<Output = Result<T, Refusal>>>,
    deadline: Option<&Deadline>,
) -> Result<T, Refusal> {
    let Some(deadline) = deadline else { return future.await };
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Pending => deadline.poll_expired(cx).map(|()| Err(Refusal::TooSlow)),
        ready => ready,
    })
    .await
}

/// Handles of metrics, so that no request looks one up.
pub(crate) struct WorkerMetrics {
    active: Gauge,
    // Begun and not ended since the gauge was last told, and in all.
    untold: Cell<i64>,
    durations: Vec<OnceCell<Histogram>>,
    left: OnceCell<Histogram>,
}

impl WorkerMetrics {
    fn new(active: Gauge) -> Self {
        let durations = (100..600).map(|_| OnceCell::new()).collect();
        Self { active, untold: Cell::new(0), durations, left: OnceCell::new() }
    }

    pub(crate) fn begin(&self) {
        self.untold.set(self.untold.get() + 1);
    }

    /// A request has ended; without a status its client has left.
    pub(crate) fn end(&self, status: Option<StatusCode>, took: Duration) {
        self.untold.set(self.untold.get() - 1);
        let cell =
            status.and_then(|status| self.durations.get(usize::from(status.as_u16()).wrapping_sub(100)));
        let histogram = cell.unwrap_or(&self.left).get_or_init(|| {
            let status = status.as_ref().map_or("499", StatusCode::as_str).to_owned();
            histogram!(telemetry::REQUEST_DURATION, telemetry::STATUS => status)
        });
        histogram.record(took.as_secs_f64());
    }

    /// Brings the gauge of active requests up to date. Cores would fight over it if each request did.
    pub(super) fn tell(&self) {
        let untold = self.untold.replace(0);
        if untold != 0 {
            // A count of requests is far below what a float holds exactly.
            self.active.increment(untold as f64);
        }
    }
}

impl Drop for WorkerMetrics {
    fn drop(&mut self) {
        self.tell();
    }
}
