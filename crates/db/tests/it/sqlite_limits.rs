//! Statements that run too long, and reads that would keep a thread for themselves.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use expect_test::expect;
use greenwave_db::{Error, PoolConfig, sqlite::Config};

use crate::{sqlite::Fixture, sqlite::insert, sqlite_faults::hold_writer};

/// Minutes, if nobody stops it.
const ENDLESS: &str = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 9000000000)
                       SELECT count(*) FROM c";

async fn limited() -> Fixture {
    let config = Config::from(PoolConfig { max_statement: Duration::from_millis(100), ..Default::default() });
    Fixture::with(config).await
}

#[tokio::test]
async fn a_read_beyond_the_limit_is_interrupted_and_says_what_to_do() {
    let db = limited().await;
    insert(&db.pool, 1).await.unwrap();
    for on_thread in [true, false] {
        let start = Instant::now();
        let count = |db: &rusqlite::Connection| db.query_one(ENDLESS, (), |row| row.get::<_, i64>(0));
        let read = if on_thread { db.pool.read_on_thread(count).await } else { db.pool.read(count).await };
        let error = read.unwrap_err();
        assert!(matches!(error, Error::Interrupted(_)), "{error:?}");
        expect!["the SQLite statement was interrupted because it ran for longer than `max_statement`: give it an index, let it touch fewer rows, or raise the limit"]
            .assert_eq(&error.to_string());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(db.count().await, 1, "the connection works");
    }
}

#[tokio::test]
async fn a_write_beyond_the_limit_is_interrupted_and_its_neighbours_commit() {
    let db = limited().await;
    let (held, release) = hold_writer(&db.pool).await;
    let write = |sql: String| {
        let pool = db.pool.clone();
        tokio::spawn(async move { pool.write(move |tx| Ok::<_, Error>(tx.execute_batch(&sql)?)).await })
    };
    let before = write("INSERT INTO numbers VALUES (1)".into());
    let endless = write(format!("INSERT INTO numbers VALUES (2); INSERT INTO numbers {ENDLESS}"));
    let after = write("INSERT INTO numbers VALUES (3)".into());
    tokio::task::yield_now().await;
    release();
    held.await.unwrap().unwrap();
    before.await.unwrap().unwrap();
    assert!(matches!(endless.await.unwrap(), Err(Error::Interrupted(_))));
    after.await.unwrap().unwrap();
    assert_eq!(db.count().await, 3, "1, 3 and 1000");
}

#[tokio::test]
async fn short_statements_of_a_long_closure_are_not_interrupted() {
    let db = limited().await;
    let patient = db.pool.read_on_thread(|db| {
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(60));
            db.query_one("SELECT count(*) FROM numbers", (), |row| row.get::<_, i64>(0))?;
        }
        Ok(())
    });
    patient.await.unwrap();
}

#[tokio::test]
async fn a_short_read_runs_on_the_calling_thread_and_a_long_one_elsewhere() {
    let db = Fixture::new(PoolConfig::default()).await;
    db.count().await; // Opens a connection.
    let here = thread::current().id();
    assert_eq!(db.pool.read(|_| Ok(thread::current().id())).await.unwrap(), here);
    assert_ne!(db.pool.read_on_thread(|_| Ok(thread::current().id())).await.unwrap(), here);
}

#[tokio::test]
async fn endless_short_reads_let_the_other_tasks_of_their_thread_run() {
    let db = Fixture::new(PoolConfig::default()).await;
    let (stop, stopped) = mpsc::channel::<()>();
    let other = tokio::spawn(async move { stop.send(()).unwrap() });
    while stopped.try_recv().is_err() {
        db.count().await;
    }
    other.await.unwrap();
}
