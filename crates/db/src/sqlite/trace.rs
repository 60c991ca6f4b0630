//! Times statements through SQLite's own trace hook, which knows the text that ran and leaves values out of it.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection,
    trace::{StmtRef, TraceEvent, TraceEventCodes},
};

use super::connection::File;
use crate::telemetry::Finished;

/// Steps of SQLite's virtual machine between two looks at the clock: some 50 µs.
const STEPS: i32 = 4096;

thread_local! {
    /// The hook is a plain function: what it must know waits here while a closure runs on this thread.
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

struct Scope {
    slow: Duration,
    wait: Duration,
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

/// Runs `f`; each statement it runs is reported, and interrupted beyond the file's limit.
pub(super) fn scope<T>(file: &File, wait: Duration, f: impl FnOnce() -> T) -> T {
    /// Gives the thread back the scope it was in: a closure may have been run from inside another.
    struct Leave(Option<Scope>);
    impl Drop for Leave {
        fn drop(&mut self) {
            SCOPE.set(self.0.take());
        }
    }
    let limit = (!file.config.max_statement.is_zero()).then_some(file.config.max_statement);
    let scope = Scope { slow: file.config.slow_query, wait, limit, running: Vec::new() };
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
    let ended = with_scope(|scope| {
        let id = identity(statement);
        let place = scope.running.iter().position(|running| running.statement == id)?;
        let running = scope.running.swap_remove(place);
        Some((running, scope.slow, scope.wait))
    });
    // The scope is free again before anybody's subscriber runs.
    let Some((running, slow, wait)) = ended.flatten() else { return };
    // Not the duration that SQLite gives: it counts in milliseconds. Either holds the time that the caller takes between
    // rows, for SQLite does not tell when it is asked for the next one.
    let elapsed = running.since.elapsed();
    let text = statement.sql();
    let finished = Finished { system: "sqlite", text: &text, elapsed, wait, rows: running.rows };
    if is_transaction_control(&text) { finished.report_if_slow(slow) } else { finished.report(slow) }
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
