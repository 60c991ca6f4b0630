//! The life of one instance: started, watched, started again, stopped.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::context::Seat;
use super::notices::Heard;
use super::process::Process;
use super::status::InstanceState;
use super::table::{Row, Table};
use crate::Error;
use crate::health::{Judge, check};
use crate::telemetry::SUPERVISOR_TARGET;

// A starting instance is checked this often: whoever starts a service waits for it.
const STARTING_INTERVAL: Duration = Duration::from_millis(50);
// A worker that is alive after this long is ready, unless it says itself when it is.
const WORKER_READY_AFTER: Duration = Duration::from_millis(200);

/// Why the present process is no longer watched.
enum End {
    Exited,
    /// It is alive and of no use, for this reason.
    Useless(String),
    Stop,
}

/// Keeps one instance alive until it is told to stop, or to drain and ends; or, on trial, until it first fails.
pub(super) async fn keep(seat: Arc<Seat>, first: Process) {
    let keeper = Keeper { seat };
    let mut process = Some(first);
    loop {
        if let Some(running) = process.take()
            && keeper.watch(running).await
        {
            break;
        }
        let Some(row) = keeper.row().filter(Row::holds_slot) else { break };
        let wait = keeper.seat.plan.config.backoff(row.crashes);
        tracing::info!(target: SUPERVISOR_TARGET, instance = %row.name, ?wait, "instance starts again");
        tokio::select! {
            () = sleep(wait) => {}
            () = keeper.seat.stop.cancelled() => break,
            _ = keeper.table().until(row.id, |row| row.draining) => break,
        }
        keeper.table().update(row.id, |row| row.restarts = row.restarts.saturating_add(1));
        match Process::start(&keeper.seat) {
            Ok(started) => process = Some(started),
            Err(Error::Start { command, source }) => {
                keeper.crashed(format!("could not start {command}: {source}"));
            }
            Err(error) => keeper.crashed(error.to_string()),
        }
    }
    keeper.set_state(InstanceState::Stopped);
}

struct Keeper {
    seat: Arc<Seat>,
}

impl Keeper {
    fn table(&self) -> &Table {
        &self.seat.context.table
    }

    fn row(&self) -> Option<Row> {
        self.table().get(self.seat.id)
    }

    /// Watches a process to its end; says whether the instance is to stop.
    async fn watch(&self, mut process: Process) -> bool {
        let heard = process.heard();
        let end = tokio::select! {
            biased;
            _ = process.exited() => End::Exited,
            () = self.seat.stop.cancelled() => End::Stop,
            reason = self.check_health(heard) => End::Useless(reason),
            never = self.forget_crashes() => match never {},
        };
        match end {
            End::Stop => {
                let exit = self.stop(process, InstanceState::Stopping).await;
                self.table().update(self.seat.id, |row| row.last_exit = Some(exit));
                true
            }
            End::Useless(reason) => {
                let exit = self.stop(process, InstanceState::Restarting).await;
                self.crashed(format!("stopped because it {reason}: {exit}"));
                self.seat.stop.is_cancelled()
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
        let (config, name) = (&self.seat.plan.config, &self.seat.name);
        process.signal(config.stop_signal.into());
        let grace = config.grace;
        tokio::select! {
            ended = timeout(grace, process.group_exited()) => if ended.is_err() {
                tracing::warn!(target: SUPERVISOR_TARGET, instance = %name, ?grace, "instance outlived its grace and is killed");
            },
            () = self.seat.context.kill.cancelled() => {}
        }
        describe(process.finish().await)
    }

    fn crashed(&self, exit: String) {
        let (name, limit) = (&self.seat.name, self.seat.plan.config.crash_loop_after);
        tracing::warn!(target: SUPERVISOR_TARGET, instance = %name, exit, "instance ended");
        let Some(before) = self.row() else { return };
        let crashes = before.crashes.saturating_add(1);
        if crashes >= limit && !before.crash_looping {
            tracing::error!(target: SUPERVISOR_TARGET, instance = %name, crashes, "instance is in a crash loop");
        }
        // Nobody else writes these fields of this row meanwhile.
        self.table().update(self.seat.id, |row| {
            row.becomes(InstanceState::Restarting);
            row.last_exit = Some(exit);
            row.crashes = crashes;
            row.crash_looping = before.crash_looping || crashes >= limit;
        });
    }

    /// Checks the process's health for as long as it is polled; returns with the reason when the process is of no use.
    async fn check_health(&self, heard: Option<watch::Receiver<Heard>>) -> String {
        let config = &self.seat.plan.config;
        let address = self.row().and_then(|row| row.address);
        let mut judge = Judge::new(&config.check);
        let ready = self.until_ready(&mut judge, address, heard.clone());
        if timeout(config.start_timeout, ready).await.is_err() {
            return format!("was not ready within {:?}", config.start_timeout);
        }
        tokio::select! {
            never = self.check_on(judge, address) => match never {},
            reason = self.listen(heard) => reason,
        }
    }

    async fn until_ready(
        &self,
        judge: &mut Judge,
        address: Option<SocketAddr>,
        heard: Option<watch::Receiver<Heard>>,
    ) {
        let notifies = heard.is_some();
        if let Some(mut heard) = heard {
            // The sender lives as long as the process is watched.
            let _ = heard.wait_for(|heard| heard.ready).await;
        }
        match address {
            Some(address) => self.check_until_ready(judge, address).await,
            None => {
                if !notifies {
                    sleep(WORKER_READY_AFTER).await;
                }
                self.passed();
            }
        }
    }

    async fn check_on(&self, mut judge: Judge, address: Option<SocketAddr>) -> Infallible {
        let config = &self.seat.plan.config;
        let Some(address) = address else { return std::future::pending().await };
        loop {
            sleep(config.check.pause()).await;
            let result = check(&config.health, address, &config.check).await;
            let healthy = judge.record(&result);
            match result {
                Ok(()) if healthy => self.passed(),
                Ok(()) => {}
                Err(reason) if healthy => {
                    tracing::debug!(target: SUPERVISOR_TARGET, instance = %self.seat.name, %reason, "health check failed");
                }
                Err(reason) => self.failed(&reason),
            }
        }
    }

    /// Listens to what a ready process says of itself; returns when it has been silent for too long. One that says
    /// that it is stopping has the grace to do so.
    async fn listen(&self, heard: Option<watch::Receiver<Heard>>) -> String {
        let Some(mut heard) = heard else { return std::future::pending().await };
        let watchdog = self.seat.plan.config.watchdog;
        let limit = if watchdog.is_zero() { Duration::MAX } else { watchdog };
        loop {
            let before = heard.borrow_and_update().alive;
            let spoken = heard.wait_for(|heard| heard.stopping || heard.alive != before);
            match timeout(limit, spoken).await {
                Err(_) => return format!("sent no WATCHDOG=1 for {limit:?}"),
                Ok(Ok(heard)) if !heard.stopping => {}
                Ok(_) => break,
            }
        }
        self.set_state(InstanceState::Stopping);
        let grace = self.seat.plan.config.grace;
        sleep(grace).await;
        format!("said that it stops and was still there after {grace:?}")
    }

    async fn check_until_ready(&self, judge: &mut Judge, address: SocketAddr) {
        let config = &self.seat.plan.config;
        loop {
            let result = check(&config.health, address, &config.check).await;
            if judge.record(&result) {
                return self.passed();
            }
            sleep(config.check.pause().min(STARTING_INTERVAL)).await;
        }
    }

    /// A healthy instance passed a check.
    fn passed(&self) {
        let state = self.row().map(|row| row.state);
        if state == Some(InstanceState::Stopping) {
            return; // It said that it is about to end.
        }
        if !matches!(state, Some(InstanceState::Ready | InstanceState::Draining)) {
            tracing::info!(target: SUPERVISOR_TARGET, instance = %self.seat.name, "instance is ready");
        }
        self.table().passed(self.seat.id);
    }

    /// A sick instance failed a check.
    fn failed(&self, reason: &dyn std::fmt::Display) {
        let state = self.row().map(|row| row.state);
        if matches!(state, Some(InstanceState::Stopping | InstanceState::Draining)) {
            return;
        }
        if state != Some(InstanceState::Unhealthy) {
            tracing::warn!(target: SUPERVISOR_TARGET, instance = %self.seat.name, %reason, "instance is unhealthy");
        }
        self.set_state(InstanceState::Unhealthy);
    }

    /// Forgets earlier crashes once the process has been ready for long enough.
    async fn forget_crashes(&self) -> Infallible {
        self.table().until(self.seat.id, |row| row.state == InstanceState::Ready).await;
        sleep(self.seat.plan.config.stable_after).await;
        self.table().update(self.seat.id, |row| {
            row.crashes = 0;
            row.crash_looping = false;
        });
        std::future::pending().await
    }

    fn set_state(&self, state: InstanceState) {
        self.table().update(self.seat.id, |row| row.becomes(state));
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("lost: {error}"),
    }
}
