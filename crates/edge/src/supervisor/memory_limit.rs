//! Replaces instances that hold too much memory.

use std::sync::Arc;

use super::context::Context;
use super::status::InstanceState;
use super::{memory, roll};
use crate::telemetry::SUPERVISOR_TARGET;

// After a replacement that failed, so many intervals pass before the next is tried: it would fail again.
const PAUSE: u32 = 12;

/// Looks at the memory of all instances now and then, until the supervisor stops.
pub(super) async fn keep(context: Arc<Context>) {
    loop {
        // Read anew each time: a reload may change them.
        let plan = context.plan();
        let (limit, interval) = (plan.config.max_memory, plan.config.memory_interval);
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = context.stop.cancelled() => return,
        }
        if limit > 0 && !replace_largest(&context, limit).await {
            tokio::select! {
                () = tokio::time::sleep(interval * PAUSE) => {}
                () = context.stop.cancelled() => return,
            }
        }
    }
}

/// One at a time, so that they do not all go at once; says whether none is left that should have gone.
async fn replace_largest(context: &Arc<Context>, limit: u64) -> bool {
    let rows = context.table.slots();
    let ready: Vec<_> = rows.into_iter().filter(|row| row.state == InstanceState::Ready).collect();
    let groups: Vec<_> = ready.iter().filter_map(|row| row.pid).collect();
    let Ok(memory) = tokio::task::spawn_blocking(move || memory::of_groups(&groups)).await else {
        return true;
    };
    let held = |pid| memory.get(&pid).copied().unwrap_or_default();
    let largest =
        ready.into_iter().filter_map(|row| Some((held(row.pid?), row))).max_by_key(|(bytes, _)| *bytes);
    let Some((bytes, row)) = largest.filter(|(bytes, _)| *bytes > limit) else { return true };
    let _turn = context.turn.lock().await;
    // Somebody else may have replaced it meanwhile.
    let Some(row) = context.table.get(row.id).filter(|row| row.holds_slot()) else { return true };
    tracing::warn!(target: SUPERVISOR_TARGET, instance = %row.name, bytes, limit, "instance holds more memory than it may and is replaced");
    match roll::restart(context, &row).await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(target: SUPERVISOR_TARGET, instance = %row.name, %error, "instance could not be replaced");
            false
        }
    }
}
