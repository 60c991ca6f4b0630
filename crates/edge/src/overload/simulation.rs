//! Overload, simulated: the limit and the queue before a server of known capacity, in time that is made up.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{GradientLimit, Load, OverloadConfig, Queue};

/// How long a client waits for its answer.
const PATIENCE: Duration = Duration::from_secs(1);
const SEEDS: [u64; 6] = [0, 1, 2, 3, 4, 5];

#[derive(Clone, Copy)]
enum Service {
    Even,
    Exponential,
}

/// A server that works on so many requests at once, in the order in which they came.
struct Server {
    workers: Semaphore,
    mean: Cell<Duration>,
    service: Service,
    random: RefCell<SmallRng>,
}

struct Edge {
    server: Server,
    limited: bool,
    limit: GradientLimit,
    queue: Queue,
    in_flight: Cell<u32>,
    sent: Cell<usize>,
}

struct InFlight<'a>(&'a Edge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.queue.wake();
    }
}

/// When an answered request was sent, and how long it took.
type Answers = Vec<(Duration, Duration)>;

impl Edge {
    fn new(workers: usize, service: Service, limited: bool, seed: u64) -> Rc<Self> {
        let config = OverloadConfig { min_in_flight: 1, short_queue: true, ..OverloadConfig::default() };
        let random = RefCell::new(SmallRng::seed_from_u64(seed));
        Rc::new(Self {
            server: Server {
                workers: Semaphore::new(workers),
                mean: Cell::new(SERVICE_TIME),
                service,
                random,
            },
            limited,
            limit: GradientLimit::new(&config),
            queue: Queue::new(&config),
            in_flight: Cell::new(0),
            sent: Cell::new(0),
        })
    }

    fn uniform(&self) -> f64 {
        self.server.random.borrow_mut().random_range(f64::EPSILON..1.0)
    }

    async fn serve(&self) {
        let Ok(_worker) = self.server.workers.acquire().await else { return };
        let time = match self.server.service {
            Service::Even => self.server.mean.get(),
            Service::Exponential => self.server.mean.get().mul_f64(-self.uniform().ln()),
        };
        tokio::time::sleep(time).await;
    }

    fn take(&self) -> Option<InFlight<'_>> {
        let free = !self.limited || self.in_flight.get() < self.limit.limit();
        free.then(|| {
            self.in_flight.set(self.in_flight.get() + 1);
            InFlight(self)
        })
    }

    fn now(&self) -> Load {
        Load { in_flight: self.in_flight.get(), usual: self.limit.usual() }
    }

    async fn answer(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let straight = if self.queue.is_empty() { self.take() } else { None };
        let in_flight = match straight {
            Some(in_flight) => in_flight,
            None => match self.queue.wait(deadline, self.now(), || self.take()).await {
                Ok(in_flight) => in_flight,
                Err(_) => return false,
            },
        };
        let sent = Instant::now();
        // The server does not notice that a client has left.
        self.serve().await;
        self.limit.sample(sent.elapsed(), self.in_flight.get(), false);
        drop(in_flight);
        true
    }

    /// Sends requests at this rate for this long, at random moments, and returns those that were answered in time.
    async fn load(self: &Rc<Self>, per_second: f64, time: Duration) -> Answers {
        let begun = Instant::now();
        let mut clients = JoinSet::new();
        let mut next = begun;
        while next < begun + time {
            tokio::time::sleep_until(next).await;
            let edge = Rc::clone(self);
            edge.sent.set(edge.sent.get() + 1);
            clients.spawn_local(async move {
                let sent = Instant::now();
                edge.answer().await.then(|| (sent - begun, sent.elapsed()))
            });
            next += Duration::from_secs_f64(-self.uniform().ln() / per_second);
        }
        let mut answers = Vec::new();
        while let Some(answer) = clients.join_next().await {
            answers.extend(answer.ok().flatten().filter(|(_, time)| *time <= PATIENCE));
        }
        answers
    }
}

fn p99(answers: &Answers) -> Duration {
    let mut times: Vec<Duration> = answers.iter().map(|(_, time)| *time).collect();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Runs it with several seeds.
async fn simulated(run: impl AsyncFn(u64)) {
    for seed in SEEDS {
        tokio::task::LocalSet::new().run_until(run(seed)).await;
    }
}

const SERVICE_TIME: Duration = Duration::from_millis(20);
const SECONDS_20: Duration = Duration::from_secs(20);

fn capacity(workers: u32) -> f64 {
    f64::from(workers) / SERVICE_TIME.as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn at_one_and_a_half_times_its_capacity_a_service_keeps_its_goodput_and_its_latency() {
    // Where one is served at a time, a queue of one is as long as an answer takes.
    for (workers, least, most) in [(1, 0.93, 4), (2, 0.95, 3), (8, 0.95, 3)] {
        simulated(async |seed| {
            let capacity = capacity(workers);
            let bare = Edge::new(workers as usize, Service::Even, false, seed);
            let without = bare.load(1.5 * capacity, SECONDS_20).await;
            let late = without.iter().filter(|(sent, _)| *sent > SECONDS_20 / 2).count();
            assert_eq!(late, 0, "{workers} workers, without a limit");

            let edge = Edge::new(workers as usize, Service::Even, true, seed);
            let unloaded = p99(&edge.load(0.5 * capacity, SECONDS_20 / 2).await);
            let with = edge.load(1.5 * capacity, SECONDS_20).await;
            let goodput = with.len() as f64 / capacity / SECONDS_20.as_secs_f64();
            // A slow service has answered few by the time its limit is found.
            let p99 = p99(&with.into_iter().filter(|(sent, _)| *sent > SECONDS_20 / 5).collect());
            assert!(goodput >= least, "{workers} workers: goodput {goodput:.3} of capacity");
            assert!(p99 <= most * unloaded, "{workers} workers: p99 {p99:?}, unloaded {unloaded:?}");
            assert!(edge.limit.limit() <= 2 * workers, "{workers} workers: limit {}", edge.limit.limit());
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn overload_from_the_first_request_is_found_out_too() {
    simulated(async |seed| {
        let edge = Edge::new(2, Service::Even, true, seed);
        edge.load(1.5 * capacity(2), SECONDS_20 / 4).await;
        let later = edge.load(1.5 * capacity(2), SECONDS_20).await;
        assert!(edge.limit.limit() <= 4, "limit {}", edge.limit.limit());
        assert!(p99(&later) <= 6 * SERVICE_TIME, "p99 {:?}", p99(&later));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_below_its_capacity_loses_nothing_to_the_limit() {
    for (workers, service, load) in [
        (100, Service::Exponential, 0.5),
        (8, Service::Even, 0.7),
        (2, Service::Even, 0.5),
        (20, Service::Exponential, 0.7),
    ] {
        let (lost, answered) = (Cell::new(0), Cell::new(0));
        simulated(async |seed| {
            let edge = Edge::new(workers as usize, service, true, seed);
            let answers = edge.load(load * capacity(workers), SECONDS_20).await.len();
            let lost_now = edge.sent.get() - answers;
            assert!(
                lost_now * 100 <= answers,
                "{workers} workers at {load}, seed {seed}: {lost_now} lost of {answers}"
            );
            lost.set(lost.get() + lost_now);
            answered.set(answered.get() + answers);
        })
        .await;
        let (lost, answered) = (lost.get(), answered.get());
        assert!(lost * 200 <= answered, "{workers} workers at {load}: {lost} lost of {answered}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wide_service_that_becomes_slow_is_not_strangled_and_recovers() {
    for service in [Service::Even, Service::Exponential] {
        simulated(async |seed| {
            let edge = Edge::new(200, service, true, seed);
            let per_second = 1000.0;
            let share =
                |answers: &Answers| answers.len() as f64 / per_second / (SECONDS_20 / 4).as_secs_f64();
            let fast = share(&edge.load(per_second, SECONDS_20 / 4).await);
            // It has room for five times as many: slowness is its nature now.
            edge.server.mean.set(4 * SERVICE_TIME);
            let changed = share(&edge.load(per_second, SECONDS_20 / 4).await);
            let slow = share(&edge.load(per_second, SECONDS_20 / 4).await);
            edge.server.mean.set(SERVICE_TIME);
            let again = share(&edge.load(per_second, SECONDS_20 / 4).await);
            assert!(changed > 0.75, "{changed:.3} while it is found out");
            assert!(
                fast.min(slow).min(again) > 0.95,
                "{fast:.3} fast, {slow:.3} slow, {again:.3} fast again"
            );
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_loses_capacity_for_a_while_has_it_back_afterwards() {
    simulated(async |seed| {
        let edge = Edge::new(8, Service::Even, true, seed);
        let per_second = 0.8 * capacity(8);
        edge.load(per_second, SECONDS_20 / 4).await;
        edge.server.mean.set(3 * SERVICE_TIME);
        let slow = edge.load(per_second, SECONDS_20 / 2).await.len() as f64;
        edge.server.mean.set(SERVICE_TIME);
        edge.load(per_second, Duration::from_secs(1)).await;
        let sent = edge.sent.get();
        let after = edge.load(per_second, SECONDS_20 / 4).await.len();
        let lost = edge.sent.get() - sent - after;
        let share = slow / (capacity(8) / 3.0) / (SECONDS_20 / 2).as_secs_f64();
        assert!(share > 0.95, "{share:.3} of its capacity while it was slow");
        assert!(lost * 50 < after, "{lost} lost of {after}, afterwards");
    })
    .await;
}
