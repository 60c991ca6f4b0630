//! Times statements through SQLite's own trace hook, which knows the text that ran and leaves values out of it.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use rusqlite::{
    Connection,
    trace::{StmtRef, TraceEvent, TraceEventCodes},
};

use crate::telemetry::Finished;

thread_local! {
    /// The hook is a plain function: what it must know waits here while a closure runs on this thread.
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

struct Scope {
    slow: Duration,
    wait: Duration,
    slow_only: bool,
    running: Vec<Running>,
}

struct Running {
    statement: usize,
    since: Instant,
    rows: u64,
}

/// Lets statements of this connection be seen, whenever they run inside a scope.
pub(super) fn observe(connection: &Connection) {
    let events = TraceEventCodes::SQLITE_TRACE_STMT
        | TraceEventCodes::SQLITE_TRACE_ROW
        | TraceEventCodes::SQLITE_TRACE_PROFILE;
    connection.trace_v2(events, Some(on_event));
}

/// Runs `f`; each statement it runs is reported.
pub(super) fn scope<T>(slow: Duration, wait: Duration, f: impl FnOnce() -> T) -> T {
    enter(Scope { slow, wait, slow_only: false, running: Vec::new() }, f)
}

/// Runs `f`, which only ends a transaction: that is no statement of the caller's, but its log should name a slow one.
pub(super) fn slow_only<T>(slow: Duration, wait: Duration, f: impl FnOnce() -> T) -> T {
    enter(Scope { slow, wait, slow_only: true, running: Vec::new() }, f)
}

fn enter<T>(scope: Scope, f: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            SCOPE.set(None);
        }
    }
    SCOPE.set(Some(scope));
    let _leave = Leave;
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
    let statement = identity(statement);
    with_scope(|scope| {
        // A trigger inside the statement announces itself as well, under the same identity.
        if scope.running.iter().all(|running| running.statement != statement) {
            scope.running.push(Running { statement, since: Instant::now(), rows: 0 });
        }
    });
}

fn row(statement: &StmtRef<'_>) {
    let statement = identity(statement);
    with_scope(|scope| {
        if let Some(running) = scope.running.iter_mut().find(|running| running.statement == statement) {
            running.rows += 1;
        }
    });
}

fn finished(statement: &StmtRef<'_>) {
    let id = identity(statement);
    let ended = with_scope(|scope| {
        let place = scope.running.iter().position(|running| running.statement == id)?;
        let running = scope.running.swap_remove(place);
        Some((running, scope.slow, scope.wait, scope.slow_only))
    });
    // The scope is free again before anybody's subscriber runs.
    let Some((running, slow, wait, slow_only)) = ended.flatten() else { return };
    // Not the duration that SQLite gives: it counts in milliseconds.
    let elapsed = running.since.elapsed();
    let text = statement.sql();
    let finished = Finished { system: "sqlite", text: &text, elapsed, wait, rows: running.rows };
    if slow_only { finished.report_if_slow(slow) } else { finished.report(slow) }
}

fn with_scope<T>(f: impl FnOnce(&mut Scope) -> T) -> Option<T> {
    SCOPE.with_borrow_mut(|scope| scope.as_mut().map(f))
}
