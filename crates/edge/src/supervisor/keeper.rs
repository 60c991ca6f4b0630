//! The life of one instance: started, watched, started again, stopped.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use super::Context;
use super::process::Process;
use super::status::InstanceState;
use crate::Error;
use crate::health::{Judge, check};
use crate::telemetry::SUPERVISOR_TARGET;

// A starting instance is checked this often: whoever starts a service waits for it.
const STARTING_INTERVAL: Duration = Duration::from_millis(50);
// A worker that is alive after this long is ready; nothing else shows it.
const WORKER_READY_AFTER: Duration = Duration::from_millis(200);

/// Why the present process is no longer watched.
enum End {
    Exited,
    NeverReady,
    Stop,
}

/// Keeps one instance alive until the supervisor stops.
pub(super) async fn keep(context: Arc<Context>, index: usize, first: Process) {
    let keeper = Keeper { name: context.table.slot(index).name, context, index };
    let mut process = Some(first);
    loop {
        if let Some(running) = process.take()
            && keeper.watch(running).await
        {
            break;
        }
        let wait = keeper.context.config.backoff(keeper.context.table.slot(index).crashes);
        tracing::info!(target: SUPERVISOR_TARGET, instance = %keeper.name, ?wait, "instance starts again");
        tokio::select! {
            () = sleep(wait) => {}
            () = keeper.context.stop.cancelled() => break,
        }
        keeper.context.table.update(index, |slot| slot.restarts += 1);
        match Process::start(&keeper.context, index) {
            Ok(started) => process = Some(started),
            Err(Error::Start { command, source }) => {
                keeper.crashed(format!("could not start {command}: {source}"));
            }
            Err(error) => keeper.crashed(error.to_string()),
        }
    }
    keeper.context.table.update(index, |slot| slot.state = InstanceState::Stopped);
}

struct Keeper {
    name: Arc<str>,
    context: Arc<Context>,
    index: usize,
}

impl Keeper {
    /// Watches a process to its end; says whether the supervisor stops.
    async fn watch(&self, mut process: Process) -> bool {
        let end = tokio::select! {
            biased;
            _ = process.exited() => End::Exited,
            () = self.context.stop.cancelled() => End::Stop,
            () = self.check_health() => End::NeverReady,
            never = self.forget_crashes() => match never {},
        };
        match end {
            End::Stop => {
                let exit = self.stop(process, InstanceState::Stopping).await;
                self.context.table.update(self.index, |slot| slot.last_exit = Some(exit));
                true
            }
            End::NeverReady => {
                let within = self.context.config.start_timeout;
                let exit = self.stop(process, InstanceState::Restarting).await;
                self.crashed(format!("stopped because it was not ready within {within:?}: {exit}"));
                self.context.stop.is_cancelled()
            }
            End::Exited => {
                // At once, before its last lines are read: it must get no more requests.
                self.set_state(InstanceState::Restarting);
                let exit = describe(process.finish().await);
                self.crashed(exit);
                false
            }
        }
    }

    /// Tells the group to end, and ends it after the grace; says how it ended.
    async fn stop(&self, mut process: Process, state: InstanceState) -> String {
        self.set_state(state);
        process.signal(Signal::TERM);
        let grace = self.context.config.grace;
        tokio::select! {
            ended = timeout(grace, process.group_exited()) => if ended.is_err() {
                tracing::warn!(target: SUPERVISOR_TARGET, instance = %self.name, ?grace, "instance outlived its grace and is killed");
            },
            () = self.context.kill.cancelled() => {}
        }
        describe(process.finish().await)
    }

    fn crashed(&self, exit: String) {
        tracing::warn!(target: SUPERVISOR_TARGET, instance = %self.name, exit, "instance ended");
        let limit = self.context.config.crash_loop_after;
        let before = self.context.table.slot(self.index);
        let crashes = before.crashes.saturating_add(1);
        if crashes >= limit && !before.crash_looping {
            tracing::error!(target: SUPERVISOR_TARGET, instance = %self.name, crashes, "instance is in a crash loop");
        }
        // Nobody else writes these fields of this slot meanwhile.
        self.context.table.update(self.index, |slot| {
            slot.state = InstanceState::Restarting;
            slot.last_exit = Some(exit);
            slot.crashes = crashes;
            slot.crash_looping = before.crash_looping || crashes >= limit;
        });
    }

    /// Checks the process's health for as long as it is polled; returns when it has not become ready in time.
    async fn check_health(&self) {
        let config = &self.context.config;
        let Some(address) = self.context.table.slot(self.index).address else {
            sleep(WORKER_READY_AFTER).await;
            self.passed();
            return std::future::pending().await;
        };
        let mut judge = Judge::new(&config.check);
        if timeout(config.start_timeout, self.check_until_ready(&mut judge, address)).await.is_err() {
            return;
        }
        loop {
            sleep(config.check.interval).await;
            let result = check(&config.health, address, &config.check).await;
            let healthy = judge.record(&result);
            match result {
                Ok(()) if healthy => self.passed(),
                Ok(()) => {}
                Err(reason) if healthy => {
                    tracing::debug!(target: SUPERVISOR_TARGET, instance = %self.name, %reason, "health check failed");
                }
                Err(reason) => self.failed(&reason),
            }
        }
    }

    async fn check_until_ready(&self, judge: &mut Judge, address: SocketAddr) {
        let config = &self.context.config;
        loop {
            let result = check(&config.health, address, &config.check).await;
            if judge.record(&result) {
                return self.passed();
            }
            sleep(config.check.interval.min(STARTING_INTERVAL)).await;
        }
    }

    /// A healthy instance passed a check.
    fn passed(&self) {
        if self.context.table.slot(self.index).state != InstanceState::Ready {
            tracing::info!(target: SUPERVISOR_TARGET, instance = %self.name, "instance is ready");
        }
        self.context.table.update(self.index, |slot| {
            slot.checks += 1;
            slot.state = InstanceState::Ready;
        });
    }

    /// A sick instance failed a check.
    fn failed(&self, reason: &dyn std::fmt::Display) {
        if self.context.table.slot(self.index).state != InstanceState::Unhealthy {
            tracing::warn!(target: SUPERVISOR_TARGET, instance = %self.name, %reason, "instance is unhealthy");
        }
        self.set_state(InstanceState::Unhealthy);
    }

    /// Forgets earlier crashes once the process has been ready for long enough.
    async fn forget_crashes(&self) -> Infallible {
        let mut slots = self.context.table.subscribe();
        // The sender lives as long as this does.
        let _ = slots.wait_for(|slots| slots[self.index].state == InstanceState::Ready).await;
        sleep(self.context.config.stable_after).await;
        self.context.table.update(self.index, |slot| {
            slot.crashes = 0;
            slot.crash_looping = false;
        });
        std::future::pending().await
    }

    fn set_state(&self, state: InstanceState) {
        self.context.table.update(self.index, |slot| slot.state = state);
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("lost: {error}"),
    }
}
