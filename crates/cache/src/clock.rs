use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep},
};

/// No ticker runs: whoever asks must look at the real clock.
const STOPPED: u64 = u64::MAX;

/// What it shows when it is made: high enough that there are times before it.
const BEGINNING: u64 = 1 << 38;

const MAX_TICK: Duration = Duration::from_millis(100);

/// Milliseconds since [`BEGINNING`], at the price of one atomic load.
///
/// `Instant::now` would more than double the price of a hit. So a task writes the time down once in a `tick`, and
/// hits read what it wrote. The time is tokio's: a paused clock holds here too.
pub(crate) struct Clock {
    shared: Arc<Shared>,
    tick: Duration,
    ticker: Mutex<Option<AbortHandle>>,
}

struct Shared {
    start: Instant,
    now: AtomicU64,
    ticking: AtomicBool,
    on_tick: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Clock {
    /// A clock that is late by at most a hundredth of `ttl`, and never by more than 100 ms.
    pub(crate) fn for_ttl(ttl: Duration) -> Clock {
        let tick = (ttl / 100).clamp(Duration::from_millis(1), MAX_TICK);
        let shared = Shared {
            start: Instant::now(),
            now: AtomicU64::new(STOPPED),
            ticking: AtomicBool::new(false),
            on_tick: OnceLock::new(),
        };
        Clock { shared: Arc::new(shared), tick, ticker: Mutex::new(None) }
    }

    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self.shared.now.load(Ordering::Relaxed) {
            STOPPED => self.start_ticking(),
            now => now,
        }
    }

    /// The time, if the ticker runs; else later than any.
    #[inline]
    pub(crate) fn shown(&self) -> u64 {
        self.shared.now.load(Ordering::Relaxed)
    }

    /// Calls `f` about every 100 ms while the ticker runs.
    pub(crate) fn on_tick(&self, f: Box<dyn Fn() + Send + Sync>) {
        // Fails only for a second one.
        let _ = self.shared.on_tick.set(f);
    }

    /// The time without the ticker's lateness.
    pub(crate) fn exact(&self) -> u64 {
        self.shared.elapsed()
    }

    // Started by the first reader rather than by `new`: a cache may be made outside any runtime, or outlive the one
    // that ran its ticker.
    #[cold]
    fn start_ticking(&self) -> u64 {
        if let Ok(runtime) = Handle::try_current()
            && !self.shared.ticking.swap(true, Ordering::AcqRel)
        {
            let ticker = Ticker(Arc::clone(&self.shared));
            let task = runtime.spawn(ticker.run(self.tick));
            *self.ticker.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        }
        self.exact()
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(task) = self.ticker.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

impl Shared {
    fn elapsed(&self) -> u64 {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(STOPPED);
        BEGINNING.saturating_add(elapsed).min(STOPPED - 1)
    }
}

struct Ticker(Arc<Shared>);

impl Ticker {
    async fn run(self, tick: Duration) {
        let every = (MAX_TICK.as_millis() / tick.as_millis().max(1)).max(1);
        for n in 1_u128.. {
            self.0.now.store(self.0.elapsed(), Ordering::Relaxed);
            sleep(tick).await;
            if n % every == 0
                && let Some(on_tick) = self.0.on_tick.get()
            {
                on_tick();
            }
        }
    }
}

// A ticker whose runtime ends would leave a clock that stands still, and entries that never expire.
impl Drop for Ticker {
    fn drop(&mut self) {
        self.0.now.store(STOPPED, Ordering::Relaxed);
        self.0.ticking.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_the_runtimes_time() {
        let clock = Clock::for_ttl(Duration::from_secs(60));
        assert_eq!(clock.now(), BEGINNING);
        sleep(Duration::from_secs(60)).await;
        let passed = clock.now() - BEGINNING;
        assert!((59_900..=60_000).contains(&passed), "{passed}");
    }

    #[test]
    fn the_clock_goes_on_when_its_runtime_ends() {
        let clock = Clock::for_ttl(Duration::from_secs(60));
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for _ in 0..2 {
            runtime().block_on(async {
                clock.now();
                sleep(Duration::from_millis(5)).await;
                assert_ne!(clock.shared.now.load(Ordering::Relaxed), STOPPED, "a ticker runs");
            });
            assert_eq!(clock.shared.now.load(Ordering::Relaxed), STOPPED);
            let before = clock.now();
            std::thread::sleep(Duration::from_millis(2));
            assert!(clock.now() > before, "without a ticker, the real clock is read");
        }
    }

    #[tokio::test]
    async fn a_dropped_clock_ends_its_ticker() {
        let clock = Clock::for_ttl(Duration::from_secs(60));
        clock.now();
        tokio::task::yield_now().await;
        let shared = Arc::clone(&clock.shared);
        assert!(shared.ticking.load(Ordering::Acquire));
        drop(clock);
        while shared.ticking.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
    }
}
