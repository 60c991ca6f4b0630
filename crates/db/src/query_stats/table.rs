//! Counts by series, kept so that threads seldom meet.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    Dialect, QueryStatsConfig, Shape, Statement,
    histogram::Histogram,
    site::{Site, Trace},
};
use crate::telemetry;

/// Threads share a shard only where there are more of them.
const SHARDS: usize = 16;
/// Texts that a shard knows. A program that puts values into its texts has no end of them: when these are full, it
/// begins anew.
const MAX_KNOWN: usize = 4096;
/// Longer texts are cut where they are kept.
const MAX_TEXT: usize = 16 * 1024;

/// Statements that are counted together: one shape, one route, one call site.
#[derive(Debug)]
pub(crate) struct Series {
    pub(super) key: u64,
    pub(super) shape: Shape,
    pub(super) dialect: Dialect,
    pub(super) route: Option<Arc<str>>,
    pub(super) site: Site,
    /// Where the site is not known.
    pub(super) trace: Trace,
    /// Whether it may repeat.
    pub(super) allowed: bool,
    /// Whether it is that of all statements that have none.
    other: bool,
}

impl Series {
    /// Of one statement, not looked up.
    pub(crate) fn new(statement: &Statement<'_>) -> Self {
        let mut shape = Shape::of(statement.text, statement.dialect);
        shape.text.truncate(shape.text.floor_char_boundary(MAX_TEXT));
        shape.text.shrink_to_fit();
        Self {
            key: 0,
            shape,
            dialect: statement.dialect,
            route: statement.scope.and_then(|scope| scope.shared_route()),
            site: statement.site(),
            trace: Trace::default(),
            allowed: false,
            other: false,
        }
    }

    /// Of all statements that have none.
    fn other(dialect: Dialect) -> Self {
        let shape = Shape { fingerprint: "other".into(), text: String::new(), inserts: false, reads: false };
        let (route, site, trace) = (None, Site::Unknown, Trace::default());
        Self { key: 0, shape, dialect, route, site, trace, allowed: true, other: true }
    }

    /// Whether it is that of all statements that have none, and so names none.
    pub(crate) fn is_other(&self) -> bool {
        self.other
    }

    pub(crate) fn site_name(&self) -> Arc<str> {
        match self.site {
            Site::Unknown => self.trace.site(),
            known => known.to_string().into(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) calls: u64,
    pub(super) errors: u64,
    pub(super) rows: u64,
    pub(super) total: Duration,
    pub(super) wait: Duration,
    pub(super) max: Duration,
    pub(super) times: Histogram,
}

impl Counts {
    fn add(&mut self, statement: &Statement<'_>) {
        self.calls += 1;
        self.errors += u64::from(statement.failed);
        self.rows = self.rows.saturating_add(statement.rows);
        self.total = self.total.saturating_add(statement.elapsed);
        self.wait = self.wait.saturating_add(statement.wait);
        self.max = self.max.max(statement.elapsed);
        self.times.record(statement.elapsed);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.rows = self.rows.saturating_add(other.rows);
        self.total = self.total.saturating_add(other.total);
        self.wait = self.wait.saturating_add(other.wait);
        self.max = self.max.max(other.max);
        self.times.merge(&other.times);
    }
}

/// Takes keys that are hashes already.
#[derive(Default)]
pub(super) struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

pub(super) type ByKey<T> = HashMap<u64, T, BuildHasherDefault<Hashed>>;

/// 64 bytes, the width of a cache line, keep one thread's lock from another's.
#[derive(Default)]
#[repr(align(64))]
struct Shard(Mutex<Local>);

#[derive(Default)]
struct Local {
    /// Places in `series`, by text, route and site.
    known: ByKey<usize>,
    /// The same, by the key of the series.
    places: ByKey<usize>,
    series: Vec<(Arc<Series>, Counts)>,
}

/// What the common way needs to know of a series.
pub(super) struct Hit {
    pub(super) key: u64,
    pub(super) allowed: bool,
    pub(super) series: Option<Arc<Series>>,
}

impl Local {
    fn add(&mut self, place: usize, statement: &Statement<'_>, wanted: bool) -> Hit {
        let (series, counts) = &mut self.series[place];
        counts.add(statement);
        let (key, allowed) = (series.key, series.allowed);
        Hit { key, allowed, series: wanted.then(|| Arc::clone(series)) }
    }
}

pub(super) struct Table {
    keys: RandomState,
    shards: [Shard; SHARDS],
    /// All series there are, by their keys.
    registry: Mutex<ByKey<Arc<Series>>>,
    max_series: usize,
    /// Whether it was said that there is room for no more.
    told_full: AtomicBool,
    /// Fingerprints that may repeat.
    allowed: Vec<String>,
    backtraces: bool,
}

impl Table {
    pub(super) fn new(config: &QueryStatsConfig) -> Self {
        let shapes = config.n_plus_one_allow.iter().flat_map(|entry| {
            let of = |dialect| Shape::of(entry, dialect).fingerprint;
            [entry.clone(), of(Dialect::Postgres), of(Dialect::Sqlite)]
        });
        Self {
            keys: RandomState::new(),
            shards: Default::default(),
            registry: Mutex::default(),
            max_series: config.max_series,
            told_full: AtomicBool::new(false),
            allowed: shapes.collect(),
            backtraces: config.backtraces,
        }
    }

    /// Counts a statement. The hash is keyed by this process's randomness and 64 bits wide, so that it stands for what
    /// it is of.
    pub(super) fn add(&self, statement: &Statement<'_>, wanted: bool) -> Hit {
        let route = statement.scope.map_or(0, |scope| scope.route_key());
        let key = self.keys.hash_one((statement.text, statement.dialect, route, statement.site().place()));
        let shard = self.shard();
        {
            let mut local = lock(&shard.0);
            if let Some(place) = local.known.get(&key).copied() {
                return local.add(place, statement, wanted);
            }
        }
        let series = self.register(statement, route);
        let mut local = lock(&shard.0);
        let next = local.series.len();
        let place = *local.places.entry(series.key).or_insert(next);
        if place == next {
            local.series.push((series, Counts::default()));
        }
        if local.known.len() >= MAX_KNOWN {
            local.known.clear();
        }
        local.known.insert(key, place);
        local.add(place, statement, wanted)
    }

    fn register(&self, statement: &Statement<'_>, route: u64) -> Arc<Series> {
        let mut series = Series::new(statement);
        series.key = self.keys.hash_one((&series.shape.fingerprint, statement.dialect, route, series.site));
        series.allowed = self.allowed.contains(&series.shape.fingerprint);
        {
            let mut registry = lock(&self.registry);
            if let Some(known) = registry.get(&series.key) {
                return Arc::clone(known);
            }
            if registry.len() >= self.max_series {
                let key = self.keys.hash_one(statement.dialect);
                let other = registry
                    .entry(key)
                    .or_insert_with(|| Arc::new(Series { key, ..Series::other(statement.dialect) }));
                let other = Arc::clone(other);
                drop(registry);
                if !self.told_full.swap(true, Ordering::Relaxed) {
                    tell_full(self.max_series);
                }
                return other;
            }
        }
        // A statement that was given up ends on another stack than it ran on.
        if series.site == Site::Unknown && self.backtraces && !statement.given_up {
            series.trace = Trace::capture();
        }
        let (key, series) = (series.key, Arc::new(series));
        let known = Arc::clone(lock(&self.registry).entry(key).or_insert_with(|| Arc::clone(&series)));
        resolve_aside(&known);
        known
    }

    /// The thread's own shard, as long as there are no more threads than shards.
    fn shard(&self) -> &Shard {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
        }
        let mine = MINE.try_with(|mine| *mine).unwrap_or(0);
        &self.shards[mine % SHARDS]
    }

    /// Counts an error of a statement that has been counted already.
    pub(super) fn fail(&self, key: u64) {
        let mut local = lock(&self.shard().0);
        if let Some(place) = local.places.get(&key).copied() {
            local.series[place].1.errors += 1;
        }
    }

    pub(super) fn series(&self, key: u64) -> Option<Arc<Series>> {
        lock(&self.registry).get(&key).cloned()
    }

    pub(super) fn collect(&self) -> ByKey<(Arc<Series>, Counts)> {
        let mut all = ByKey::<(Arc<Series>, Counts)>::default();
        for shard in &self.shards {
            for (series, counts) in &lock(&shard.0).series {
                let entry = all.entry(series.key).or_insert_with(|| (Arc::clone(series), Counts::default()));
                entry.1.merge(counts);
            }
        }
        all
    }

    pub(super) fn clear(&self) {
        lock(&self.registry).clear();
        self.shards.iter().for_each(|shard| *lock(&shard.0) = Local::default());
    }
}

/// Not inside of a subscriber, where `SqlxLayer` counts.
fn tell_full(max_series: usize) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || telemetry::max_series_reached(max_series))),
        Err(_) => telemetry::max_series_reached(max_series),
    }
}

/// Finds the call site on a thread that may block, and lets go of the backtrace, which is large.
fn resolve_aside(series: &Arc<Series>) {
    if series.trace.is_unresolved()
        && let Ok(runtime) = tokio::runtime::Handle::try_current()
    {
        let series = Arc::clone(series);
        runtime.spawn_blocking(move || series.trace.site());
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
