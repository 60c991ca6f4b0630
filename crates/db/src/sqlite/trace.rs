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
    static SCOPE: RefCell<Option<Box<Scope>>> = const { RefCell::new(None) };
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
    running: Running,
}

/// The statements that run. One at a time is the rule, and costs no look at its text, by whose place SQLite's events
/// tell statements apart.
#[derive(Default)]
struct Running {
    alone: Option<Run>,
    /// Those that began while others ran, and where each one's text lies.
    more: Vec<(usize, Run)>,
}

struct Run {
    since: Instant,
    rows: u64,
}

impl Running {
    fn begin(&mut self, statement: &StmtRef<'_>, announced: &str) {
        let run = Run { since: Instant::now(), rows: 0 };
        if self.alone.is_none() && self.more.is_empty() {
            self.alone = Some(run);
        } else if is_own(&statement.sql(), announced) {
            self.more.push((identity(statement), run));
        }
    }

    fn place(&self, statement: &StmtRef<'_>) -> Option<usize> {
        if self.more.is_empty() {
            return None;
        }
        let id = identity(statement);
        self.more.iter().position(|(other, _)| *other == id)
    }

    fn get_mut(&mut self, statement: &StmtRef<'_>) -> Option<&mut Run> {
        match self.place(statement) {
            Some(place) => Some(&mut self.more[place].1),
            None => self.alone.as_mut(),
        }
    }

    fn end(&mut self, statement: &StmtRef<'_>) -> Option<Run> {
        match self.place(statement) {
            Some(place) => Some(self.more.swap_remove(place).1),
            None => self.alone.take(),
        }
    }

    fn over(&self, limit: Duration) -> bool {
        let mut all = self.alone.iter().chain(self.more.iter().map(|(_, run)| run));
        all.any(|run| run.since.elapsed() > limit)
    }
}

/// SQLite keeps one copy of the text per prepared statement.
fn identity(statement: &StmtRef<'_>) -> usize {
    statement.sql().as_ptr() as usize
}

/// Whether a statement announces itself, and not a trigger inside of it: that announces itself in the statement's name,
/// as a comment. What a virtual table runs is commented out too, but stands there whole.
fn is_own(text: &str, announced: &str) -> bool {
    announced.trim_start_matches("-- ") == text.trim_start_matches("-- ")
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
        Some(scope.running.over(limit))
    };
    with_scope(over).flatten().unwrap_or(false)
}

/// Runs `f`; each statement it runs is reported as `caller`'s, and interrupted beyond the file's limit.
pub(super) fn scope<T>(file: &File, wait: Duration, caller: Caller, f: impl FnOnce() -> T) -> T {
    /// Gives the thread back the scope it was in: a closure may have been run from inside another.
    struct Leave(Option<Box<Scope>>);
    impl Drop for Leave {
        fn drop(&mut self) {
            SCOPE.set(self.0.take());
        }
    }
    let limit = (!file.config.max_statement.is_zero()).then_some(file.config.max_statement);
    let explain = caller.stats.config().explain_slow.then(|| file.shared_path());
    let slow = file.config.slow_query;
    let running = Running::default();
    let scope = Box::new(Scope { slow, wait, caller, last: None, explain, limit, running });
    let _leave = Leave(SCOPE.replace(Some(scope)));
    f()
}

fn on_event(event: TraceEvent<'_>) {
    match event {
        TraceEvent::Stmt(statement, announced) => {
            with_scope(|scope| scope.running.begin(&statement, announced));
        }
        TraceEvent::Row(statement) => {
            with_scope(|scope| scope.running.get_mut(&statement).map(|run| run.rows += 1));
        }
        TraceEvent::Profile(statement, _) => finished(&statement),
        _ => {}
    }
}

fn finished(statement: &StmtRef<'_>) {
    // The scope is away while anybody's subscriber runs: what that runs here has its own.
    let Some(mut scope) = SCOPE.take() else { return };
    report(&mut scope, statement);
    SCOPE.set(Some(scope));
}

fn report(scope: &mut Scope, statement: &StmtRef<'_>) {
    let Some(run) = scope.running.end(statement) else { return };
    let Scope { slow, wait, caller, .. } = &*scope;
    // Not the duration that SQLite gives: it counts in milliseconds. Either holds the time that the caller takes between
    // rows, for SQLite does not tell when it is asked for the next one.
    let elapsed = run.since.elapsed();
    let text = statement.sql();
    let statement = Statement {
        text: &text,
        dialect: Dialect::Sqlite,
        scope: caller.scope.as_ref(),
        site: Site::Code(caller.site),
        elapsed,
        wait: *wait,
        rows: run.rows,
        failed: false,
        given_up: false,
    };
    let finished = Finished { statement, stats: &caller.stats, returned: run.rows };
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
    SCOPE.with_borrow_mut(|scope| scope.as_deref_mut().map(f))
}
