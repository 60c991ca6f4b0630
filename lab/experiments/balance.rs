//! The balancer: four instances, one of them three times slower, by turns and by who is expected to answer soonest.
//!
//! The instances are processes that wait instead of working, as a service does that asks a database: each takes a few
//! requests at once and queues the rest. Both arms' proxies are before the same instances, and differ in the
//! strategy alone.

use greenwave_edge::{BalanceConfig, Strategy};

use super::Source;
use super::instances::{Service, WORKERS};
use crate::{Arm, Arms, BoxError, Experiment, Setup};

/// How much slower the first instance is.
const SLOWER: u32 = 3;

/// The experiment. It needs no database, but [`Source::instance`].
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "How many more requests do four instances answer, one of them three times slower, when the balancer measures?";
    Experiment::new("balance", "The balancer", question, move |setup| set_up(setup, source.clone()))
        .unit("requests")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let service = Service::start(&setup, &source, &[SLOWER, 1, 1, 1]).await?;
    setup.fact("instances", format!("4 processes with {WORKERS} workers each, one {SLOWER} times slower"));
    let in_turn = BalanceConfig { strategy: Strategy::RoundRobin, ..BalanceConfig::default() };
    Ok(Arms {
        before: Arm::new("round robin", service.behind(&setup, 4, in_turn)?),
        after: Arm::new("least latency", service.behind(&setup, 4, BalanceConfig::default())?),
    })
}
