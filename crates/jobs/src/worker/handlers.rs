use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;

use super::JobContext;
use crate::backends::Kind;
use crate::telemetry::Meters;
use crate::{BoxError, Error, Job};

/// Why a handler did not complete its job.
pub(super) enum Failure {
    Undecodable(BoxError),
    /// A newer release of the program pushed it.
    Newer(u32),
    Failed(BoxError),
}

/// What was stored of a job.
pub(super) struct Payload {
    pub(super) json: String,
    pub(super) version: u32,
    /// True if the result shall be kept.
    pub(super) kept: bool,
}

type Run =
    Arc<dyn Fn(Payload, JobContext) -> BoxFuture<'static, Result<Option<String>, Failure>> + Send + Sync>;

/// A handler whose job type is forgotten.
#[derive(Clone)]
pub(super) struct Handler {
    pub(super) name: &'static str,
    pub(super) queue: &'static str,
    pub(super) kind: Kind,
    pub(super) retry_after: fn(u32) -> Option<Duration>,
    /// How many of it run at once in this worker.
    pub(super) at_most: Option<usize>,
    pub(super) meters: Meters,
    pub(super) run: Run,
}

/// The handlers of a worker.
#[derive(Default, Clone)]
pub(super) struct Handlers {
    all: Vec<Handler>,
    by_name: HashMap<&'static str, usize>,
    bounds: BTreeMap<&'static str, usize>,
    duplicate: Option<&'static str>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

impl Handlers {
    pub(super) fn add<J, F, Fut, R, E>(&mut self, handler: F)
    where
        J: Job,
        F: Fn(J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, E>> + Send + 'static,
        R: Serialize + 'static,
        E: Into<BoxError>,
    {
        let handler = Arc::new(handler);
        let run: Run = Arc::new(move |payload: Payload, context| {
            let handler = Arc::clone(&handler);
            // Decoding and the call itself stand inside the future, where a panic of either is caught.
            async move {
                let job = decode(&payload)?;
                let kept = payload.kept;
                drop(payload);
                match handler(job, context).await {
                    Ok(result) if kept => encode(&result),
                    Ok(_) => Ok(None),
                    Err(error) => Err(Failure::Failed(error.into())),
                }
            }
            .boxed()
        });
        if self.by_name.insert(J::NAME, self.all.len()).is_some() {
            self.duplicate = Some(J::NAME);
        }
        self.all.push(Handler {
            name: J::NAME,
            queue: J::QUEUE,
            kind: Kind { priority: J::PRIORITY, keep: J::KEEP },
            retry_after: J::retry_after,
            at_most: None,
            meters: Meters::default(),
            run,
        });
    }

    pub(super) fn bound(&mut self, name: &'static str, at_most: usize) {
        self.bounds.insert(name, at_most);
    }

    /// Checks what was added, and makes ready to run.
    pub(super) fn ready(mut self) -> Result<Self, Error> {
        let refused = |why: String| Err(Error::Worker(why));
        if let Some(name) = self.duplicate {
            return refused(format!("job `{name}` has two handlers"));
        }
        if self.all.is_empty() {
            return refused("it has no handler".to_owned());
        }
        for (name, at_most) in &self.bounds {
            let Some(&at) = self.by_name.get(name) else {
                return refused(format!("`at_most` names job `{name}`, which has no handler"));
            };
            if *at_most == 0 {
                return refused(format!("`at_most` of job `{name}` must be above zero"));
            }
            self.all[at].at_most = Some(*at_most);
        }
        for handler in &mut self.all {
            // Now that the program has installed its recorder, and not at each attempt.
            handler.meters = Meters::new(handler.queue, handler.name);
        }
        Ok(self)
    }

    pub(super) fn queues(&self) -> Vec<&'static str> {
        self.all.iter().map(|handler| handler.queue).collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Handler> {
        self.all.iter()
    }

    /// The place of a handler.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    pub(super) fn at(&self, at: usize) -> Option<&Handler> {
        self.all.get(at)
    }
}

fn decode<J: Job>(payload: &Payload) -> Result<J, Failure> {
    if payload.version > J::VERSION {
        return Err(Failure::Newer(payload.version));
    }
    let undecodable = |error: serde_json::Error| Failure::Undecodable(error.into());
    if payload.version == J::VERSION {
        return serde_json::from_str(&payload.json).map_err(undecodable);
    }
    let old = serde_json::from_str(&payload.json).map_err(undecodable)?;
    J::upcast(payload.version, old).map_err(Failure::Undecodable)
}

/// The result as it is kept; that of `()` is none.
fn encode<R: Serialize>(result: &R) -> Result<Option<String>, Failure> {
    match serde_json::to_string(result) {
        Ok(json) => Ok(Some(json).filter(|json| json != "null")),
        Err(error) => Err(Failure::Failed(format!("the result does not encode: {error}").into())),
    }
}
