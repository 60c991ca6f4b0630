//! Which of the usable upstreams gets a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::latency::Nanos;
use super::state::UpstreamState;
use super::sticky::mix;
use super::{BalanceConfig, Snapshot, Strategy};

/// Up to so many upstreams are all looked at.
const MAX_SCANNED: usize = 16;
/// Pairs drawn before all are looked at, because none of those drawn was usable.
const DRAWS: usize = 4;
/// A client leaves its upstream when that has so many times more in flight than the average, by weight …
const MAX_LOAD: f32 = 1.5;
/// … and more than so many.
const MIN_BOUND: f32 = 8.0;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turn(AtomicUsize);

impl Turn {
    fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// One request's choice.
pub(super) struct Choice<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) config: &'a BalanceConfig,
    pub(super) turn: &'a Turn,
    pub(super) now: Nanos,
    /// Whether upstreams that have as many requests as they can take are left out.
    pub(super) limited: bool,
}

/// Why there is no upstream for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// None is usable.
    Nobody,
    /// All that are usable have as many requests as they can take.
    Room,
}

impl<'a> Choice<'a> {
    /// The best one that is not among `tried`, or else the best of those.
    pub(super) fn of_all(
        &self,
        stickiness: Option<u64>,
        tried: &[SocketAddr],
    ) -> Result<&'a Arc<UpstreamState>, Lack> {
        match self.best(stickiness, |state| !tried.contains(&state.address)) {
            Err(Lack::Nobody) if !tried.is_empty() => self.best(stickiness, |_| true),
            found => found,
        }
    }

    fn best(
        &self,
        stickiness: Option<u64>,
        allowed: impl Fn(&UpstreamState) -> bool,
    ) -> Result<&'a Arc<UpstreamState>, Lack> {
        let usable =
            |state: &UpstreamState| allowed(state) && state.is_usable(self.now, self.snapshot.closed);
        let free = |state: &UpstreamState| usable(state) && (!self.limited || state.has_room());
        let home = stickiness.and_then(|key| self.home(key, free));
        home.or_else(|| match self.config.strategy {
            Strategy::RoundRobin => self.in_turn(free),
            Strategy::LeastLatency => {
                let cost = |state: &UpstreamState| state.cost(self.now, self.config);
                let random = rand::random();
                let many = self.snapshot.upstreams.len() > MAX_SCANNED;
                let better = if many { self.better_of_two(random, free, cost) } else { None };
                better.or_else(|| self.least(random, free, cost))
            }
        })
        .ok_or_else(|| {
            let full = self.limited && self.snapshot.upstreams.iter().any(|state| usable(state));
            if full { Lack::Room } else { Lack::Nobody }
        })
    }

    /// Looks at all, from a random one on, so that equals take turns.
    pub(super) fn least(
        &self,
        random: u64,
        usable: impl Fn(&UpstreamState) -> bool,
        cost: impl Fn(&UpstreamState) -> f32,
    ) -> Option<&'a Arc<UpstreamState>> {
        let upstreams = &self.snapshot.upstreams;
        let (before, from) = upstreams.split_at(below(random, upstreams.len()));
        let mut best = None;
        let mut least = f32::INFINITY;
        for state in from.iter().chain(before).filter(|state| usable(state)) {
            let cost = cost(state);
            if best.is_none() || cost < least {
                (best, least) = (Some(state), cost);
            }
        }
        best
    }

    /// The power of two random choices (Mitzenmacher 2001): nearly as good as looking at all, at a fixed price.
    pub(super) fn better_of_two(
        &self,
        random: u64,
        usable: impl Fn(&UpstreamState) -> bool,
        cost: impl Fn(&UpstreamState) -> f32,
    ) -> Option<&'a Arc<UpstreamState>> {
        let upstreams = &self.snapshot.upstreams;
        let mut draws = (1..).map(|number: u64| mix(random.wrapping_add(number)));
        for _ in 0..DRAWS {
            let first = below(draws.next()?, upstreams.len());
            // Another one, all of them alike.
            let second = (first + 1 + below(draws.next()?, upstreams.len().saturating_sub(1)))
                .checked_rem(upstreams.len())?;
            let pair = [upstreams.get(first)?, upstreams.get(second)?];
            let better = pair
                .into_iter()
                .filter(|state| usable(state))
                .min_by(|one, other| cost(one).total_cmp(&cost(other)));
            if better.is_some() {
                return better;
            }
        }
        None
    }

    /// One after the other, each as often in a round as its weight says.
    pub(super) fn in_turn(&self, usable: impl Fn(&UpstreamState) -> bool) -> Option<&'a Arc<UpstreamState>> {
        let usable = || self.snapshot.upstreams.iter().filter(|state| usable(state));
        let share = |state: &UpstreamState| f64::from(state.share(self.now, self.config.slow_start));
        let total: f64 = usable().map(|state| share(state)).sum();
        let mut left = self.turn.next() as f64 % total;
        let ours = usable().find(|state| {
            left -= share(state);
            left < 0.0
        });
        // Rounding may leave none.
        ours.or_else(|| usable().next())
    }

    /// The upstream of all requests with this key.
    ///
    /// Rendezvous hashing (Thaler and Ravishankar 1998) with weights (Schindelhauer and Schomaker 2005): when an upstream
    /// goes only its own clients move, there is no table to build, and a list is short. Its load has a bound (Mirrokni,
    /// Thorup and Zadimoghaddam 2016): what exceeds it goes to the key's next upstream.
    fn home(&self, key: u64, usable: impl Fn(&UpstreamState) -> bool) -> Option<&'a Arc<UpstreamState>> {
        let usable = || self.snapshot.upstreams.iter().filter(|state| usable(state));
        let weight = |state: &UpstreamState| state.share(self.now, self.config.slow_start);
        let (total, in_flight) = usable().fold((0.0, 1.0), |(total, count), state| {
            (total + weight(state), count + state.in_flight() as f32)
        });
        let bound = MAX_LOAD * in_flight / total;
        let scores = usable().map(|state| (score(key, state.hash, weight(state)), state));
        scores
            .filter(|(_, state)| (state.in_flight() as f32) < (bound * weight(state)).max(MIN_BOUND))
            .min_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, state)| state)
    }
}

/// An exponential variable with the weight as its rate: each upstream has the least one as often as its weight says.
fn score(key: u64, hash: u64, weight: f32) -> f32 {
    let uniform = (mix(key ^ hash) >> 40) as f32 / (1_u64 << 24) as f32;
    -(uniform + f32::EPSILON).ln() / weight
}

/// A number below `count`, all of them alike (Lemire 2019, without his correction, which matters for huge counts only);
/// 0 if that is 0.
fn below(random: u64, count: usize) -> usize {
    ((u128::from(random) * count as u128) >> 64) as usize
}
