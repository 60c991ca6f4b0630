//! What is known of each instance, kept in one place and published from there.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Upstream, Upstreams};

const TAIL_LINES: usize = 20;
const TAIL_LINE_BYTES: usize = 1024;

/// Where an instance stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InstanceState {
    /// It runs and has not passed its health checks yet.
    Starting,
    /// It runs and passes its health checks.
    Ready,
    /// It was ready and fails its health checks now. It gets no requests and is not stopped.
    Unhealthy,
    /// It has ended and is about to be started again.
    Restarting,
    /// It was told to end.
    Stopping,
    /// It has ended and is not started again.
    Stopped,
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        })
    }
}

/// One instance at one moment, for dashboards and `ps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceStatus {
    /// Its name, the same through all restarts.
    pub name: String,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// Where it listens; `None` for a worker. Each start gets a new port.
    pub address: Option<SocketAddr>,
    /// Where it stands in its life.
    pub state: InstanceState,
    /// How often it has been started again.
    pub restarts: u32,
    /// Whether it ends again and again soon after it is started.
    pub crash_looping: bool,
    /// How it last ended, in words.
    pub last_exit: Option<String>,
    /// Resident memory of its process, without that process's children; `None` where it cannot be read.
    pub memory_bytes: Option<u64>,
}

/// The last lines that an instance wrote.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    pub(super) fn push(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(&line[..line.len().min(TAIL_LINE_BYTES)]).into_owned();
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) name: Arc<str>,
    pub(super) state: InstanceState,
    pub(super) pid: Option<Pid>,
    pub(super) address: Option<SocketAddr>,
    pub(super) restarts: u32,
    // Exits since the last stable run.
    pub(super) crashes: u32,
    pub(super) crash_looping: bool,
    pub(super) last_exit: Option<String>,
    // Health checks passed in its whole life.
    pub(super) checks: u64,
    pub(super) tail: Tail,
}

impl Slot {
    fn status(&self) -> InstanceStatus {
        InstanceStatus {
            name: self.name.to_string(),
            pid: self.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs()),
            address: self.address,
            state: self.state,
            restarts: self.restarts,
            crash_looping: self.crash_looping,
            last_exit: self.last_exit.clone(),
            memory_bytes: self.pid.and_then(memory_bytes),
        }
    }

    fn upstream(&self) -> Option<Upstream> {
        let mut upstream = Upstream::new(&*self.name, self.address?);
        upstream.healthy = self.state == InstanceState::Ready;
        upstream.checks = self.checks;
        Some(upstream)
    }
}

/// All instances. Every change is published to those who wait and, where it concerns them, as upstreams.
#[derive(Debug)]
pub(super) struct Table {
    slots: watch::Sender<Vec<Slot>>,
    upstreams: watch::Sender<Upstreams>,
}

impl Table {
    pub(super) fn new(name: &str, instances: usize) -> Self {
        let slot = |index| Slot {
            name: format!("{name}-{index}").into(),
            state: InstanceState::Starting,
            pid: None,
            address: None,
            restarts: 0,
            crashes: 0,
            crash_looping: false,
            last_exit: None,
            checks: 0,
            tail: Tail::default(),
        };
        Self {
            slots: watch::Sender::new((0..instances).map(slot).collect()),
            upstreams: watch::Sender::new(Upstreams::default()),
        }
    }

    /// Changes one slot and publishes what follows. `change` runs under the lock: it only writes.
    pub(super) fn update(&self, index: usize, change: impl FnOnce(&mut Slot)) {
        self.slots.send_modify(|slots| {
            change(&mut slots[index]);
            // Inside the outer lock, so that two changes are published in the order in which they happen.
            let now: Upstreams = slots.iter().filter_map(Slot::upstream).collect();
            self.upstreams.send_if_modified(|published| {
                let changed = *published != now;
                if changed {
                    *published = now;
                }
                changed
            });
        });
    }

    pub(super) fn slot(&self, index: usize) -> Slot {
        self.slots.borrow()[index].clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<Slot>> {
        self.slots.subscribe()
    }

    pub(super) fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.upstreams.subscribe()
    }

    pub(super) fn statuses(&self) -> Vec<InstanceStatus> {
        // Copied first: reading memory sizes is not to be done under the lock.
        let slots = self.slots.borrow().clone();
        slots.iter().map(Slot::status).collect()
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.slots.borrow().iter().filter_map(|slot| slot.address).collect()
    }

    pub(super) fn kill_all(&self) {
        for slot in self.slots.borrow().iter() {
            if let Some(pid) = slot.pid {
                // It may just have ended by itself.
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }
}

/// Resident memory by `/proc`. `status` has it in kB; `statm` counts pages, whose size differs by machine.
fn memory_bytes(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones() {
        let tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}").as_bytes());
        }
        tail.push(&[b'x'; 5000]);
        let lines = tail.lines();
        assert_eq!((lines.len(), lines[0].as_str(), lines[19].len()), (20, "line 81", TAIL_LINE_BYTES));
    }

    #[test]
    fn memory_of_this_process_is_known() {
        assert!(memory_bytes(rustix::process::getpid()).is_some_and(|bytes| bytes > 100_000));
    }
}
