//! The leases that a worker holds: of jobs that wait in it or run, and of those that have ended and are not recorded.
//!
//! What one fetch brought shares a batch: one allocation and one bell for a thousand jobs. A short job costs its lease
//! two atomic operations; only what lives for long is looked at by the loops below.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::JobId;
use crate::backends::{Lease, Store};
use crate::error::chain;

/// How often running attempts are held against their deadlines.
const SWEEP: Duration = Duration::from_millis(100);

/// How often progress is written.
const REPORT: Duration = Duration::from_secs(1);

/// Why an attempt ends before its handler does; a later one outdoes an earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Cut {
    TimedOut = 1,
    /// The worker stops, and its grace is over.
    Interrupted = 2,
    /// Somebody cancelled the job.
    Cancelled = 3,
    /// The lease has ended, or another worker has the job.
    Lost = 4,
}

const HELD: u8 = 0;
const SETTLED: u8 = 5;
const NO_DEADLINE: u64 = u64::MAX;

#[derive(Debug)]
struct Entry {
    lease: Lease,
    /// `HELD`, a [`Cut`] or `SETTLED`; it only rises.
    state: AtomicU8,
    /// In milliseconds since the worker's epoch.
    deadline: AtomicU64,
    over: AtomicBool,
    token: OnceLock<CancellationToken>,
    progress: Mutex<Option<String>>,
}

/// The leases of one fetch.
#[derive(Debug)]
struct Batch {
    leases: Arc<Leases>,
    entries: Box<[Entry]>,
    /// How many are not settled.
    open: AtomicUsize,
    /// Before this the database gives the jobs to nobody else. Counted from before the statement was sent that took or
    /// extended the leases, so it is never later than the database's own reckoning. None once it is past.
    until: Mutex<Option<Instant>>,
    /// Rings when some entry was cut.
    bell: Notify,
}

/// All leases of a worker.
#[derive(Debug)]
pub(crate) struct Leases {
    batches: Mutex<Vec<Arc<Batch>>>,
    open: AtomicUsize,
    epoch: Instant,
    /// Fires when the worker shall stop.
    stopping: CancellationToken,
    /// The database keeps progress.
    reports: bool,
}

/// A look at one lease, for the attempt and its handler.
#[derive(Debug, Clone)]
pub(crate) struct Seat {
    batch: Arc<Batch>,
    at: usize,
}

/// One held lease; it is no longer extended once this is dropped.
#[derive(Debug)]
pub(super) struct Hold {
    seat: Seat,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Seat { batch, .. } = &self.seat;
        self.seat.entry().state.store(SETTLED, Ordering::Release);
        batch.leases.open.fetch_sub(1, Ordering::Relaxed);
        if batch.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            batch.leases.lock().retain(|other| !Arc::ptr_eq(other, batch));
        }
    }
}

impl Hold {
    pub(super) fn lease(&self) -> Lease {
        self.seat.entry().lease
    }

    pub(super) fn seat(&self) -> Seat {
        self.seat.clone()
    }
}

impl Seat {
    fn entry(&self) -> &Entry {
        &self.batch.entries[self.at]
    }

    /// Sets the attempt's deadline, now that it starts.
    pub(super) fn start(&self, now: Instant, timeout: Duration) {
        let deadline = millis(now.duration_since(self.batch.leases.epoch).saturating_add(timeout));
        self.entry().deadline.store(deadline, Ordering::Relaxed);
    }

    /// The attempt is over: what its handler spawned shall end too.
    pub(super) fn end(&self) {
        let entry = self.entry();
        entry.deadline.store(NO_DEADLINE, Ordering::Relaxed);
        entry.over.store(true, Ordering::SeqCst);
        if let Some(token) = entry.token.get() {
            token.cancel();
        }
    }

    /// True if nothing more can become of the lease.
    pub(super) fn is_settled(&self) -> bool {
        self.entry().state.load(Ordering::Acquire) == SETTLED
    }

    /// Resolves when the attempt shall end although its handler has not.
    pub(super) async fn cut_short(&self) -> Cut {
        loop {
            // Made before the look, so that a ring in between is not missed.
            let rung = self.batch.bell.notified();
            match self.entry().state.load(Ordering::Acquire) {
                1 => return Cut::TimedOut,
                2 => return Cut::Interrupted,
                3 => return Cut::Cancelled,
                4.. => return Cut::Lost,
                _ => rung.await,
            }
        }
    }

    pub(super) fn token(&self) -> CancellationToken {
        let entry = self.entry();
        let token = entry.token.get_or_init(|| self.batch.leases.stopping.child_token());
        if entry.over.load(Ordering::SeqCst) {
            token.cancel();
        }
        token.clone()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadline = self.entry().deadline.load(Ordering::Relaxed);
        (deadline != NO_DEADLINE).then(|| self.batch.leases.epoch + Duration::from_millis(deadline))
    }

    /// False if the database keeps no progress.
    pub(super) fn may_report(&self) -> bool {
        self.batch.leases.reports
    }

    pub(super) fn report(&self, progress: String) {
        *self.entry().progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
    }
}

impl Entry {
    /// True if it changed anything.
    fn cut(&self, cut: Cut) -> bool {
        let before = self.state.fetch_max(cut as u8, Ordering::AcqRel);
        before < cut as u8
    }

    /// True as long as the lease is to be extended.
    fn is_held(&self) -> bool {
        self.state.load(Ordering::Acquire) < Cut::Cancelled as u8
    }
}

impl Batch {
    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts those that the test picks.
    fn cut(&self, cut: Cut, which: impl Fn(&Entry) -> bool) -> bool {
        let mut any = false;
        for entry in self.entries.iter().filter(|entry| which(entry)) {
            any |= entry.cut(cut);
        }
        if any {
            self.bell.notify_waiters();
        }
        any
    }
}

impl Leases {
    pub(super) fn new(stopping: CancellationToken, reports: bool) -> Arc<Self> {
        Arc::new(Leases {
            batches: Mutex::default(),
            open: AtomicUsize::new(0),
            epoch: Instant::now(),
            stopping,
            reports,
        })
    }

    /// Holds what a fetch brought.
    pub(super) fn hold(
        self: &Arc<Self>,
        leases: Vec<Lease>,
        until: Instant,
    ) -> impl Iterator<Item = Hold> + use<> {
        let entry = |lease| Entry {
            lease,
            state: AtomicU8::new(HELD),
            deadline: AtomicU64::new(NO_DEADLINE),
            over: AtomicBool::new(false),
            token: OnceLock::new(),
            progress: Mutex::default(),
        };
        let entries: Box<[Entry]> = leases.into_iter().map(entry).collect();
        let count = entries.len();
        let batch = Arc::new(Batch {
            leases: Arc::clone(self),
            open: AtomicUsize::new(count),
            entries,
            until: Mutex::new(Some(until)),
            bell: Notify::new(),
        });
        if count > 0 {
            self.open.fetch_add(count, Ordering::Relaxed);
            self.lock().push(Arc::clone(&batch));
        }
        (0..count).map(move |at| Hold { seat: Seat { batch: Arc::clone(&batch), at } })
    }

    /// How many leases are held.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Batch>>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn batches(&self) -> Vec<Arc<Batch>> {
        self.lock().clone()
    }

    /// Takes a cancelled job from its attempt.
    pub(super) fn cancel(&self, job: JobId) {
        self.batches().iter().for_each(|batch| {
            batch.cut(Cut::Cancelled, |entry| entry.lease.job == job);
        });
    }

    /// Ends all attempts: the worker's grace is over.
    pub(super) fn interrupt(&self) {
        self.batches().iter().for_each(|batch| {
            batch.cut(Cut::Interrupted, |_| true);
        });
    }

    /// When the first lease ends that has not ended yet.
    fn first_end(&self) -> Option<Instant> {
        self.lock().iter().filter_map(|batch| *batch.until()).min()
    }

    fn held(&self) -> Vec<Lease> {
        let batches = self.batches();
        let held = batches.iter().flat_map(|batch| batch.entries.iter()).filter(|entry| entry.is_held());
        held.map(|entry| entry.lease).collect()
    }

    fn extended(&self, asked: &[Lease], kept: &[Lease], until: Instant) {
        let (asked, kept): (HashSet<&Lease>, HashSet<&Lease>) =
            (asked.iter().collect(), kept.iter().collect());
        for batch in self.batches() {
            // A batch is asked for as a whole, so that the others of it have ended, or came after the question.
            if !batch.entries.iter().any(|entry| asked.contains(&entry.lease)) {
                continue;
            }
            let lost = |entry: &Entry| asked.contains(&entry.lease) && !kept.contains(&entry.lease);
            batch.cut(Cut::Lost, |entry| entry.is_held() && lost(entry));
            // What ended meanwhile is not brought back.
            if let Some(end) = &mut *batch.until() {
                *end = until;
            }
        }
    }

    /// Cuts what has no lease any more, and what has run for too long.
    fn sweep(&self, now: Instant) {
        let passed = millis(now.duration_since(self.epoch));
        for batch in self.batches() {
            let ended = batch.until().take_if(|until| *until <= now).is_some();
            if ended {
                batch.cut(Cut::Lost, |entry| entry.state.load(Ordering::Acquire) != SETTLED);
            }
            batch.cut(Cut::TimedOut, |entry| entry.deadline.load(Ordering::Relaxed) <= passed);
        }
    }

    fn take_progress(&self) -> Vec<(Lease, String)> {
        let batches = self.batches();
        let entries = batches.iter().flat_map(|batch| batch.entries.iter()).filter(|entry| entry.is_held());
        let take = |entry: &Entry| {
            let progress = entry.progress.lock().unwrap_or_else(PoisonError::into_inner).take()?;
            Some((entry.lease, progress))
        };
        entries.filter_map(take).collect()
    }
}

/// Rounded down: milliseconds since the worker's epoch.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NO_DEADLINE - 1)
}

/// How often leases are extended: every third of their length.
pub(super) fn interval(length: Duration) -> Duration {
    length / 3
}

/// Keeps the leases, for as long as it is polled: extends them, cuts the attempts whose lease or time is over, and
/// writes how far they have come.
pub(super) async fn keep<S: Store>(store: S, leases: Arc<Leases>, length: Duration) {
    tokio::join!(
        sweep(&leases, SWEEP.min(interval(length))),
        extend(&store, &leases, length),
        report(&store, &leases)
    );
}

async fn sweep(leases: &Leases, interval: Duration) {
    loop {
        let next = Instant::now() + interval;
        // A lease taken during this sleep ends after it, for one with less than a third left is given back at once.
        sleep_until(leases.first_end().map_or(next, |end| end.min(next))).await;
        leases.sweep(Instant::now());
    }
}

async fn extend<S: Store>(store: &S, leases: &Leases, length: Duration) {
    let interval = interval(length);
    let mut next = Instant::now() + interval;
    loop {
        sleep_until(next).await;
        let now = Instant::now();
        next = now + interval;
        // A lease that has ended is not asked for again, although the database may still have it: its attempt is gone.
        let asked = leases.held();
        if asked.is_empty() {
            continue;
        }
        let deadline = leases.first_end().map_or(next, |end| end.min(next));
        match timeout_at(deadline, store.extend(asked.clone(), length)).await {
            Ok(Ok(kept)) => leases.extended(&asked, &kept, now + length),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), leases = asked.len(), "could not extend leases");
                next = now + interval / 4;
            }
            Err(_) => {
                tracing::warn!(leases = asked.len(), "the database did not answer in time to extend leases")
            }
        }
    }
}

async fn report<S: Store>(store: &S, leases: &Leases) {
    loop {
        sleep(REPORT).await;
        let progress = leases.take_progress();
        if progress.is_empty() {
            continue;
        }
        let deadline = Instant::now() + REPORT * 10;
        // What is lost here is old by the next round.
        match timeout_at(deadline, store.report(progress)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(error = chain(&error), "could not write progress"),
            Err(_) => tracing::debug!("the database did not answer in time to write progress"),
        }
    }
}
