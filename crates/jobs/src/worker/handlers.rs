use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};

use crate::backends::Kind;
use crate::{BoxError, Error, Job, JobContext};

/// Why a handler did not complete its job.
pub(super) enum Failure {
    Undecodable(serde_json::Error),
    Failed(BoxError),
}

/// A handler whose job type is forgotten: it takes the payload.
pub(super) type Handler =
    Arc<dyn Fn(String, JobContext) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// The handlers of a worker by the name of their job.
#[derive(Default)]
pub(super) struct Handlers {
    by_name: HashMap<&'static str, Handler>,
    queues: BTreeSet<&'static str>,
    kinds: Vec<Kind>,
    duplicate: Option<&'static str>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}

impl Handlers {
    pub(super) fn add<J, F, Fut, E>(&mut self, handler: F)
    where
        J: Job,
        F: Fn(J, JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let handler = Arc::new(handler);
        let erased: Handler = Arc::new(move |payload: String, context| {
            let handler = Arc::clone(&handler);
            // Decoding and the call itself stand inside the future, where a panic of either is caught.
            async move {
                let job: J = serde_json::from_str(&payload).map_err(Failure::Undecodable)?;
                drop(payload);
                handler(job, context).await.map_err(|error| Failure::Failed(error.into()))
            }
            .boxed()
        });
        if self.by_name.insert(J::NAME, erased).is_some() {
            self.duplicate = Some(J::NAME);
        }
        self.queues.insert(J::QUEUE);
        self.kinds.push(Kind { priority: J::PRIORITY, keep: J::KEEP });
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.duplicate {
            Some(name) => Err(Error::Worker(format!("job `{name}` has two handlers"))),
            None if self.by_name.is_empty() => Err(Error::Worker("it has no handler".to_owned())),
            None => Ok(()),
        }
    }

    pub(super) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    pub(super) fn queues(&self) -> Vec<&'static str> {
        self.queues.iter().copied().collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<&Handler> {
        self.by_name.get(name)
    }
}
