//! The crate as its users meet it.
#![allow(clippy::unwrap_used)]

mod dashboard;
mod prometheus;
mod recorder;
mod requests;
mod snapshot;
mod socket;

use greenwave_monitor::Monitor;

/// A monitor that has received what `record` records through the `metrics` macros.
fn monitor_of(record: impl FnOnce()) -> Monitor {
    let monitor = Monitor::new();
    metrics::with_local_recorder(&monitor.recorder(), record);
    monitor
}
