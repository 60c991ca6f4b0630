//! What is known of each instance, kept in one place and published from there.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::memory;
use super::status::{InstanceState, InstanceStatus};
use crate::{Upstream, Upstreams};

const TAIL_LINES: usize = 20;
const TAIL_LINE_BYTES: usize = 1024;

/// The last lines that a process wrote, for an error that is about it.
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

/// Tells rows apart: a slot has two while its instance is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowId(u64);

/// One instance from its first start to its end: a slot's present one, or the one that is to take its place.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: RowId,
    /// The slot: the number in the instance's name.
    pub(super) index: usize,
    pub(super) name: Arc<str>,
    pub(super) state: InstanceState,
    pub(super) pid: Option<Pid>,
    pub(super) address: Option<SocketAddr>,
    pub(super) started: Option<Instant>,
    pub(super) restarts: u32,
    // Exits since the last stable run.
    pub(super) crashes: u32,
    pub(super) crash_looping: bool,
    pub(super) last_exit: Option<String>,
    // Health checks passed in its whole life.
    pub(super) checks: u64,
    pub(super) tail: Tail,
    /// Whose place it takes once it is ready; until then it is on trial.
    pub(super) replaces: Option<RowId>,
    /// It gets no further requests: from here it only goes on to its end.
    pub(super) draining: bool,
    /// Nothing is in flight on it, says whoever sends it requests.
    pub(super) released: bool,
    pub(super) stop: CancellationToken,
}

impl Row {
    pub(super) fn new(name: &str, index: usize, replaces: Option<RowId>, stop: CancellationToken) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: RowId(IDS.fetch_add(1, Ordering::Relaxed)),
            index,
            name: format!("{name}-{index}").into(),
            state: InstanceState::Starting,
            pid: None,
            address: None,
            started: None,
            restarts: 0,
            crashes: 0,
            crash_looping: false,
            last_exit: None,
            checks: 0,
            tail: Tail::default(),
            replaces,
            draining: false,
            released: false,
            stop,
        }
    }

    /// Goes on to a state, unless it drains: that ends only with the end.
    pub(super) fn becomes(&mut self, state: InstanceState) {
        if !self.draining || matches!(state, InstanceState::Stopping | InstanceState::Stopped) {
            self.state = state;
        }
    }

    fn drain(&mut self) {
        self.becomes(InstanceState::Draining);
        self.draining = true;
    }

    /// Whether it is the one that the slot counts: neither on trial nor on its way out.
    pub(super) fn holds_slot(&self) -> bool {
        self.replaces.is_none() && !self.draining
    }

    fn status(&self, memory_bytes: Option<u64>) -> InstanceStatus {
        InstanceStatus {
            name: self.name.to_string(),
            pid: self.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs()),
            address: self.address,
            state: self.state,
            restarts: self.restarts,
            crash_looping: self.crash_looping,
            last_exit: self.last_exit.clone(),
            uptime_seconds: self.started.map(|started| started.elapsed().as_secs()),
            memory_bytes,
        }
    }

    fn upstream(&self) -> Option<Upstream> {
        let mut upstream = Upstream::new(&*self.name, self.address?);
        upstream.healthy = matches!(self.state, InstanceState::Ready | InstanceState::Draining);
        upstream.draining = self.draining;
        upstream.checks = self.checks;
        Some(upstream)
    }
}

/// All instances. Every change is published to those who wait and, where it concerns them, as upstreams.
#[derive(Debug, Default)]
pub(super) struct Table {
    // In the order of slots, the older before the newer.
    rows: watch::Sender<Vec<Row>>,
    upstreams: watch::Sender<Upstreams>,
}

impl Table {
    fn change(&self, change: impl FnOnce(&mut Vec<Row>)) {
        self.rows.send_modify(|rows| {
            change(rows);
            // Inside the outer lock, so that two changes are published in the order in which they happen.
            let now: Upstreams = rows.iter().filter_map(Row::upstream).collect();
            // Looked at first: whoever reads them may be the one who calls.
            let changed = *self.upstreams.borrow() != now;
            if changed {
                self.upstreams.send_replace(now);
            }
        });
    }

    pub(super) fn insert(&self, row: Row) {
        self.change(|rows| {
            let at = rows.partition_point(|before| before.index <= row.index);
            rows.insert(at, row);
        });
    }

    pub(super) fn remove(&self, id: RowId) {
        self.change(|rows| rows.retain(|row| row.id != id));
    }

    /// Changes one row, if it is still there. `change` runs under the lock: it only writes.
    pub(super) fn update(&self, id: RowId, change: impl FnOnce(&mut Row)) {
        self.change(|rows| {
            if let Some(row) = rows.iter_mut().find(|row| row.id == id) {
                change(row);
            }
        });
    }

    /// A row passed a check. One that was on trial takes over its slot: at no moment are two of a slot ready.
    pub(super) fn passed(&self, id: RowId) {
        self.change(|rows| {
            let mut replaced = None;
            if let Some(row) = rows.iter_mut().find(|row| row.id == id) {
                row.checks += 1;
                row.becomes(InstanceState::Ready);
                replaced = row.replaces.take();
            }
            if let Some(old) = rows.iter_mut().find(|row| Some(row.id) == replaced) {
                old.drain();
            }
        });
    }

    pub(super) fn drain(&self, id: RowId) {
        self.update(id, Row::drain);
    }

    /// Nothing is in flight at that address; it counts only for a row that drains.
    pub(super) fn released(&self, address: SocketAddr) {
        self.change(|rows| {
            for row in rows.iter_mut().filter(|row| row.draining && row.address == Some(address)) {
                row.released = true;
            }
        });
    }

    pub(super) fn get(&self, id: RowId) -> Option<Row> {
        self.rows.borrow().iter().find(|row| row.id == id).cloned()
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        self.rows.borrow().clone()
    }

    /// The row of each slot that counts, in order.
    pub(super) fn slots(&self) -> Vec<Row> {
        self.rows.borrow().iter().filter(|row| row.holds_slot()).cloned().collect()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Vec<Row>> {
        self.rows.subscribe()
    }

    /// Waits until a row is as wanted; `None` when it is gone. Cancel safe.
    pub(super) async fn until(&self, id: RowId, wanted: impl Fn(&Row) -> bool) -> Option<Row> {
        let mut rows = self.rows.subscribe();
        let settled = |rows: &Vec<Row>| rows.iter().find(|row| row.id == id).is_none_or(&wanted);
        // The sender lives as long as this does.
        let rows = rows.wait_for(settled).await.ok()?;
        rows.iter().find(|row| row.id == id).cloned()
    }

    pub(super) fn upstreams(&self) -> watch::Receiver<Upstreams> {
        self.upstreams.subscribe()
    }

    pub(super) fn statuses(&self) -> Vec<InstanceStatus> {
        // Copied first: memory is not to be read under the lock.
        let rows = self.rows();
        let groups: Vec<Pid> = rows.iter().filter_map(|row| row.pid).collect();
        let memory = memory::of_groups(&groups);
        rows.iter().map(|row| row.status(row.pid.and_then(|pid| memory.get(&pid).copied()))).collect()
    }

    pub(super) fn kill_all(&self) {
        for row in self.rows.borrow().iter() {
            if let Some(pid) = row.pid {
                // It may just have ended by itself.
                let _ = kill_process_group(pid, Signal::KILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn row(index: usize, replaces: Option<RowId>) -> Row {
        let mut row = Row::new("app", index, replaces, CancellationToken::new());
        row.address = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
        row
    }

    proptest! {
        // Whatever happens in whatever order: at most one row of a slot is ready, the one that holds it; what drains
        // stays an upstream that drains; and the upstreams are what the rows say.
        #[test]
        fn a_slot_never_has_two_ready_instances(steps in prop::collection::vec((0..6_u8, 0..6_usize), 0..60)) {
            let table = Table::default();
            let mut ids = Vec::new();
            for index in 0..2 {
                ids.push(row(index, None));
                table.insert(ids[index].clone());
            }
            for (action, which) in steps {
                let chosen = ids[which % ids.len()].id;
                match action {
                    0 => if let Some(old) = table.get(chosen).filter(Row::holds_slot) {
                        // As under the turn: one successor at a time.
                        if !table.rows().iter().any(|row| row.replaces == Some(chosen)) {
                            ids.push(row(old.index, Some(chosen)));
                            table.insert(ids[ids.len() - 1].clone());
                        }
                    },
                    1 | 2 => table.passed(chosen),
                    3 => table.update(chosen, |row| row.becomes(InstanceState::Unhealthy)),
                    4 => table.update(chosen, |row| row.becomes(InstanceState::Restarting)),
                    _ => table.drain(chosen),
                }
                for index in 0..2 {
                    let rows = table.rows();
                    let ready = rows.iter().filter(|row| row.index == index && row.state == InstanceState::Ready);
                    prop_assert!(ready.clone().all(Row::holds_slot));
                    prop_assert!(ready.count() <= 1);
                    prop_assert!(rows.iter().all(|row| !row.draining || row.state == InstanceState::Draining));
                    prop_assert!(rows.is_sorted_by_key(|row| row.index));
                }
                let upstreams = table.upstreams();
                let draining = upstreams.borrow().iter().filter(|upstream| upstream.draining).count();
                prop_assert_eq!(draining, table.rows().iter().filter(|row| row.draining).count());
            }
        }
    }
}
