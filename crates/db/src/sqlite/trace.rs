//! Times statements through SQLite's own trace hook, which knows the text that ran and leaves values out of it.

use std::{
    cell::RefCell,
    panic::Location,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection, OpenFlags,
    trace::{StmtRef, TraceEvent, TraceEventCodes},
};

use super::connection::File;
use crate::{
    query_stats::{Dialect, QueryStats, Series, Site, Statement},
    telemetry::{self, Finished},
};

/// Steps of SQLite's virtual machine between two looks at the clock: some 50 µs.
const STEPS: i32 = 4096;

thread_local! {
    /// The hook is a plain function: what it must know waits here while a closure runs on this thread.
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Who runs statements, carried to the thread on which they run.
#[derive(Clone)]
pub(super) struct Caller {
    stats: QueryStats,
    scope: Option<crate::query_stats::Scope>,
    site: &'static Location<'static>,
}

impl Caller {
    /// In the scope in which this is called.
    pub(super) fn new(stats: QueryStats, site: &'static Location<'static>) -> Self {
        Self { stats, scope: crate::query_stats::Scope::current(), site }
    }
}

struct Scope {
    slow: Duration,
    wait: Duration,
    caller: Caller,
    /// The last statement that ended.
    last: Option<u64>,
    /// The file, if plans are asked for.
    explain: Option<Arc<Path>>,
    /// The longest that a statement may run.
    limit: Option<Duration>,
    running: Vec<Running>,
}

struct Running {
    statement: usize,
    since: Instant,
    rows: u64,
}

/// Lets statements of this connection be seen, and interrupted, whenever they run inside a scope.
pub(super) fn observe(connection: &Connection) -> rusqlite::Result<()> {
    let events = TraceEventCodes::SQLITE_TRACE_STMT
        | TraceEventCodes::SQLITE_TRACE_ROW
        | TraceEventCodes::SQLITE_TRACE_PROFILE;
    connection.trace_v2(events, Some(on_event));
    connection.progress_handler(STEPS, Some(over_limit))
}

fn over_limit() -> bool {
    let over = |scope: &mut Scope| {
        let limit = scope.limit?;
        Some(scope.running.iter().any(|running| running.since.elapsed() > limit))
    };
    with_scope(over).flatten().unwrap_or(false)
}

/// Runs `f`; each statement it runs is reported as `caller`'s, and interrupted beyond the file's limit.
pub(super) fn scope<T>(file: &File, wait: Duration, caller: Caller, f: impl FnOnce() -> T) -> T {
    /// Gives the thread back the scope it was in: a closure may have been run from inside another.
    struct Leave(Option<Scope>);
    impl Drop for Leave {
        fn drop(&mut self) {
            SCOPE.set(self.0.take());
        }
    }
    let limit = (!file.config.max_statement.is_zero()).then_some(file.config.max_statement);
    let explain = caller.stats.config().explain_slow.then(|| file.shared_path());
    let slow = file.config.slow_query;
    let scope = Scope { slow, wait, caller, last: None, explain, limit, running: Vec::new() };
    let _leave = Leave(SCOPE.replace(Some(scope)));
    f()
}

fn on_event(event: TraceEvent<'_>) {
    match event {
        TraceEvent::Stmt(statement, _) => started(&statement),
        TraceEvent::Row(statement) => row(&statement),
        TraceEvent::Profile(statement, _) => finished(&statement),
        _ => {}
    }
}

/// SQLite keeps one copy of the text per prepared statement: its place tells statements apart.
fn identity(statement: &StmtRef<'_>) -> usize {
    statement.sql().as_ptr() as usize
}

fn started(statement: &StmtRef<'_>) {
    with_scope(|scope| {
        let statement = identity(statement);
        // A trigger inside the statement announces itself as well, under the same identity.
        if scope.running.iter().all(|running| running.statement != statement) {
            scope.running.push(Running { statement, since: Instant::now(), rows: 0 });
        }
    });
}

fn row(statement: &StmtRef<'_>) {
    with_scope(|scope| {
        let statement = identity(statement);
        if let Some(running) = scope.running.iter_mut().find(|running| running.statement == statement) {
            running.rows += 1;
        }
    });
}

fn finished(statement: &StmtRef<'_>) {
    // The scope is away while anybody's subscriber runs: what that runs here has its own.
    let Some(mut scope) = SCOPE.take() else { return };
    report(&mut scope, statement);
    SCOPE.set(Some(scope));
}

fn report(scope: &mut Scope, statement: &StmtRef<'_>) {
    let id = identity(statement);
    let Some(place) = scope.running.iter().position(|running| running.statement == id) else { return };
    let running = scope.running.swap_remove(place);
    let Scope { slow, wait, caller, .. } = &*scope;
    // Not the duration that SQLite gives: it counts in milliseconds. Either holds the time that the caller takes between
    // rows, for SQLite does not tell when it is asked for the next one.
    let elapsed = running.since.elapsed();
    let text = statement.sql();
    let statement = Statement {
        text: &text,
        dialect: Dialect::Sqlite,
        scope: caller.scope.as_ref(),
        site: Site::Code(caller.site),
        elapsed,
        wait: *wait,
        rows: running.rows,
        failed: false,
        given_up: false,
    };
    let finished = Finished { statement, stats: &caller.stats, returned: running.rows };
    if is_transaction_control(&text) {
        return finished.report_if_slow(*slow);
    }
    let Some(series) = finished.report(*slow, caller.stats.config().enabled) else { return };
    if let Some(path) = &scope.explain
        && elapsed >= *slow
        && caller.stats.wants_plan(&series)
    {
        let log_values = caller.stats.config().log_values;
        explain(Arc::clone(path), text.to_string(), Arc::clone(&series), log_values);
    }
    scope.last = Some(series.key());
}

/// The closure in whose scope this is called failed with `error`. SQLite's hook tells of no errors, so one that comes
/// from SQLite counts for the last statement.
pub(super) fn failed(error: &rusqlite::Error) {
    if matches!(error, rusqlite::Error::SqliteFailure(..)) {
        with_scope(|Scope { last, caller, .. }| {
            last.take().inspect(|last| caller.stats.fail(caller.scope.as_ref(), *last))
        });
    }
}

/// Logs the plan of a statement. It is taken through a connection of its own, for here a statement is just ending.
fn explain(path: Arc<Path>, text: String, series: Arc<Series>, log_values: bool) {
    let plan = move || match plan(&path, &text) {
        // No literal stands in it.
        Ok(plan) => telemetry::slow_query_plan(if log_values { &text } else { series.text() }, &plan),
        // Not the error's message, which shows the statement.
        Err(error) => {
            let code = error.sqlite_error().map(|error| error.extended_code);
            tracing::debug!(code, "a slow statement could not be explained");
        }
    };
    // If there is no thread to be had, there is no plan.
    drop(thread::Builder::new().name("greenwave-explain".into()).spawn(plan));
}

fn plan(path: &Path, text: &str) -> rusqlite::Result<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {text}"))?;
    let mut rows = statement.raw_query(); // Which asks for no parameters: a plan needs none.
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        lines.push(row.get::<_, String>("detail")?);
    }
    Ok(lines.join("\n"))
}

/// Those are no statements to count, but the log should name a slow one.
fn is_transaction_control(text: &str) -> bool {
    let word = text.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    ["BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"]
        .iter()
        .any(|known| word.eq_ignore_ascii_case(known))
}

fn with_scope<T>(f: impl FnOnce(&mut Scope) -> T) -> Option<T> {
    SCOPE.with_borrow_mut(|scope| scope.as_mut().map(f))
}
