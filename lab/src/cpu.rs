use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The CPU time that others have used for an arm so far, such as a database's server.
pub(crate) type Others = std::sync::Arc<dyn Fn() -> Duration + Send + Sync>;

/// Measures the CPU time of this process, and of others where an arm has such, within the measured part of a round.
///
/// A thread of its own, because a busy runtime would wake a timer late and miss part of the window.
pub(crate) struct CpuWindow {
    end: Sender<()>,
    thread: Option<JoinHandle<Option<Duration>>>,
}

impl CpuWindow {
    /// Opens a window that starts after `delay` and is `length` long, or longer: with `until_closed` it lasts until it is
    /// closed.
    pub(crate) fn start(
        delay: Duration,
        length: Duration,
        until_closed: bool,
        others: Option<Others>,
    ) -> Self {
        let (end, ended) = channel();
        let watch = move || {
            if ended.recv_timeout(delay) != Err(RecvTimeoutError::Timeout) {
                return None;
            }
            let time = || process_time() + others.as_ref().map(|others| others()).unwrap_or_default();
            let (begun, before) = (Instant::now(), time());
            if until_closed {
                let _ = ended.recv();
            } else {
                let _ = ended.recv_timeout(length);
            }
            let used = time().saturating_sub(before);
            // Closed a little early is near enough; closed half-way is another quantity.
            (begun.elapsed() >= length.mul_f64(0.9)).then_some(used)
        };
        CpuWindow { end, thread: std::thread::Builder::new().name("lab-cpu".into()).spawn(watch).ok() }
    }

    /// The CPU time used in the window, by all threads; `None` when it was closed too early.
    pub(crate) fn close(self) -> Option<Duration> {
        drop(self.end);
        self.thread?.join().ok()?
    }
}

fn process_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(now).unwrap_or_default()
}
