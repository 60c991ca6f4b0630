//! One request from its head to the head of its answer: which upstream, and which next if that one fails.

use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response, request};

use super::Shared;
use super::answer::Refusal;
use super::body::{Body, RequestBody};
use super::context::RequestContext;
use super::sweep;
use super::upstream::{Patience, SendError, Sent, Switched, UpstreamPool};
use crate::Pick;
use crate::overload::Priority;
use crate::routes::ActiveGroup;
use crate::telemetry::{self, PROXY_TARGET};

/// Sends requests to upstreams, over connections that it keeps.
#[derive(Clone)]
pub(super) struct Forwarder {
    shared: Arc<Shared>,
    pool: UpstreamPool,
}

/// What a failed attempt allows.
enum Next {
    /// The next upstream: this one has seen nothing of the request.
    Other,
    /// One more attempt: what the upstream did with the request is not known, but doing it twice is no harm.
    Retry,
    /// Another attempt: the upstream had most likely ended the connection before it saw the request.
    Repeat,
    /// None.
    Refuse(Refusal),
}

impl Forwarder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let pool = UpstreamPool::new(&shared.config);
        Self { shared, pool }
    }

    /// Closes connections to upstreams that were idle for too long.
    pub(super) fn sweep(&self) {
        self.pool.sweep();
    }

    /// Tries the upstreams of a group until one answers or a further try could do harm.
    pub(super) async fn forward(
        &self,
        request: Request<RequestBody>,
        group: &ActiveGroup,
        context: &Rc<RequestContext>,
    ) -> Result<Response<Body>, Refusal> {
        let (head, body) = request.into_parts();
        let config = &self.shared.config;
        let patience = Patience::new(config, context.started);
        let wait_until = context.started + config.upstream_wait;
        let mut tried: Vec<SocketAddr> = Vec::new();
        let sticky = group.sticky.of(&head.headers, context.connection.secure);
        let mut died = false;
        group.retries.deposit(sweep::now());
        loop {
            let mut pick = group.balancer.pick(sticky.key, &tried, wait_until, Priority::Normal).await?;
            if !tried.is_empty() {
                metrics::counter!(telemetry::RETRIES).increment(1);
            }
            let error = match self.pool.send(pick.address(), &head, &body, patience).await {
                Ok(mut response) => {
                    pick.answered(response.status());
                    sticky.mark(&mut response);
                    return Ok(response.map(|sent| match sent {
                        Sent::Body(mut body) => {
                            body.hold(pick);
                            Body::Upstream(body)
                        }
                        Sent::Switched(stream, read) => {
                            Body::Switched(Box::new(Switched { stream, read, pick }))
                        }
                    }));
                }
                Err(error) => error,
            };
            match after(error, &mut pick, &head, &body) {
                Next::Refuse(refusal) => return Err(refusal),
                Next::Other => {}
                Next::Retry if died => return Err(Refusal::UpstreamFailed),
                Next::Retry | Next::Repeat if !group.retries.withdraw(sweep::now()) => {
                    return Err(Refusal::UpstreamFailed);
                }
                Next::Retry => died = true,
                Next::Repeat => {}
            }
            tried.push(pick.address());
        }
    }
}

/// Says how the upstream fared, and what may be done about it.
fn after(error: SendError, pick: &mut Pick, head: &request::Parts, body: &RequestBody) -> Next {
    let replayable = body.is_whole() && head.method.is_idempotent();
    match error {
        SendError::Unreachable(cause) => {
            pick.refused();
            report(pick, &cause, "upstream is unreachable");
            if body.is_whole() { Next::Other } else { Next::Refuse(Refusal::UpstreamFailed) }
        }
        SendError::Local(cause) => {
            report(pick, &cause, "no connection to an upstream could be opened");
            Next::Refuse(Refusal::NoConnection)
        }
        // An upstream may end a connection that is idle whenever it likes.
        SendError::Died { reused: true, .. } if replayable => Next::Repeat,
        SendError::Died { cause, .. } => {
            pick.died();
            let cause: &dyn Display = cause.as_ref().map_or(&"it ended the connection", |cause| cause);
            report(pick, cause, "upstream died over a request");
            if replayable { Next::Retry } else { Next::Refuse(Refusal::UpstreamFailed) }
        }
        SendError::Ambiguous(cause) => {
            pick.died();
            report(pick, &cause, "upstream sent an ambiguous answer");
            Next::Refuse(Refusal::UpstreamAmbiguous)
        }
        SendError::Silent => {
            pick.died();
            report(pick, &"nothing came", "upstream did not answer in time");
            Next::Refuse(Refusal::UpstreamSilent)
        }
        SendError::ClientSilent => Next::Refuse(Refusal::ClientSilent),
        SendError::BrokenBody => Next::Refuse(Refusal::BrokenBody),
    }
}

fn report(pick: &Pick, cause: &dyn Display, what: &'static str) {
    tracing::warn!(target: PROXY_TARGET, upstream = pick.name(), address = %pick.address(), %cause, "{what}");
}
