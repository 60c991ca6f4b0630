//! The pool's one lasting task: closes what is unused, keeps `min_idle`, warns of long holds.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{Pool, inner::Inner};
use crate::query_stats::QueryStats;

const MAX_TICK: Duration = Duration::from_secs(1);
const MIN_TICK: Duration = Duration::from_millis(10);

/// Ends with the pool, which it does not keep alive.
pub(super) async fn run(pool: Weak<Inner>, stats: QueryStats, tick: Duration) {
    let mut ticks = interval(tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = pool.upgrade() else { return };
        inner.tidy();
        Pool { inner, stats: stats.clone() }.fill().await;
    }
}

pub(super) fn tick(inner: &Arc<Inner>) -> Duration {
    let config = &inner.config;
    (config.idle_timeout.min(config.max_hold) / 4).clamp(MIN_TICK, MAX_TICK)
}
