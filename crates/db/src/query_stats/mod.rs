//! What statements cost, by route and call site, and which of them repeat without need.
//!
//! Each pool counts its statements in its [`QueryStats`]. Give each request a [`Scope`], and they are counted by route,
//! and N+1 is found: one statement, repeated in one scope from one call site. In tests, [`watch`] says what a future
//! ran. Whoever uses sqlx's pools, without ours, gets the same from `SqlxLayer`, as far as sqlx's events tell.

// Each database uses its part.
#![cfg_attr(not(all(feature = "postgres", feature = "sqlite")), allow(dead_code))]

mod config;
mod histogram;
#[cfg(feature = "tracing-layer")]
mod layer;
mod lexer;
mod n_plus_one;
mod scope;
mod shape;
mod site;
mod snapshot;
mod table;
mod watch;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub use config::QueryStatsConfig;
#[cfg(feature = "tracing-layer")]
pub use layer::SqlxLayer;
pub use n_plus_one::NPlusOne;
pub use scope::Scope;
pub use shape::Shape;
pub use snapshot::{Snapshot, StatementStats};
pub use watch::{Seen, SeenStatement, watch};

pub(crate) use site::Site;
pub(crate) use table::Series;
pub(crate) use watch::Watcher;

use n_plus_one::{Findings, Found};
use table::{Table, lock};

/// A statement's plan is taken once in this time.
const PLAN_PAUSE: Duration = Duration::from_secs(60);

/// In which language a statement is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL's: placeholders are `$1`.
    Postgres,
    /// SQLite's: placeholders are `?`, `?1`, `:name`, `@name` or `$name`.
    Sqlite,
}

impl Dialect {
    /// As OpenTelemetry spells `db.system.name`.
    pub(crate) fn system(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Sqlite => "sqlite",
        }
    }
}

/// Counts of statements; clones share them.
///
/// Each pool has one of its own, `pool.query_stats()`, as its config asks; `pool.with_query_stats(…)` lets several share
/// one.
///
/// To count a statement costs some 0.8 µs of processor time, a scope of its own included: a twentieth of what a point
/// query on PostgreSQL costs the client. It allocates nothing where the statement is known, and takes no lock that
/// another thread is likely to hold. The number of series is bounded by
/// [`max_series`](QueryStatsConfig::max_series), and with it the memory.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), greenwave_db::Error> {
/// # #[cfg(feature = "sqlite")] {
/// use greenwave_db::{PoolConfig, query_stats::Scope, sqlite::Pool};
///
/// # let directory = tempfile::tempdir().unwrap();
/// let pool = Pool::open(directory.path().join("shop.db"), PoolConfig::default())?;
/// let read = pool.read(|db| db.query_one("SELECT 7", (), |row| row.get::<_, i64>(0)));
/// Scope::new("/users/{id}").run(read).await?;
///
/// let snapshot = pool.query_stats().snapshot();
/// assert_eq!(snapshot.statements[0].text, "SELECT ?");
/// assert_eq!(snapshot.statements[0].route.as_deref(), Some("/users/{id}"));
/// # }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct QueryStats(Arc<Shared>);

struct Shared {
    config: QueryStatsConfig,
    table: Table,
    findings: Findings,
    /// When plans were last taken, by fingerprint. No more of them than series.
    plans: Mutex<HashMap<String, Instant>>,
}

impl QueryStats {
    /// Counts that no pool has yet.
    pub fn new(config: QueryStatsConfig) -> Self {
        let (table, findings, plans) = (Table::new(&config), Findings::default(), Mutex::default());
        Self(Arc::new(Shared { config, table, findings, plans }))
    }

    /// What was counted.
    ///
    /// Blocks while call sites are read from debug information, which takes up to some hundred milliseconds once in a
    /// process.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.0.table.collect())
    }

    /// Statements that repeated in a scope, the worst first. Blocks as [`snapshot`](Self::snapshot) does.
    pub fn n_plus_one(&self) -> Vec<NPlusOne> {
        self.0.findings.list()
    }

    /// Begins anew.
    pub fn reset(&self) {
        self.0.table.clear();
        self.0.findings.clear();
        lock(&self.0.plans).clear();
    }

    /// Its config.
    pub fn config(&self) -> &QueryStatsConfig {
        &self.0.config
    }

    /// Counts a statement. Returns its series if it is `wanted`.
    pub(crate) fn record(&self, statement: &Statement<'_>, wanted: bool) -> Option<Arc<Series>> {
        let Shared { config, table, .. } = &*self.0;
        let watcher = statement.scope.and_then(|scope| scope.watcher());
        if !config.enabled && watcher.is_none() {
            return wanted.then(|| Arc::new(Series::new(statement)));
        }
        let hit = table.add(statement, wanted || watcher.is_some());
        let Some(scope) = statement.scope else { return hit.series };
        let threshold = config.n_plus_one_threshold;
        if let (Some(watcher), Some(series)) = (watcher, &hit.series) {
            watcher.note(scope, series, statement, threshold);
        }
        let count = scope.count(hit.key);
        // Each count is reached once.
        if count > 0
            && count == threshold
            && !hit.allowed
            && let Some(series) = table.series(hit.key)
        {
            let trace = config.backtraces && !statement.given_up;
            scope.keep(Found::new(self, scope, series, count, trace));
        }
        hit.series
    }

    /// A statement that was recorded on this thread has failed.
    pub(crate) fn fail(&self, scope: Option<&Scope>, key: u64) {
        self.0.table.fail(key);
        if let Some(scope) = scope
            && let Some(watcher) = scope.watcher()
        {
            watcher.fail(scope, key);
        }
    }

    /// Whether the plan of this slow statement is to be taken now.
    pub(crate) fn wants_plan(&self, series: &Series) -> bool {
        let Shared { config, plans, .. } = &*self.0;
        if !config.enabled || !config.explain_slow || !series.shape.reads {
            return false;
        }
        let (mut plans, now) = (lock(plans), Instant::now());
        let due =
            plans.get(&series.shape.fingerprint).is_none_or(|last| now.duration_since(*last) >= PLAN_PAUSE);
        if due {
            plans.insert(series.shape.fingerprint.clone(), now);
        }
        due
    }
}

impl Default for QueryStats {
    fn default() -> Self {
        Self::new(QueryStatsConfig::default())
    }
}

impl fmt::Debug for QueryStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStats").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// A statement that ended.
pub(crate) struct Statement<'a> {
    pub(crate) text: &'a str,
    pub(crate) dialect: Dialect,
    pub(crate) scope: Option<&'a Scope>,
    pub(crate) site: Site,
    pub(crate) elapsed: Duration,
    pub(crate) wait: Duration,
    /// Returned or changed.
    pub(crate) rows: u64,
    pub(crate) failed: bool,
    /// Its caller went away, and with it the stack that led to it.
    pub(crate) given_up: bool,
}

impl Statement<'_> {
    fn site(&self) -> Site {
        self.scope.and_then(|scope| scope.loader_name()).map_or(self.site, Site::Loader)
    }
}

impl Series {
    /// The statement without its values.
    pub(crate) fn text(&self) -> &str {
        &self.shape.text
    }

    pub(crate) fn key(&self) -> u64 {
        self.key
    }

    /// The call site, if that is known without reading debug information.
    pub(crate) fn known_site(&self) -> Option<Arc<str>> {
        (self.site != Site::Unknown || !self.trace.is_unresolved()).then(|| self.site_name())
    }
}
