//! Four instances under a steady load, one of them in trouble: how ways to choose compare.
//!
//! Requests arrive at random (Poisson) and take exponentially distributed times; each instance works on a few at once and
//! queues the rest. Time is simulated, and all is repeatable from the seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::choose::{Choice, Turn};
use super::latency::Nanos;
use super::state::UpstreamState;
use super::sticky::mix;
use super::{LoadBalancer, Snapshot, tests};

const MILLISECOND: f64 = 1e6;
const SEEDS: [u64; 3] = [1, 2, 3];
const REQUESTS: usize = 20_000;
/// The first are not counted: the balancer knows nothing yet.
const COLD: usize = 2_000;

#[derive(Clone, Copy, Debug)]
enum Way {
    RoundRobin,
    TwoChoices,
    LeastInFlight,
    Ours,
}

#[derive(Clone, Copy, Debug)]
struct World {
    /// Requests that an instance works on at once.
    workers: usize,
    /// Mean time of work, in milliseconds.
    work: f64,
    /// Share of the capacity of four sound instances that is asked for.
    load: f64,
    trouble: Trouble,
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The first instance is that many times slower.
    Slow(f64),
    /// The first instance stands still for so long, about so often, both in milliseconds.
    Stalls(f64, f64),
    /// As before, but any of them, in turn at random.
    AnyStalls(f64, f64),
}

/// What happens, in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// Work on a request is done, unless it was put off meanwhile.
    Done {
        instance: usize,
        request: usize,
    },
    Stall {
        instance: usize,
    },
}

#[derive(Debug, Default)]
struct Instance {
    /// Requests in work, and when each is done.
    working: Vec<(usize, Nanos)>,
    /// Requests that wait, and the work that each takes.
    queue: VecDeque<(usize, Nanos)>,
    stalls_until: Nanos,
}

struct Simulation {
    world: World,
    way: Way,
    random: u64,
    balancer: LoadBalancer,
    turn: Turn,
    events: BinaryHeap<Reverse<(Nanos, Event)>>,
    instances: [Instance; 4],
    /// Arrival of each request, and its upstream.
    requests: Vec<(Nanos, Arc<UpstreamState>)>,
    latencies: Vec<Nanos>,
}

impl Simulation {
    fn run(world: World, way: Way, seed: u64) -> Vec<Nanos> {
        let mut simulation = Self {
            world,
            way,
            random: mix(seed),
            balancer: tests::fixed(0..4),
            turn: Turn::default(),
            events: BinaryHeap::from([Reverse((1, Event::Arrival))]),
            instances: Default::default(),
            requests: Vec::new(),
            latencies: Vec::new(),
        };
        simulation.plan_stall(0);
        while let Some(Reverse((now, event))) = simulation.events.pop() {
            match event {
                Event::Arrival if simulation.requests.len() < REQUESTS => simulation.arrive(now),
                Event::Arrival => {}
                Event::Done { instance, request } => simulation.done(now, instance, request),
                Event::Stall { instance } => simulation.stall(now, instance),
            }
        }
        simulation.latencies.split_off(COLD)
    }

    fn arrive(&mut self, now: Nanos) {
        let World { workers, work, load, trouble } = self.world;
        let next = self.exponential(work * MILLISECOND / (4 * workers) as f64 / load);
        self.events.push(Reverse((now + next, Event::Arrival)));
        let upstream = self.choose(now);
        assert!(upstream.begin(now));
        let (instance, request) = (usize::from(upstream.address.port()), self.requests.len());
        self.requests.push((now, upstream));
        let slowness = if let (Trouble::Slow(times), 0) = (trouble, instance) { times } else { 1.0 };
        let work = self.exponential(work * slowness * MILLISECOND);
        self.instances[instance].queue.push_back((request, work));
        self.work(now, instance);
    }

    fn choose(&mut self, now: Nanos) -> Arc<UpstreamState> {
        let random = self.next();
        let snapshot = self.balancer.inner.snapshot();
        let snapshot: &Snapshot = &snapshot;
        let config = &self.balancer.inner.config;
        let choice = Choice { snapshot, config, turn: &self.turn, now, limited: false };
        let cost = |state: &UpstreamState| state.cost(now, config);
        let chosen = match self.way {
            Way::RoundRobin => choice.in_turn(|_| true),
            Way::TwoChoices => choice.better_of_two(random, |_| true, cost),
            Way::LeastInFlight => choice.least(random, |_| true, |state| state.waiting() as f32),
            Way::Ours => choice.least(random, |_| true, cost),
        };
        Arc::clone(chosen.unwrap())
    }

    /// Takes up waiting requests.
    fn work(&mut self, now: Nanos, at: usize) {
        let instance = &mut self.instances[at];
        while instance.working.len() < self.world.workers
            && let Some((request, work)) = instance.queue.pop_front()
        {
            let done = now.max(instance.stalls_until) + work;
            instance.working.push((request, done));
            self.events.push(Reverse((done, Event::Done { instance: at, request })));
        }
    }

    fn done(&mut self, now: Nanos, at: usize, request: usize) {
        let before = self.instances[at].working.len();
        self.instances[at].working.retain(|work| *work != (request, now));
        if self.instances[at].working.len() == before {
            return;
        }
        let (arrived, upstream) = &self.requests[request];
        upstream.succeeded(Duration::from_nanos(now - arrived), now);
        upstream.end();
        self.latencies.push(now - arrived);
        self.work(now, at);
    }

    fn stall(&mut self, now: Nanos, at: usize) {
        if self.requests.len() == REQUESTS {
            return;
        }
        let (Trouble::Stalls(time, _) | Trouble::AnyStalls(time, _)) = self.world.trouble else { return };
        let time = (time * MILLISECOND) as Nanos;
        let instance = &mut self.instances[at];
        instance.stalls_until = now + time;
        for (request, done) in &mut instance.working {
            *done += time;
            self.events.push(Reverse((*done, Event::Done { instance: at, request: *request })));
        }
        self.plan_stall(now + time);
    }

    fn plan_stall(&mut self, now: Nanos) {
        let (every, instances) = match self.world.trouble {
            Trouble::Slow(_) => return,
            Trouble::Stalls(_, every) => (every, 1),
            Trouble::AnyStalls(_, every) => (every, 4),
        };
        let instance = (self.next() % instances) as usize;
        let pause = self.exponential(every * MILLISECOND);
        self.events.push(Reverse((now + pause, Event::Stall { instance })));
    }

    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.random)
    }

    fn exponential(&mut self, mean: f64) -> Nanos {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - uniform).ln() * mean) as Nanos
    }
}

/// The median over the seeds of a quantile, in milliseconds.
fn quantile(world: World, way: Way, quantile: f64) -> f64 {
    let mut results = SEEDS.map(|seed| {
        let mut latencies = Simulation::run(world, way, seed);
        latencies.sort_unstable();
        latencies[(latencies.len() as f64 * quantile) as usize] as f64 / MILLISECOND
    });
    results.sort_by(f64::total_cmp);
    results[1]
}

#[derive(Debug)]
struct Compared {
    round_robin: f64,
    two_choices: f64,
    least_in_flight: f64,
    ours: f64,
}

fn compare(world: World, at: f64) -> Compared {
    let compared = Compared {
        round_robin: quantile(world, Way::RoundRobin, at),
        two_choices: quantile(world, Way::TwoChoices, at),
        least_in_flight: quantile(world, Way::LeastInFlight, at),
        ours: quantile(world, Way::Ours, at),
    };
    println!("{world:?}, {at}: {compared:.0?}");
    compared
}

const EVENT_LOOP: World = World { workers: 1, work: 5.0, load: 0.6, trouble: Trouble::Slow(1.0) };
const THREADS: World = World { workers: 8, work: 10.0, load: 0.7, trouble: Trouble::Slow(1.0) };

#[test]
fn an_instance_that_stalls_at_random_hardly_shows_in_p99() {
    for world in [EVENT_LOOP, THREADS] {
        for trouble in [Trouble::Stalls(150.0, 1000.0), Trouble::AnyStalls(150.0, 1000.0)] {
            let Compared { round_robin, ours, .. } = compare(World { trouble, ..world }, 0.99);
            assert!(ours <= 0.4 * round_robin);
        }
    }
}

#[test]
fn an_instance_three_times_slower_gets_what_it_can_do() {
    for world in [EVENT_LOOP, THREADS] {
        let world = World { load: world.load * 0.75, trouble: Trouble::Slow(3.0), ..world };
        let Compared { round_robin, two_choices, least_in_flight, ours } = compare(world, 0.99);
        assert!(ours < two_choices && ours < 0.85 * least_in_flight);
        assert!(ours < 0.01 * round_robin, "with round robin its queue grows without end");
    }
}

#[test]
fn an_instance_that_hangs_for_seconds_is_noticed_before_it_answers() {
    for world in [EVENT_LOOP, THREADS] {
        let world = World { trouble: Trouble::Stalls(2000.0, 5_000.0), ..world };
        let Compared { round_robin, least_in_flight, ours, .. } = compare(world, 0.999);
        assert!(ours < 0.1 * round_robin && ours < 0.3 * least_in_flight);
    }
}
