use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;

use super::leases::Hold;
use crate::Error;
use crate::backends::{Burial, Lease, Retry, Store};
use crate::backoff::Weather;
use crate::dead::DeadReason;
use crate::deadline::in_time;
use crate::error::chain;

/// What shall become of a leased job that is not completed. It holds the lease until that is recorded.
#[derive(Debug)]
pub(super) struct Settlement {
    pub(super) hold: Hold,
    /// True if other jobs wait for this one.
    pub(super) awaited: bool,
    pub(super) outcome: Outcome,
}

#[derive(Debug)]
pub(super) enum Outcome {
    Retry {
        delay: Duration,
        error: Option<String>,
    },
    Dead {
        reason: DeadReason,
        error: String,
    },
    /// Back to the queue, as if it had not been fetched.
    Released,
}

/// Records what is not a completion, as many at once as have gathered while the statement before was under way. Ends
/// when all senders are gone and all is recorded.
pub(super) async fn settle<S: Store>(
    store: S,
    mut settlements: mpsc::UnboundedReceiver<Settlement>,
    max_batch: usize,
) {
    let mut batch = Vec::new();
    while settlements.recv_many(&mut batch, max_batch).await > 0 {
        let mut sorted = Sorted::default();
        batch.iter_mut().for_each(|settlement| sorted.add(settlement));
        sorted.record(&store).await;
        // Only now are the leases let go.
        batch.clear();
    }
}

#[derive(Default)]
struct Sorted {
    released: Vec<Lease>,
    retries: Vec<Retry>,
    burials: Vec<Burial>,
}

impl Sorted {
    fn add(&mut self, settlement: &mut Settlement) {
        let lease = settlement.hold.lease();
        match std::mem::replace(&mut settlement.outcome, Outcome::Released) {
            Outcome::Released => self.released.push(lease),
            Outcome::Retry { delay, error } => self.retries.push(Retry { lease, delay, error }),
            Outcome::Dead { reason, error } => {
                self.burials.push(Burial { lease, awaited: settlement.awaited, reason, error })
            }
        }
    }

    async fn record<S: Store>(self, store: &S) {
        let Sorted { released, retries, burials } = self;
        until_recorded("retry", retries, |retries| store.retry(retries)).await;
        until_recorded("bury", burials, |burials| store.bury(burials)).await;
        until_recorded("release", released, |leases| store.release(leases)).await;
    }
}

/// Repeats a statement until the database has answered it. That is safe: each is fenced by its leases.
async fn until_recorded<T, F>(what: &'static str, jobs: Vec<T>, mut statement: impl FnMut(Vec<T>) -> F)
where
    T: Clone,
    F: Future<Output = Result<usize, Error>>,
{
    if jobs.is_empty() {
        return;
    }
    let mut weather = Weather::default();
    loop {
        match in_time(statement(jobs.clone())).await {
            Ok(found) if found < jobs.len() => {
                let gone = jobs.len() - found;
                // After an error they may be those that it recorded all the same.
                if weather.is_clear() {
                    tracing::warn!(what, gone, "jobs had gone to others before their results were recorded");
                }
                return;
            }
            Ok(_) => return,
            Err(error) => {
                let wait = weather.next();
                tracing::warn!(
                    what,
                    jobs = jobs.len(),
                    error = chain(&error),
                    ?wait,
                    "could not record results"
                );
                sleep(wait).await;
            }
        }
    }
}
