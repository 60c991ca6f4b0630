//! Changes of the set of instances: more, fewer, and others in their place. Each runs while it has the turn.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::context::{Context, Plan, Seat};
use super::keeper;
use super::process::Process;
use super::status::InstanceState;
use super::table::{Row, RowId};
use crate::Error;
use crate::telemetry::SUPERVISOR_TARGET;

/// Why an instance was not replaced.
enum Refused {
    /// The new one could not be started at all.
    Start(Error),
    /// It did not become ready.
    NotReady(Box<Row>),
    /// The supervisor stops.
    Stopped(Arc<str>),
}

impl Refused {
    fn into_error(self, replaced: usize, instances: usize) -> Error {
        match self {
            Self::Start(error) => error,
            Self::Stopped(name) => Error::Stopped { instance: name.to_string() },
            Self::NotReady(row) => Error::Reload {
                instance: row.name.to_string(),
                replaced,
                instances,
                last_exit: row.last_exit,
                last_lines: row.tail.lines(),
            },
        }
    }
}

/// Starts instances of these numbers. When one cannot be started, none is.
pub(super) fn start(
    context: &Arc<Context>,
    plan: &Arc<Plan>,
    indexes: impl IntoIterator<Item = usize>,
) -> Result<(), Error> {
    let mut started = Vec::new();
    // All of them before any is watched: when one cannot start, the others end by their drop.
    for index in indexes {
        match start_one(context, plan, index, None) {
            Ok(running) => started.push(running),
            Err(error) => {
                started.iter().for_each(|(seat, _)| context.table.remove(seat.id));
                return Err(error);
            }
        }
    }
    for (seat, process) in started {
        context.tasks.spawn(keeper::keep(seat, process));
    }
    Ok(())
}

fn start_one(
    context: &Arc<Context>,
    plan: &Arc<Plan>,
    index: usize,
    replaces: Option<&Row>,
) -> Result<(Arc<Seat>, Process), Error> {
    let seat = Seat::take(context, plan, index, replaces)?;
    match Process::start(&seat) {
        Ok(process) => Ok((seat, process)),
        Err(error) => {
            context.table.remove(seat.id);
            Err(error)
        }
    }
}

/// Replaces all instances, then makes them as many as planned.
pub(super) async fn reload(context: &Arc<Context>, plan: Plan) -> Result<(), Error> {
    let plan = Arc::new(plan);
    let mut old = context.table.slots();
    old.truncate(plan.config.instances);
    let (mut replaced, instances) = (0, old.len());
    for batch in old.chunks(plan.config.max_surge.max(1)) {
        let mut replacements = JoinSet::new();
        for row in batch {
            let (context, plan, row) = (Arc::clone(context), Arc::clone(&plan), row.clone());
            replacements.spawn(async move { replace(&context, &plan, &row).await });
        }
        let mut refused = None;
        for result in replacements.join_all().await {
            match result {
                Ok(()) => replaced += 1,
                Err(reason) => refused = Some(reason),
            }
        }
        if let Some(refused) = refused {
            return Err(refused.into_error(replaced, instances));
        }
    }
    scale(context, plan).await
}

/// Makes the instances as many as planned. Those that are too many, of the highest numbers, are drained and ended.
pub(super) async fn scale(context: &Arc<Context>, plan: Arc<Plan>) -> Result<(), Error> {
    let rows = context.table.slots();
    let wanted = plan.config.instances;
    let free = (0..).filter(|index| !rows.iter().any(|row| row.index == *index));
    start(context, &plan, free.take(wanted.saturating_sub(rows.len())))?;
    context.set_plan(plan);
    let mut ending = JoinSet::new();
    for row in rows.iter().skip(wanted) {
        let (context, id) = (Arc::clone(context), row.id);
        ending.spawn(async move { retire(&context, id).await });
    }
    ending.join_all().await;
    Ok(())
}

/// Replaces one instance by another that runs as instances now do.
pub(super) async fn restart(context: &Arc<Context>, old: &Row) -> Result<(), Error> {
    replace(context, &context.plan(), old).await.map_err(|refused| refused.into_error(0, 1))
}

/// Starts an instance beside the old one; once it is ready, which [`Table::passed`] notes, ends the old one.
///
/// [`Table::passed`]: super::table::Table::passed
async fn replace(context: &Arc<Context>, plan: &Arc<Plan>, old: &Row) -> Result<(), Refused> {
    let (seat, process) = start_one(context, plan, old.index, Some(old)).map_err(Refused::Start)?;
    let id = seat.id;
    context.tasks.spawn(keeper::keep(seat, process));
    let settled = |row: &Row| row.replaces.is_none() || row.state == InstanceState::Stopped;
    let row = context.table.until(id, settled).await;
    if context.stop.is_cancelled() {
        return Err(Refused::Stopped(Arc::clone(&old.name)));
    }
    if let Some(row) = row.filter(|row| row.replaces.is_some()) {
        context.table.remove(id);
        tracing::error!(target: SUPERVISOR_TARGET, instance = %row.name, "new instance did not become ready; the old one is kept");
        return Err(Refused::NotReady(Box::new(row)));
    }
    tracing::info!(target: SUPERVISOR_TARGET, instance = %old.name, "instance is replaced; the old one drains");
    retire(context, old.id).await;
    Ok(())
}

/// Lets an instance finish its requests, ends it and forgets it.
async fn retire(context: &Context, id: RowId) {
    context.table.drain(id);
    let Some(row) = context.table.get(id) else { return };
    // A worker has no requests that others know of.
    if row.address.is_some() {
        let within = context.plan().config.drain_timeout;
        let finished = context.table.until(id, |row| row.released || row.state == InstanceState::Stopped);
        tokio::select! {
            () = context.stop.cancelled() => {}
            drained = tokio::time::timeout(within, finished) => if drained.is_err() {
                tracing::warn!(target: SUPERVISOR_TARGET, instance = %row.name, ?within, "instance still had requests when it was told to end");
            },
        }
    }
    row.stop.cancel();
    context.table.until(id, |row| row.state == InstanceState::Stopped).await;
    // After a stop of the whole, what has ended is still told of.
    if !context.stop.is_cancelled() {
        context.table.remove(id);
    }
}
