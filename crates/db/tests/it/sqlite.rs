//! What works, and what it reports.

use std::{sync::mpsc, time::Duration};

use greenwave_db::{
    Error, PoolConfig,
    query_stats::{Dialect, Shape},
    sqlite::{Config, Pool},
    telemetry,
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::signals::signals;

pub(crate) struct Fixture {
    pub(crate) pool: Pool,
    pub(crate) directory: TempDir,
}

impl Fixture {
    /// A pool over a fresh file with an empty table `numbers`.
    pub(crate) async fn new(config: PoolConfig) -> Self {
        Self::with(config.into()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::open(directory.path().join("test.db"), config).unwrap();
        let create = "CREATE TABLE numbers (n INTEGER PRIMARY KEY)";
        pool.write(move |tx| Ok::<_, Error>(tx.execute_batch(create)?)).await.unwrap();
        Self { pool, directory }
    }

    pub(crate) async fn count(&self) -> i64 {
        count(&self.pool).await
    }
}

pub(crate) async fn count(pool: &Pool) -> i64 {
    pool.read(|db| db.query_one("SELECT count(*) FROM numbers", (), |row| row.get(0))).await.unwrap()
}

pub(crate) async fn insert(pool: &Pool, n: i64) -> Result<(), Error> {
    pool.write(move |tx| {
        tx.prepare_cached("INSERT INTO numbers VALUES (?1)")?.execute([n])?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_was_written_is_read() {
    let db = Fixture::new(PoolConfig::default()).await;
    insert(&db.pool, 1).await.unwrap();
    insert(&db.pool, 2).await.unwrap();
    assert_eq!(db.count().await, 2);
}

#[tokio::test]
async fn an_error_rolls_back_and_comes_out_as_it_is() {
    #[derive(Debug)]
    enum Mine {
        Refused(i64),
        Database,
    }
    impl From<Error> for Mine {
        fn from(_: Error) -> Self {
            Self::Database
        }
    }
    let db = Fixture::new(PoolConfig::default()).await;
    let refused = db.pool.write(|tx| {
        tx.execute("INSERT INTO numbers VALUES (1)", ()).map_err(Error::from)?;
        Err::<(), _>(Mine::Refused(42))
    });
    assert!(matches!(refused.await, Err(Mine::Refused(42))));
    let broken = db.pool.write(|tx| {
        tx.execute("INSERT INTO numbers VALUES (1)", ()).map_err(Error::from)?;
        tx.execute("INSERT INTO numbers VALUES (1)", ()).map_err(Error::from)?;
        Ok::<_, Mine>(())
    });
    assert!(matches!(broken.await, Err(Mine::Database)));
    assert_eq!(db.count().await, 0);
}

#[tokio::test]
async fn foreign_keys_are_enforced() {
    let db = Fixture::new(PoolConfig::default()).await;
    let orphan = db.pool.write(|tx| {
        tx.execute_batch("CREATE TABLE child (n INTEGER REFERENCES numbers); INSERT INTO child VALUES (99)")?;
        Ok::<_, Error>(())
    });
    assert!(matches!(orphan.await, Err(Error::Sqlite(_))));
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let db = Fixture::new(PoolConfig::default()).await;
    let written = db.pool.read(|db| db.execute("INSERT INTO numbers VALUES (1)", ())).await;
    assert!(matches!(written, Err(Error::Sqlite(_))));
    assert_eq!(db.count().await, 0);
}

#[tokio::test]
async fn a_blocked_closure_does_not_block_the_runtime() {
    // One thread runs everything async here: only it can release the closures.
    let db = Fixture::new(PoolConfig::default()).await;
    let (release_read, read_released) = mpsc::channel::<()>();
    let (release_write, write_released) = mpsc::channel::<()>();
    let read =
        db.pool.read_on_thread(move |_| read_released.recv().map_err(|_| rusqlite::Error::InvalidQuery));
    let write = db.pool.write(move |_| write_released.recv().map_err(|_| Error::Closed));
    let release = async {
        tokio::task::yield_now().await;
        release_read.send(()).unwrap();
        release_write.send(()).unwrap();
    };
    let (read, write, ()) = tokio::join!(read, write, release);
    read.unwrap();
    write.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_two_pools_on_one_file_all_succeed() {
    let db = Fixture::new(PoolConfig::default()).await;
    let other = Pool::open(db.directory.path().join("test.db"), PoolConfig::default()).unwrap();
    let mut writers = JoinSet::new();
    for n in 0..400 {
        let pool = if n % 2 == 0 { db.pool.clone() } else { other.clone() };
        writers.spawn(async move { insert(&pool, n).await });
    }
    for written in writers.join_all().await {
        written.unwrap();
    }
    assert_eq!(db.count().await, 400);
    assert_eq!(count(&other).await, 400);
}

#[test]
fn a_new_file_may_be_opened_by_many_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.db");
    std::thread::scope(|scope| {
        let opening: Vec<_> =
            (0..8).map(|_| scope.spawn(|| Pool::open(&path, PoolConfig::default()))).collect();
        for opened in opening {
            opened.join().unwrap().unwrap();
        }
    });
}

#[tokio::test]
async fn each_statement_is_reported_once_in_its_callers_span() {
    let signals = signals();
    let db = Fixture::new(PoolConfig::default()).await;
    let trigger = "CREATE TABLE log (n INTEGER);
                   CREATE TRIGGER noted AFTER INSERT ON numbers BEGIN INSERT INTO log VALUES (new.n); END";
    db.pool.write(move |tx| Ok::<_, Error>(tx.execute_batch(trigger)?)).await.unwrap();
    let request = async {
        let write = db.pool.write(|tx| {
            tx.execute("INSERT INTO numbers AS \"lite-a\" VALUES (?1), (?2), (?3)", [11, 12, 13])?;
            Ok::<_, Error>(())
        });
        write.await.unwrap();
        let read = db.pool.read(|db| {
            // The inner statement runs while the outer one is under way.
            let mut outer = db.prepare("SELECT n AS \"lite-b\" FROM numbers")?;
            let mut rows = outer.query(())?;
            while let Some(row) = rows.next()? {
                let n: i64 = row.get(0)?;
                db.query_one("SELECT ?1 AS \"lite-c\"", [n], |_| Ok(()))?;
            }
            Ok(())
        });
        read.await.unwrap();
    };
    request.instrument(tracing::info_span!("request")).await;

    for (marker, times, rows) in [("lite-a", 1, 0), ("lite-b", 1, 3), ("lite-c", 3, 1)] {
        let events = signals.of(telemetry::QUERY_EVENT, marker);
        assert_eq!(events.len(), times, "{marker}: {events:?}");
        for event in events {
            assert_eq!(event.spans, ["request"]);
            assert_eq!(event.number("db.response.returned_rows"), rows, "{marker}");
        }
    }
}

#[tokio::test]
async fn what_begins_and_ends_a_transaction_is_no_statement() {
    let signals = signals();
    let db = Fixture::new(PoolConfig::default()).await;
    let request = async {
        let read = db.pool.read(|db| {
            let tx = db.unchecked_transaction()?;
            tx.query_one("SELECT count(*) AS \"lite-tx\" FROM numbers", (), |row| row.get::<_, i64>(0))?;
            tx.commit()?;
            db.execute_batch("begin; SAVEPOINT a; RELEASE a; rollback")
        });
        read.await.unwrap();
        insert(&db.pool, 1).await.unwrap();
    };
    request.instrument(tracing::info_span!("lite-tx-request")).await;
    let texts: Vec<_> =
        signals.in_span("lite-tx-request").into_iter().map(|event| event.text().to_owned()).collect();
    assert_eq!(texts, ["SELECT count(*) AS \"lite-tx\" FROM numbers", "INSERT INTO numbers VALUES (?)"]);
}

#[tokio::test]
async fn a_slow_statement_is_logged_with_its_text_but_not_its_values() {
    let signals = signals();
    let db = Fixture::new(PoolConfig { slow_query: Duration::from_millis(5), ..Default::default() }).await;
    let sql = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 AS \"lite-slow\" FROM c WHERE n < ?1) \
               SELECT count(*), ?2 FROM c";
    let slow = db.pool.read(move |db| db.query_one(sql, (2_000_000, "hunter2"), |row| row.get::<_, i64>(0)));
    assert_eq!(slow.await.unwrap(), 2_000_000);

    let events = signals.of(telemetry::SLOW_QUERY_EVENT, "lite-slow");
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!(event.text(), Shape::of(sql, Dialect::Sqlite).text);
    assert!(event.number("elapsed_us") >= 5_000);
    assert!(event.fields.contains_key("wait_us"));
    assert!(signals.mentioning("hunter2").is_empty());
}
