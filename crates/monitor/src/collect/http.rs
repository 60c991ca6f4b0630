//! Times requests, by route.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use axum::extract::MatchedPath;
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::{Frame, SizeHint};
use metrics::atomics::AtomicU64;
use metrics::{GaugeFn as _, HistogramFn as _, Key, Label, Unit};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::Span;

use super::histogram::Recording;
use super::queries::Tally;
use super::recorder::Recorder;
use crate::telemetry::{self, METHOD, ROUTE, STATUS};

/// What a request counts as while its handler runs, which only a panic leaves in place.
const STATUS_PANICKED: u16 = 500;

/// Measures each request of an axum router; made by [`Monitor::http_layer`](crate::Monitor::http_layer).
///
/// A request counts when its response's body has ended, or was dropped because the client left: a streamed answer
/// takes as long as its stream. Its label is the pattern of the matched route, or `unmatched`, never the path that
/// the client chose. A client that leaves before there is a response counts as status 499, a handler that panics
/// as 500.
///
/// Each request gets a span, `http.server.request`, at level INFO. Statements run inside it are the request's,
/// if [`Monitor::tracing_layer`](crate::Monitor::tracing_layer) is in place; those of a task that the handler
/// spawned are, if the task was given the span.
#[derive(Clone)]
pub struct HttpLayer {
    signals: Arc<HttpSignals>,
}

impl HttpLayer {
    pub(crate) fn new(signals: Arc<HttpSignals>) -> HttpLayer {
        HttpLayer { signals }
    }
}

impl std::fmt::Debug for HttpLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpLayer").finish_non_exhaustive()
    }
}

impl<S> Layer<S> for HttpLayer {
    type Service = HttpService<S>;

    fn layer(&self, inner: S) -> HttpService<S> {
        HttpService { inner, signals: self.signals.clone() }
    }
}

/// A service measured by [`HttpLayer`].
#[derive(Clone)]
pub struct HttpService<S> {
    inner: S,
    signals: Arc<HttpSignals>,
}

impl<S> std::fmt::Debug for HttpService<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpService").finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for HttpService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<MeasuredBody>;
    type Error = S::Error;
    type Future = MeasuredFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> MeasuredFuture<S::Future> {
        let mut in_flight = self.signals.begin(&request);
        let inner = in_flight.span.in_scope(|| self.inner.call(request));
        in_flight.status = telemetry::STATUS_ABANDONED;
        MeasuredFuture { inner, in_flight: Some(in_flight) }
    }
}

pin_project! {
    /// The answer of an [`HttpService`] while it is made.
    pub struct MeasuredFuture<F> {
        #[pin]
        inner: F,
        in_flight: Option<InFlight>,
    }
}

impl<F, R, E> Future for MeasuredFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<MeasuredBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(in_flight) = this.in_flight else {
            let answer = ready!(this.inner.poll(cx));
            return Poll::Ready(
                answer.map(|response| response.map(|body| MeasuredBody::new(Body::new(body), None))),
            );
        };
        in_flight.status = STATUS_PANICKED;
        let Poll::Ready(answer) = in_flight.span.in_scope(|| this.inner.poll(cx)) else {
            in_flight.status = telemetry::STATUS_ABANDONED;
            return Poll::Pending;
        };
        in_flight.status = answer.as_ref().map_or(STATUS_PANICKED, |response| response.status().as_u16());
        in_flight.span.record(STATUS, in_flight.status);
        let in_flight = this.in_flight.take();
        Poll::Ready(answer.map(|response| response.map(|body| MeasuredBody::new(Body::new(body), in_flight))))
    }
}

/// The body of a measured response: the request counts when it ends.
pub struct MeasuredBody {
    inner: Body,
    in_flight: Option<InFlight>,
}

impl MeasuredBody {
    fn new(inner: Body, in_flight: Option<InFlight>) -> MeasuredBody {
        MeasuredBody { inner, in_flight }
    }
}

impl std::fmt::Debug for MeasuredBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeasuredBody").field("ended", &self.in_flight.is_none()).finish_non_exhaustive()
    }
}

impl HttpBody for MeasuredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let frame = {
            let _in_span = this.in_flight.as_ref().map(|in_flight| in_flight.span.enter());
            ready!(Pin::new(&mut this.inner).poll_frame(cx))
        };
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            this.in_flight = None; // dropping it counts the request
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A request that is being answered. Dropping it counts it.
struct InFlight {
    span: Span,
    started: Instant,
    // What it counts as if it is dropped now.
    status: u16,
    tally: Option<Arc<Tally>>,
    route: Arc<RouteSignals>,
    signals: Arc<HttpSignals>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(active) = &self.signals.active {
            active.decrement(1.0);
        }
        if let Some(durations) = self.route.durations(self.status, &self.signals.recorder) {
            durations.record(self.started.elapsed().as_secs_f64());
        }
        if let Some(tally) = &self.tally {
            self.route.count_queries(tally, &self.signals.recorder);
        }
    }
}

/// The handles of every route seen, so that a request looks up one map instead of making its labels anew.
pub(crate) struct HttpSignals {
    recorder: Recorder,
    counts_queries: Arc<AtomicBool>,
    active: Option<Arc<AtomicU64>>,
    routes: RwLock<HashMap<String, HashMap<&'static str, Arc<RouteSignals>>>>,
}

impl HttpSignals {
    pub(crate) fn new(recorder: Recorder, counts_queries: Arc<AtomicBool>) -> HttpSignals {
        let seconds = Some(Unit::Seconds);
        recorder.describe(
            telemetry::REQUEST_DURATION,
            seconds,
            "From the arrival of a request to the end of its response's body.",
        );
        recorder.describe(telemetry::ACTIVE_REQUESTS, None, "Requests that are being answered.");
        recorder.describe(telemetry::REQUEST_QUERIES, Some(Unit::Count), "Statements that one request ran.");
        recorder.describe(
            telemetry::REQUEST_DB_TIME,
            seconds,
            "The time of a request's statements, added up.",
        );
        let active = recorder.gauge(&Key::from_static_name(telemetry::ACTIVE_REQUESTS));
        HttpSignals { recorder, counts_queries, active, routes: RwLock::default() }
    }

    fn begin<B>(self: &Arc<Self>, request: &Request<B>) -> InFlight {
        let started = Instant::now();
        let method = method(request.method());
        let route =
            request.extensions().get::<MatchedPath>().map_or(telemetry::UNMATCHED, MatchedPath::as_str);
        let span = tracing::info_span!(
            target: telemetry::REQUEST_SPAN_TARGET,
            telemetry::REQUEST_SPAN,
            http.request.method = method,
            http.route = route,
            http.response.status_code = tracing::field::Empty,
        );
        let counts_queries = self.counts_queries.load(Ordering::Relaxed);
        let tally = if counts_queries { Tally::attach(&span) } else { None };
        if let Some(active) = &self.active {
            active.increment(1.0);
        }
        InFlight {
            span,
            started,
            status: STATUS_PANICKED,
            tally,
            route: self.route(method, route),
            signals: self.clone(),
        }
    }

    fn route(&self, method: &'static str, route: &str) -> Arc<RouteSignals> {
        let known = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(signals) = known.get(route).and_then(|methods| methods.get(method)) {
            return signals.clone();
        }
        drop(known);
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let methods = routes.entry(route.to_owned()).or_default();
        methods.entry(method).or_insert_with(|| Arc::new(RouteSignals::new(method, route))).clone()
    }
}

/// The handles of one method and route.
struct RouteSignals {
    labels: [Label; 2],
    queries: OnceLock<[Option<Arc<Recording>>; 2]>,
    // Few: a route answers with a handful of statuses.
    durations: RwLock<Vec<(u16, Option<Arc<Recording>>)>>,
}

impl RouteSignals {
    fn new(method: &'static str, route: &str) -> RouteSignals {
        let labels = [Label::from_static_parts(METHOD, method), Label::new(ROUTE, route.to_owned())];
        RouteSignals { labels, queries: OnceLock::new(), durations: RwLock::default() }
    }

    fn count_queries(&self, tally: &Tally, recorder: &Recorder) {
        let [queries, db_time] = self.queries.get_or_init(|| {
            let names = [telemetry::REQUEST_QUERIES, telemetry::REQUEST_DB_TIME];
            names.map(|name| recorder.histogram(&Key::from_parts(name, self.labels.to_vec())))
        });
        if let Some(queries) = queries {
            queries.record(tally.statements() as f64);
        }
        if let Some(db_time) = db_time {
            db_time.record(tally.time().as_secs_f64());
        }
    }

    fn durations(&self, status: u16, recorder: &Recorder) -> Option<Arc<Recording>> {
        let find = |known: &[(u16, Option<Arc<Recording>>)]| {
            known.iter().find(|(of, _)| *of == status).map(|(_, durations)| durations.clone())
        };
        if let Some(found) = find(&self.durations.read().unwrap_or_else(PoisonError::into_inner)) {
            return found;
        }
        let mut known = self.durations.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = find(&known) {
            return found;
        }
        let mut labels = self.labels.to_vec();
        labels.push(Label::new(STATUS, status.to_string()));
        let durations = recorder.histogram(&Key::from_parts(telemetry::REQUEST_DURATION, labels));
        known.push((status, durations.clone()));
        durations
    }
}

/// Methods are labels, and a client may invent any number of them.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}
