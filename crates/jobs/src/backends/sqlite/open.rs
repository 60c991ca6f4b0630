//! Opening the file, and bringing its tables up to date.

use std::cell::Cell;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OptionalExtension};

const MIGRATIONS: &[(i32, &str)] = &[
    (1, include_str!("../../../migrations/sqlite/0001_jobs.sql")),
    (2, include_str!("../../../migrations/sqlite/0002_positions_and_options.sql")),
    (3, include_str!("../../../migrations/sqlite/0003_sequence_and_done.sql")),
    (4, include_str!("../../../migrations/sqlite/0004_limits.sql")),
    (5, include_str!("../../../migrations/sqlite/0005_schedules_and_workflows.sql")),
    (6, include_str!("../../../migrations/sqlite/0006_admin.sql")),
];

/// How long a call waits for the writer lock of others.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest sleep between two tries for it.
const MAX_PAUSE: Duration = Duration::from_micros(500);

pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    conn.busy_handler(Some(wait_for_lock))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    // Of several that turn WAL on at once SQLite refuses all but one, and does not wait as it does elsewhere.
    let began = Instant::now();
    while let Err(error) = conn.pragma_update(None, "journal_mode", "WAL") {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || began.elapsed() > BUSY_TIMEOUT {
            return Err(error);
        }
        thread::sleep(MAX_PAUSE);
    }
    conn.set_prepared_statement_cache_capacity(64);
    Ok(conn)
}

/// Called by SQLite each time it finds the file's lock taken; `tries` is how often it was before, for this lock.
///
/// SQLite's own busy timeout sleeps for up to 100 ms between tries. Against a writer that commits without pause some
/// calls then never meet the moment between two commits, and even with 5 ms a few do not; half a millisecond does.
fn wait_for_lock(tries: i32) -> bool {
    thread_local! {
        static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    let now = Instant::now();
    let began = BEGAN.get().filter(|_| tries > 0).unwrap_or(now);
    BEGAN.set(Some(began));
    if now.duration_since(began) >= BUSY_TIMEOUT {
        return false;
    }
    // Drawn, for a writer that holds the lock as long as a fixed pause is met in the same moment each time.
    thread::sleep(rand::random_range(Duration::ZERO..=MAX_PAUSE));
    true
}

pub(super) fn migrate(conn: &Connection) -> rusqlite::Result<()> {
    const CREATE: &str = "
        CREATE TABLE IF NOT EXISTS greenwave_jobs_migrations (
            version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT";
    conn.execute(CREATE, [])?;
    let applied: i32 =
        conn.query_row("SELECT coalesce(max(version), 0) FROM greenwave_jobs_migrations", [], |row| {
            row.get(0)
        })?;
    for (version, sql) in MIGRATIONS.iter().filter(|(version, _)| *version > applied) {
        conn.execute_batch(sql)?;
        conn.execute("INSERT INTO greenwave_jobs_migrations (version) VALUES (?1)", [version])?;
    }
    Ok(())
}

pub(super) fn is_migrated(conn: &Connection) -> rusqlite::Result<bool> {
    const EXISTS: &str =
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'greenwave_jobs_migrations'";
    if conn.query_row(EXISTS, [], |_| Ok(())).optional()?.is_none() {
        return Ok(false);
    }
    // A database that is ahead of this library serves it: migrations only add.
    let newest = MIGRATIONS.last().map_or(0, |(version, _)| *version);
    let sql = "SELECT coalesce(max(version), 0) >= ?1 FROM greenwave_jobs_migrations";
    conn.query_row(sql, [newest], |row| row.get(0))
}
