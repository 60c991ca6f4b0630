//! More instances: a service whose instances take a few requests at once, alone and as four behind a balancer.
//!
//! The instances are processes that wait instead of working, as a service does that asks a database: what more of them
//! bring is then not bounded by this machine's cores. Both arms go through a proxy.

use greenwave_edge::BalanceConfig;

use super::Source;
use super::instances::{Service, WORKERS};
use crate::{Arm, Arms, BoxError, Experiment, Setup};

/// How many instances there are after.
const INSTANCES: usize = 4;

/// The experiment. It needs no database, but [`Source::instance`].
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "How many more requests does a service answer with four instances than with one?";
    Experiment::new("scale-out", "More instances", question, move |setup| set_up(setup, source.clone()))
        .unit("requests")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let service = Service::start(&setup, &source, &[1; INSTANCES]).await?;
    setup.fact("instances", format!("processes with {WORKERS} workers each"));
    Ok(Arms {
        before: Arm::new("1 instance", service.behind(&setup, 1, BalanceConfig::default())?),
        after: Arm::new("4 instances", service.behind(&setup, INSTANCES, BalanceConfig::default())?),
    })
}
