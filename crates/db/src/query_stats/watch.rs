//! For tests: what ran while a future did.

use std::{
    fmt::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    Scope, Statement,
    n_plus_one::cure,
    site::{Site, Trace},
    table::{Series, lock},
};

/// Runs `future`, and returns with its output what statements it ran.
///
/// Seen are the statements awaited in it, in scopes inside of it, and in batches that it asks for; not those of tasks
/// that it spawns, unless they are given its [`Scope`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), greenwave_db::Error> {
/// # #[cfg(feature = "sqlite")] {
/// use greenwave_db::{PoolConfig, query_stats, sqlite::Pool};
///
/// # let directory = tempfile::tempdir().unwrap();
/// let pool = Pool::open(directory.path().join("shop.db"), PoolConfig::default())?;
/// let (one, seen) =
///     query_stats::watch(pool.read(|db| db.query_one("SELECT 1", (), |row| row.get::<_, i64>(0)))).await;
/// assert_eq!(one?, 1);
/// seen.assert_at_most(1);
/// seen.assert_no_n_plus_one();
/// # }
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// That of `future`.
pub async fn watch<F: Future>(future: F) -> (F::Output, Seen) {
    let watcher = Arc::new(Watcher::default());
    let output = Scope::watched(Arc::clone(&watcher), future).await;
    (output, watcher.seen())
}

/// Notes every statement of a [`watch`].
#[derive(Debug, Default)]
pub(crate) struct Watcher(Mutex<Vec<Entry>>);

#[derive(Debug)]
struct Entry {
    scope: u64,
    series: Arc<Series>,
    trace: Trace,
    /// So many calls are too many.
    threshold: u32,
    calls: u64,
    errors: u64,
    rows: u64,
    elapsed: Duration,
}

impl Watcher {
    pub(super) fn note(
        &self,
        scope: &Scope,
        series: &Arc<Series>,
        statement: &Statement<'_>,
        threshold: u32,
    ) {
        let mut entries = lock(&self.0);
        let scope_id = scope_id(scope);
        let known =
            entries.iter().position(|entry| entry.scope == scope_id && entry.series.key == series.key);
        let place = known.unwrap_or_else(|| {
            // A loader's statements repeat for others than it.
            let may_repeat = series.allowed || threshold == 0 || scope.loader_name().is_some();
            let trace = match series.site {
                Site::Unknown if !statement.given_up => Trace::capture(),
                _ => Trace::default(),
            };
            entries.push(Entry {
                scope: scope_id,
                series: Arc::clone(series),
                trace,
                threshold: if may_repeat { u32::MAX } else { threshold },
                calls: 0,
                errors: 0,
                rows: 0,
                elapsed: Duration::ZERO,
            });
            entries.len() - 1
        });
        let entry = &mut entries[place];
        entry.calls += 1;
        entry.errors += u64::from(statement.failed);
        entry.rows += statement.rows;
        entry.elapsed += statement.elapsed;
    }

    /// Notes an error of a statement that has been noted already.
    pub(super) fn fail(&self, scope: &Scope, key: u64) {
        let (mut entries, scope_id) = (lock(&self.0), scope_id(scope));
        let known = entries.iter_mut().find(|entry| entry.scope == scope_id && entry.series.key == key);
        if let Some(entry) = known {
            entry.errors += 1;
        }
    }

    fn seen(&self) -> Seen {
        let entries = lock(&self.0);
        let statements = entries.iter().map(|entry| SeenStatement {
            fingerprint: entry.series.shape.fingerprint.clone(),
            text: entry.series.shape.text.clone(),
            route: entry.series.route.as_deref().map(str::to_owned),
            site: match entry.series.site {
                Site::Unknown => entry.trace.site().as_ref().to_owned(),
                known => known.to_string(),
            },
            calls: entry.calls,
            errors: entry.errors,
            rows: entry.rows,
            elapsed: entry.elapsed,
            n_plus_one: entry.calls >= u64::from(entry.threshold),
            cure: cure(&entry.series.shape),
        });
        Seen { statements: statements.collect() }
    }
}

/// All batches of a loader are one.
fn scope_id(scope: &Scope) -> u64 {
    if scope.loader_name().is_some() { 0 } else { scope.id() }
}

/// The statements that a [`watch`]ed future ran.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    statements: Vec<SeenStatement>,
}

/// Statements of one scope, one call site and one fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenStatement {
    /// The fingerprint.
    pub fingerprint: String,
    /// The statement, without values.
    pub text: String,
    /// The route of its scope.
    pub route: Option<String>,
    /// The call site.
    pub site: String,
    /// How often it ran.
    pub calls: u64,
    /// How often it failed.
    pub errors: u64,
    /// Rows returned or changed, of all calls.
    pub rows: u64,
    /// How long all calls took, the wait for connections apart.
    pub elapsed: Duration,
    /// Whether it repeated too often.
    pub n_plus_one: bool,
    cure: &'static str,
}

impl Seen {
    /// The statements, in the order in which each first ended.
    pub fn statements(&self) -> &[SeenStatement] {
        &self.statements
    }

    /// How many statements ran.
    pub fn count(&self) -> u64 {
        self.statements.iter().map(|statement| statement.calls).sum()
    }

    /// Those that repeated too often: see
    /// [`n_plus_one_threshold`](super::QueryStatsConfig::n_plus_one_threshold).
    pub fn n_plus_one(&self) -> Vec<&SeenStatement> {
        self.statements.iter().filter(|statement| statement.n_plus_one).collect()
    }

    /// # Panics
    /// If more than `limit` statements ran. The message is a table of them.
    #[track_caller]
    pub fn assert_at_most(&self, limit: u64) {
        let count = self.count();
        assert!(
            count <= limit,
            "{count} statements ran where {limit} may:\n{}",
            table(self.statements.iter())
        );
    }

    /// # Panics
    /// If a statement repeated too often. The message is a table of those that did, with the cure.
    #[track_caller]
    pub fn assert_no_n_plus_one(&self) {
        let found = self.n_plus_one();
        assert!(found.is_empty(), "statements repeat:\n{}", table(found.into_iter()));
    }
}

fn table<'a>(statements: impl Iterator<Item = &'a SeenStatement>) -> String {
    let mut table = String::new();
    for SeenStatement { calls, text, route, site, n_plus_one, cure, .. } in statements {
        let route = route.as_deref().map(|route| format!(", in {route}")).unwrap_or_default();
        let _ = writeln!(table, "{calls:>6} × {text}\n         from {site}{route}"); // To a string: cannot fail.
        if *n_plus_one {
            let _ = writeln!(table, "         cure: {cure}");
        }
    }
    table
}
