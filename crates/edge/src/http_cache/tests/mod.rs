//! The cache before an origin that says what a test wants.

mod collapse;
mod privacy;
mod purge;
mod reuse;
mod snapshot;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use http_body_util::{BodyExt, Full};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::{CacheConfig, HttpCache};
use crate::proxy::answer::Refusal;
use crate::proxy::body::{Body, RequestBody};
use crate::proxy::fetch::Fetch;

pub(super) type Fields = &'static [(&'static str, &'static str)];

/// Answers each request as a closure says that is told its number, the first being 0.
#[derive(Clone)]
pub(super) struct Origin {
    answer: Rc<dyn Fn(&request::Parts, usize) -> Result<Response<Body>, Refusal>>,
    seen: Rc<RefCell<Vec<request::Parts>>>,
    // A permit for each answer that may go out.
    gate: Rc<Semaphore>,
}

impl Fetch for Origin {
    fn fetch(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Body>, Refusal>> + 'static {
        let this = self.clone();
        async move {
            let (head, _) = request.into_parts();
            let number = this.seen.borrow().len();
            this.seen.borrow_mut().push(head.clone());
            this.gate.acquire().await.unwrap().forget();
            (this.answer)(&head, number)
        }
    }
}

/// A cache before an origin.
#[derive(Clone)]
pub(super) struct Rig {
    pub(super) cache: HttpCache,
    pub(super) origin: Origin,
}

impl Rig {
    pub(super) fn new(
        config: CacheConfig,
        answer: impl Fn(&request::Parts, usize) -> Result<Response<Body>, Refusal> + 'static,
    ) -> Self {
        let (seen, gate) = (Rc::default(), Rc::new(Semaphore::new(1_000_000)));
        Self { cache: HttpCache::new(config), origin: Origin { answer: Rc::new(answer), seen, gate } }
    }

    /// Whose origin gives the answers of a list, and then the last again and again.
    pub(super) fn scripted(answers: &[(u16, Fields, &'static str)]) -> Self {
        Self::configured(CacheConfig::default(), answers)
    }

    pub(super) fn configured(config: CacheConfig, answers: &[(u16, Fields, &'static str)]) -> Self {
        let answers = answers.to_vec();
        Self::new(config, move |_, number| {
            let (status, fields, body) = answers[number.min(answers.len() - 1)];
            Ok(answer(status, fields, body))
        })
    }

    /// From now on answers wait to be [let out](Self::release).
    pub(super) fn hold(self) -> Self {
        self.origin.gate.forget_permits(1_000_000);
        self
    }

    pub(super) fn release(&self, answers: usize) {
        self.origin.gate.add_permits(answers);
    }

    /// What the origin saw.
    pub(super) fn seen(&self) -> Vec<request::Parts> {
        self.origin.seen.borrow().clone()
    }

    pub(super) fn asked(&self) -> usize {
        self.origin.seen.borrow().len()
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        fields: Fields,
    ) -> Result<Response<Body>, Refusal> {
        let mut request = Request::new(RequestBody::Empty);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("host", HeaderValue::from_static("a.example"));
        for (name, value) in fields {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        self.cache.ask(request, false, Instant::now(), self.origin.clone()).await
    }

    /// A GET, read to its end.
    pub(super) async fn get(&self, path: &str, fields: Fields) -> Got {
        let response = self.send(Method::GET, path, fields).await.unwrap();
        let got = Got::read(response).await;
        // What is read to its end is also kept, once its task has run.
        tokio::task::yield_now().await;
        got
    }
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: u16,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Bytes,
    pub(super) broken: bool,
}

impl Got {
    pub(super) async fn read(response: Response<Body>) -> Self {
        let (head, mut body) = response.into_parts();
        let (mut bytes, mut broken) = (Vec::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => broken = true,
            }
            if broken {
                break;
            }
        }
        Self { status: head.status.as_u16(), headers: head.headers, body: bytes.into(), broken }
    }

    pub(super) fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// What the cache says that it did.
    pub(super) fn said(&self) -> &str {
        self.field("cache-status").strip_prefix("greenwave; ").unwrap_or_default()
    }
}

pub(super) fn answer(status: u16, fields: Fields, body: &'static str) -> Response<Body> {
    with_body(status, fields, Body::Full(Full::from(body)))
}

pub(super) fn with_body(status: u16, fields: Fields, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// A body whose parts a test sends; an error breaks it off.
pub(super) fn streamed() -> (tokio::sync::mpsc::UnboundedSender<Result<Bytes, Refusal>>, Body) {
    let (send, receive) = tokio::sync::mpsc::unbounded_channel();
    (send, Body::Dyn(Box::pin(Streamed(receive))))
}

struct Streamed(tokio::sync::mpsc::UnboundedReceiver<Result<Bytes, Refusal>>);

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = crate::proxy::body::BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|part| part.map(|part| part.map(http_body::Frame::data).map_err(|_| "broken off".into())))
    }
}

/// Runs a test as a thread of the proxy runs requests.
pub(super) async fn local<T>(test: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(test).await
}

pub(super) async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

/// Lets all tasks do what they can.
pub(super) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
