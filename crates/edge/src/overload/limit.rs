//! How many requests an upstream is given at once, found from how long it takes to answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::OverloadConfig;

/// Requests in flight that are allowed before anything was measured.
const FIRST: f64 = 64.0;
/// How much slower than unloaded an upstream may be. What is in flight beyond its capacity waits there: half as much
/// again keeps each of its workers busy while answers travel.
const TOLERANCE: f64 = 1.5;
/// A rise by less than this, in seconds, is felt by nobody, and of a fast service it is mostly the machine's.
const UNFELT: f64 = 0.01;
/// With fewer in flight than this, and than half of the limit, slowness is not our doing.
const FEW: f64 = 4.0;
/// Less in flight than this share of what was is less load.
const FALLING: f64 = 0.9;
/// The share of the limit that is in use when it is the limit that holds requests back.
const FULL: f64 = 0.95;
/// In flight after a cut, as a share of what was before, from which one can tell whether it helped.
const TELLING: f64 = 0.75;
/// Shortest time over which is measured, and the longest if there are some samples.
const WINDOW: Duration = Duration::from_millis(100);
const LONG_WINDOW: Duration = Duration::from_secs(1);
/// Errors of a latency, as shares of it: large enough to go on measuring, and small enough to stop before time.
const VAGUE: f64 = 0.3;
const CLEAR: f64 = 0.1;
/// So many samples are enough where nothing is tried.
const SAMPLES: f64 = 20.0;
/// The fewest samples from which anything is concluded, which is also how many the newest average is over.
const LEAST_SAMPLES: f64 = 8.0;
/// How many standard errors are no accident.
const SIGNIFICANT: f64 = 3.0;
/// Answers' time that passes until a change of the limit is measured, beyond that of one, if they vary.
const SETTLING: f64 = 2.0;
/// A limit in full use is tried at its half this often, to see how fast the upstream is without a queue.
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// The time in which the baseline follows an upstream that becomes slower without being crowded.
const MEMORY: Duration = Duration::from_secs(30);

/// The limit of requests in flight at one upstream.
///
/// It follows the gradient between the latency of now and that of the unloaded upstream, as Netflix's `Gradient2` and
/// Envoy's adaptive concurrency do: what is in flight × unloaded ÷ present latency is, by Little's law, what the
/// upstream works at, and 1.5 × that is the limit. Three things are ours:
///
/// - Latencies are averaged by their logarithms, whose spread tells a queue from a service that is merely uneven: only
///   a significant rise lowers the limit, no further than is certain, and a plain one does so after eight samples.
/// - A cut is an experiment. If latency has not fallen with what is in flight, then the upstream is not crowded but slow
///   by nature or for now: what was in flight is allowed again, and the latency taken for the upstream's own.
/// - While the limit holds requests back, it is halved for a moment every 15 s, as often in a row as that makes answers
///   faster. So a baseline that crept up with the load is found again.
///
/// In flight is a request that waits for the head of its answer; a long body is no load that could be measured so.
///
/// A sample takes no lock that another thread could hold it up with: of two at the same time one is left out.
#[derive(Debug)]
pub(crate) struct GradientLimit {
    limit: AtomicU32,
    usual: AtomicU32,
    controller: Mutex<Controller>,
}

impl GradientLimit {
    pub(crate) fn new(config: &OverloadConfig) -> Self {
        let controller = Controller::new(config, Instant::now());
        let limit = AtomicU32::new(controller.whole());
        Self { limit, usual: AtomicU32::new(0), controller: Mutex::new(controller) }
    }

    /// How many requests may be in flight now; at least 1.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// How long an answer takes while nothing waits, to the microsecond; zero while that is unknown.
    pub(crate) fn usual(&self) -> Duration {
        Duration::from_micros(self.usual.load(Ordering::Relaxed).into())
    }

    /// Takes note of an answer: how long its head took, and how many requests, it among them, were in flight. A failure
    /// says nothing of capacity, be it fast or slow.
    pub(crate) fn sample(&self, latency: Duration, in_flight: u32, failed: bool) {
        if failed {
            return;
        }
        // Held by another thread, or poisoned: a sample less.
        let Ok(mut controller) = self.controller.try_lock() else { return };
        if controller.sample(Instant::now(), latency, in_flight) {
            self.limit.store(controller.whole(), Ordering::Relaxed);
            let usual = controller.baseline.map_or(0.0, |baseline| baseline.exp() * 1e6);
            // A float that is too large becomes the largest number.
            self.usual.store(usual as u32, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
struct Controller {
    min: f64,
    max: f64,
    limit: f64,
    /// The latency of the unloaded upstream; as all latencies here, the logarithm of seconds.
    baseline: Option<f64>,
    /// How much the latencies of single requests vary while the upstream is not crowded.
    variance: f64,
    window: Window,
    phase: Phase,
    /// What was in flight in the window before, if that was under the same limit.
    before: f64,
    /// When the limit last changed, and from when on that shows.
    changed: Instant,
    settled: Instant,
    probed: Option<Instant>,
}

/// The samples since the last decision.
#[derive(Debug)]
struct Window {
    begun: Instant,
    count: f64,
    sum: f64,
    squares: f64,
    in_flight: f64,
    /// The newest samples alone, in which a sudden rise shows soonest.
    newest: Newest,
}

#[derive(Debug, Default)]
struct Newest {
    latency: f64,
    in_flight: f64,
}

/// What a window has shown.
#[derive(Clone, Copy, Debug)]
struct Measured {
    limit: f64,
    in_flight: f64,
    latency: f64,
    /// By how much the latency may be off by mere chance.
    error: f64,
    age: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Steady,
    /// The limit is being lowered because answers were slow; from this.
    Cut(Measured),
    /// It is lowered by halves, to learn the baseline: at first from the one, now from the other.
    Probe(Measured, Measured),
}

impl Window {
    fn new(begun: Instant) -> Self {
        Self { begun, count: 0.0, sum: 0.0, squares: 0.0, in_flight: 0.0, newest: Newest::default() }
    }

    fn add(&mut self, latency: f64, in_flight: u32) {
        self.count += 1.0;
        self.sum += latency;
        self.squares += latency * latency;
        self.in_flight += f64::from(in_flight);
        let weight = self.count.min(LEAST_SAMPLES).recip();
        self.newest.latency += weight * (latency - self.newest.latency);
        self.newest.in_flight += weight * (f64::from(in_flight) - self.newest.in_flight);
    }

    fn latency(&self) -> f64 {
        self.sum / self.count
    }

    fn variance(&self) -> f64 {
        (self.squares / self.count - self.latency().powi(2)).max(0.0)
    }

    /// The standard error of the latency.
    fn error(&self) -> f64 {
        (self.variance() / (self.count - 1.0)).sqrt()
    }

    fn measured(&self, limit: f64, age: Duration) -> Measured {
        Measured {
            limit,
            in_flight: self.in_flight / self.count,
            latency: self.latency(),
            error: SIGNIFICANT * self.error(),
            age,
        }
    }

    fn is_whole(&self, age: Duration, steady: bool) -> bool {
        let enough = SIGNIFICANT * self.error() < VAGUE || (steady && self.count >= SAMPLES);
        age >= LONG_WINDOW || (age >= WINDOW && enough)
    }
}

impl Measured {
    /// Whether fewer in flight have made answers faster: by at least half of what a mere queue would lose.
    fn fell_from(&self, before: &Self) -> bool {
        before.latency - self.latency > (before.in_flight / self.in_flight).ln() / 2.0
    }

    /// Half as much again as the upstream works at, which is what it has in flight without a queue.
    fn wanted(&self, baseline: f64) -> f64 {
        self.in_flight * TOLERANCE * (baseline - self.latency).exp()
    }

    fn is_full(&self) -> bool {
        self.in_flight >= FULL * self.limit
    }
}

impl Controller {
    fn new(config: &OverloadConfig, now: Instant) -> Self {
        let min = f64::from(config.min_in_flight.max(1));
        let max = f64::from(config.max_in_flight).max(min);
        Self {
            min,
            max,
            limit: FIRST.clamp(min, max),
            baseline: None,
            variance: 0.0,
            window: Window::new(now),
            phase: Phase::Steady,
            before: 0.0,
            changed: now,
            settled: now,
            probed: None,
        }
    }

    fn whole(&self) -> u32 {
        // Between 1 and what fits.
        self.limit.ceil() as u32
    }

    /// Whether the limit may have changed.
    fn sample(&mut self, now: Instant, latency: Duration, in_flight: u32) -> bool {
        // A request that was sent under another limit says nothing of this one; and at first only fast ones are back.
        let sent = now.checked_sub(latency);
        if sent.is_none_or(|sent| sent < self.changed) || now < self.settled {
            return false;
        }
        self.window.add(latency.as_secs_f64().max(1e-6).ln(), in_flight);
        if self.window.count < LEAST_SAMPLES {
            return false;
        }
        let age = now.saturating_duration_since(self.window.begun);
        let newest = Measured {
            limit: self.limit,
            in_flight: self.window.newest.in_flight,
            latency: self.window.newest.latency,
            error: SIGNIFICANT * (self.variance / LEAST_SAMPLES).sqrt(),
            age,
        };
        let mut all = self.window.measured(self.limit, age);
        // Those that wait besides vary less in proportion, which makes nothing more certain.
        if !matches!(self.phase, Phase::Probe(..)) {
            all.error = all.error.max(SIGNIFICANT * (self.variance / self.window.count).sqrt());
        }
        let (measured, crowded) = match self.phase {
            Phase::Steady if self.is_crowded(&newest) => (newest, true),
            // A probe costs throughput: it ends as soon as it is clear.
            Phase::Probe(..) if all.error < CLEAR => (all, false),
            _ if self.window.is_whole(age, matches!(self.phase, Phase::Steady)) => {
                (all, self.is_crowded(&all))
            }
            _ => return false,
        };
        if !crowded {
            let weight = if self.baseline.is_some() { 0.2 } else { 1.0 };
            self.variance += weight * (self.window.variance() - self.variance);
        }
        let limit = self.limit;
        self.conclude(measured, crowded, now);
        self.before = self.window.in_flight / self.window.count;
        self.window = Window::new(now);
        if self.limit != limit {
            self.before = 0.0;
            self.changed = now;
            let settling = Duration::try_from_secs_f64(
                (1.0 + SETTLING * self.variance.min(1.0)) * measured.latency.exp(),
            );
            self.settled = settling.ok().and_then(|settling| now.checked_add(settling)).unwrap_or(now);
            self.window.begun = self.settled;
        }
        true
    }

    fn conclude(&mut self, measured: Measured, crowded: bool, now: Instant) {
        match self.phase {
            Phase::Probe(first, last) => self.probe(measured, first, last, now),
            Phase::Cut(before) if measured.in_flight < TELLING * before.in_flight => {
                self.phase = Phase::Steady;
                if measured.fell_from(&before) {
                    self.steer(measured, crowded, now);
                } else {
                    // Not crowded, but slow.
                    self.baseline = Some(measured.latency);
                    self.limit = before.in_flight.clamp(self.min, before.limit.max(self.min));
                    self.probed = None;
                }
            }
            Phase::Cut(_) | Phase::Steady => self.steer(measured, crowded, now),
        }
    }

    /// Whether answers take significantly longer than is tolerated while enough are in flight to be the cause.
    fn is_crowded(&self, measured: &Measured) -> bool {
        // When requests cease, those that come last are the slow ones: that is no rise.
        let before = (self.window.in_flight / self.window.count).max(self.before);
        measured.in_flight >= FALLING * before
            && measured.in_flight >= FEW.min(self.limit / 2.0)
            && self.baseline.is_some_and(|baseline| {
                let latency = measured.latency - measured.error;
                latency > baseline + TOLERANCE.ln() && latency.exp() > baseline.exp() + UNFELT
            })
    }

    fn steer(&mut self, measured: Measured, crowded: bool, now: Instant) {
        let baseline = *self.baseline.get_or_insert(measured.latency);
        let probe = self.probed.is_none_or(|probed| now.saturating_duration_since(probed) >= PROBE_EVERY);
        if probe && measured.is_full() && self.limit > self.min {
            self.phase = Phase::Probe(measured, measured);
            self.limit = (self.limit / 2.0).max(self.min);
            return;
        }
        if crowded {
            if !matches!(self.phase, Phase::Cut(_)) {
                self.phase = Phase::Cut(measured);
            }
            // What may be chance is no reason to cut further.
            self.limit = measured.wanted(baseline + measured.error).clamp(self.min, self.limit.max(self.min));
            return;
        }
        self.phase = Phase::Steady;
        if measured.latency < baseline {
            self.baseline = Some(baseline + 0.3 * (measured.latency - baseline));
        } else if measured.in_flight < self.limit / 2.0 {
            let weight = (measured.age.as_secs_f64() / MEMORY.as_secs_f64()).min(1.0);
            self.baseline = Some(baseline + weight * (measured.latency - baseline));
        }
        if measured.is_full() {
            self.limit = measured.wanted(baseline).clamp(self.limit, self.max);
        }
    }

    fn probe(&mut self, measured: Measured, first: Measured, last: Measured, now: Instant) {
        let faster = measured.fell_from(&last);
        if faster && self.limit > self.min {
            self.phase = Phase::Probe(first, measured);
            self.limit = (self.limit / 2.0).max(self.min);
            return;
        }
        self.phase = Phase::Steady;
        self.probed = Some(now);
        let baseline = measured.latency.min(last.latency);
        self.baseline = Some(baseline);
        self.limit = first.wanted(baseline).clamp(self.min, first.limit.max(self.min));
    }
}
