//! Many callers in one transaction: each answers for itself.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use expect_test::expect;
use greenwave_db::{
    Error, PoolConfig,
    sqlite::{Config, Pool, Synchronous},
};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    sqlite::{Fixture, count, insert},
    sqlite_faults::hold_writer,
};

/// Runs `sql` as one caller.
fn run(pool: &Pool, sql: &'static str) -> JoinHandle<Result<(), Error>> {
    let pool = pool.clone();
    tokio::spawn(async move { pool.write(move |tx| Ok(tx.execute_batch(sql)?)).await })
}

fn insert_one(pool: &Pool, n: i64) -> JoinHandle<Result<(), Error>> {
    let pool = pool.clone();
    tokio::spawn(async move { insert(&pool, n).await })
}

async fn numbers(pool: &Pool) -> Vec<i64> {
    let all = |db: &rusqlite::Connection| {
        db.prepare("SELECT n FROM numbers ORDER BY n")?.query_map((), |row| row.get(0))?.collect()
    };
    pool.read(all).await.unwrap()
}

/// Lets callers queue behind a held writer, so that they meet in one transaction.
async fn grouped<T>(db: &Fixture, queue: impl FnOnce(&Pool) -> T) -> T {
    let (held, release) = hold_writer(&db.pool).await;
    let queued = queue(&db.pool);
    // One thread: each spawned caller runs up to its wait.
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    release();
    held.await.unwrap().unwrap();
    queued
}

#[tokio::test]
async fn in_a_group_one_fails_and_one_panics_and_the_others_commit() {
    let db = Fixture::new(PoolConfig::default()).await;
    let (before, failing, panicking, after) = grouped(&db, |pool| {
        let panicking = pool.clone();
        (
            insert_one(pool, 1),
            run(pool, "INSERT INTO numbers VALUES (2); INSERT INTO numbers VALUES (1)"),
            tokio::spawn(async move {
                let panic = |tx: &rusqlite::Transaction<'_>| -> Result<(), Error> {
                    tx.execute("INSERT INTO numbers VALUES (3)", ())?;
                    panic!("on purpose")
                };
                panicking.write(panic).await
            }),
            insert_one(pool, 4),
        )
    })
    .await;
    before.await.unwrap().unwrap();
    assert!(matches!(failing.await.unwrap(), Err(Error::Sqlite(_))));
    assert!(matches!(panicking.await.unwrap(), Err(Error::Panicked { .. })));
    after.await.unwrap().unwrap();
    assert_eq!(numbers(&db.pool).await, [1, 4, 1000]);
}

#[tokio::test]
async fn callers_that_wait_together_share_a_transaction_and_run_once() {
    let db = Fixture::new(PoolConfig::default()).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let log = || std::fs::metadata(db.directory.path().join("test.db-wal")).unwrap().len();
    let before = log();
    let callers = grouped(&db, |pool| {
        let mut callers = JoinSet::new();
        for n in 0..100 {
            let (pool, runs) = (pool.clone(), Arc::clone(&runs));
            callers.spawn(async move {
                let count = move |tx: &rusqlite::Transaction<'_>| {
                    runs.fetch_add(1, Ordering::Relaxed);
                    tx.execute("INSERT INTO numbers VALUES (?1)", [n])?;
                    Ok::<i64, Error>(tx.query_one("SELECT count(*) FROM numbers", (), |row| row.get(0))?)
                };
                pool.write(count).await
            });
        }
        callers
    })
    .await;
    let mut seen: Vec<i64> = callers.join_all().await.into_iter().map(Result::unwrap).collect();
    seen.sort_unstable();
    assert_eq!(seen, (2..=101).collect::<Vec<_>>());
    assert_eq!(runs.load(Ordering::Relaxed), 100, "each ran once");
    // A commit writes each page that it changed: a hundred commits would be a hundred pages of 4 KiB.
    assert!(log() - before < 20 * 4096, "{} bytes", log() - before);
}

#[tokio::test]
async fn what_rolls_back_everything_undoes_only_its_own() {
    let trigger = "CREATE TABLE trap (n INTEGER);
                   CREATE TRIGGER sprung AFTER INSERT ON trap BEGIN SELECT RAISE(ROLLBACK, 'sprung'); END";
    for breaking in [
        "INSERT INTO numbers VALUES (2); INSERT INTO trap VALUES (1)",
        "INSERT OR ROLLBACK INTO numbers VALUES (2), (1)",
        "INSERT INTO numbers VALUES (2); ROLLBACK",
        "INSERT INTO numbers VALUES (2); COMMIT",
        "INSERT INTO numbers VALUES (2); ROLLBACK; BEGIN IMMEDIATE; INSERT INTO numbers VALUES (2)",
    ] {
        let db = Fixture::new(PoolConfig::default()).await;
        db.pool.write(move |tx| Ok::<_, Error>(tx.execute_batch(trigger)?)).await.unwrap();
        let (before, broken, after) = grouped(&db, |pool| {
            let before = insert_one(pool, 1);
            let broken: Vec<_> = (0..3).map(|_| run(pool, breaking)).collect();
            (before, broken, insert_one(pool, 3))
        })
        .await;
        let before = before.await.unwrap();
        assert!(before.is_ok(), "{before:?}: {breaking}");
        for broken in broken {
            assert!(matches!(broken.await.unwrap(), Err(Error::Sqlite(_))), "{breaking}");
        }
        let after = after.await.unwrap();
        assert!(after.is_ok(), "{after:?}: {breaking}");
        assert_eq!(numbers(&db.pool).await, [1, 3, 1000], "{breaking}");
    }
}

#[tokio::test]
async fn a_closure_that_hides_the_rollback_is_not_told_that_it_committed() {
    let db = Fixture::new(PoolConfig::default()).await;
    insert(&db.pool, 1).await.unwrap();
    let hiding = db.pool.write(|tx| {
        let _ = tx.execute("INSERT OR ROLLBACK INTO numbers VALUES (2), (1)", ());
        Ok::<_, Error>(())
    });
    let Err(Error::Sqlite(error)) = hiding.await else { panic!("acknowledged") };
    expect!["the closure returned Ok although its transaction had been rolled back"]
        .assert_eq(&error.to_string());
    assert_eq!(db.count().await, 1);
}

#[tokio::test]
async fn a_deferred_constraint_fails_the_caller_that_broke_it() {
    let db = Fixture::new(PoolConfig::default()).await;
    let child = "CREATE TABLE child (n INTEGER REFERENCES numbers DEFERRABLE INITIALLY DEFERRED)";
    db.pool.write(move |tx| Ok::<_, Error>(tx.execute_batch(child)?)).await.unwrap();
    let (before, orphan, after) = grouped(&db, |pool| {
        (insert_one(pool, 1), run(pool, "INSERT INTO child VALUES (99)"), insert_one(pool, 3))
    })
    .await;
    before.await.unwrap().unwrap();
    assert!(matches!(orphan.await.unwrap(), Err(Error::Sqlite(_))));
    after.await.unwrap().unwrap();
    assert_eq!(numbers(&db.pool).await, [1, 3, 1000]);
}

#[tokio::test]
async fn a_full_database_fails_whom_it_has_no_place_for() {
    let db = Fixture::new(PoolConfig::default()).await;
    let limit = |tx: &rusqlite::Transaction<'_>| {
        tx.execute_batch("CREATE TABLE blobs (b BLOB); PRAGMA max_page_count = 40")?;
        Ok::<_, Error>(())
    };
    db.pool.write(limit).await.unwrap();
    let (before, large, after) = grouped(&db, |pool| {
        (insert_one(pool, 1), run(pool, "INSERT INTO blobs VALUES (zeroblob(1000000))"), insert_one(pool, 3))
    })
    .await;
    before.await.unwrap().unwrap();
    let Err(Error::Sqlite(error)) = large.await.unwrap() else { panic!("no place for it") };
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DiskFull));
    after.await.unwrap().unwrap();
    assert_eq!(numbers(&db.pool).await, [1, 3, 1000]);
}

#[tokio::test]
async fn a_write_once_runs_once_in_the_midst_of_a_group_that_breaks() {
    let db = Fixture::new(PoolConfig::default()).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let (before, once, broken, after) = grouped(&db, |pool| {
        let (once, counted) = (pool.clone(), Arc::clone(&runs));
        let before = insert_one(pool, 1);
        let once = tokio::spawn(async move {
            let count = move |tx: &rusqlite::Transaction<'_>| {
                counted.fetch_add(1, Ordering::Relaxed);
                Ok::<_, Error>(tx.execute("INSERT INTO numbers VALUES (2)", ())?)
            };
            once.write_once(count).await
        });
        (before, once, run(pool, "INSERT OR ROLLBACK INTO numbers VALUES (1)"), insert_one(pool, 3))
    })
    .await;
    before.await.unwrap().unwrap();
    once.await.unwrap().unwrap();
    broken.await.unwrap().unwrap_err();
    after.await.unwrap().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(numbers(&db.pool).await, [1, 2, 3, 1000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_of_two_pools_on_one_file_lose_nothing() {
    let db = Fixture::new(PoolConfig::default()).await;
    let full = Config { synchronous: Synchronous::Full, ..Config::default() };
    let other = Pool::open(db.directory.path().join("test.db"), full).unwrap();
    let mut writers = JoinSet::new();
    for task in 0..64 {
        let pool = if task % 2 == 0 { db.pool.clone() } else { other.clone() };
        writers.spawn(async move {
            for n in 0..50 {
                insert(&pool, task * 100 + n).await.unwrap();
                // Reads go to the other connections: an acknowledged write is there at once.
                let sql = "SELECT count(*) FROM numbers WHERE n = ?1";
                let found =
                    pool.read(move |db| db.query_one(sql, [task * 100 + n], |row| row.get::<_, i64>(0)));
                assert_eq!(found.await.unwrap(), 1);
            }
        });
    }
    writers.join_all().await;
    assert_eq!(count(&other).await, 64 * 50);
}
