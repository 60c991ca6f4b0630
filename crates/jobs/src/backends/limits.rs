use std::future::Future;

use super::Store;
use crate::Error;
use crate::limits::QueueLimits;

/// What a database keeps about named queues, for the whole fleet.
pub trait LimitStore: Store {
    fn set_limits(
        &self,
        queue: &str,
        limits: Option<&QueueLimits>,
    ) -> impl Future<Output = Result<(), Error>> + Send;
    fn limits(&self, queue: &str) -> impl Future<Output = Result<Option<QueueLimits>, Error>> + Send;

    fn set_paused(&self, queue: &str, paused: bool) -> impl Future<Output = Result<(), Error>> + Send;
    /// The names of the paused queues.
    fn paused(&self) -> impl Future<Output = Result<Vec<String>, Error>> + Send;
}
