//! Bad days.

use std::{sync::mpsc, time::Duration};

use expect_test::expect;
use greenwave_db::{Error, PoolConfig, sqlite::Pool};
use tokio::{sync::oneshot, time::timeout};

use crate::sqlite::{Fixture, insert};

pub(crate) fn impatient() -> PoolConfig {
    PoolConfig { max_connections: 1, connection_timeout: Duration::from_millis(100), ..Default::default() }
}

/// A write that has begun and ends when told to.
pub(crate) async fn hold_writer(
    pool: &Pool,
) -> (tokio::task::JoinHandle<Result<(), Error>>, impl FnOnce() + use<>) {
    let (begun, wait) = oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let pool = pool.clone();
    let write = tokio::spawn(async move {
        let hold = move |tx: &rusqlite::Transaction<'_>| {
            tx.execute("INSERT INTO numbers VALUES (1000)", ())?;
            let _ = begun.send(());
            let _ = released.recv();
            Ok(())
        };
        pool.write_once(hold).await
    });
    wait.await.unwrap();
    (write, move || release.send(()).unwrap())
}

#[tokio::test]
async fn a_panic_in_a_write_rolls_back_and_is_an_error() {
    let db = Fixture::new(PoolConfig::default()).await;
    let panicking = db.pool.write(|tx| -> Result<(), Error> {
        tx.execute("INSERT INTO numbers VALUES (1)", ())?;
        panic!("on purpose")
    });
    let error = panicking.await.unwrap_err();
    expect!["a database closure panicked: on purpose"].assert_eq(&error.to_string());
    assert_eq!(db.count().await, 0);
    insert(&db.pool, 1).await.unwrap();
    assert_eq!(db.count().await, 1);
}

#[tokio::test]
async fn a_transaction_that_sqlite_has_ended_itself_fails_with_its_own_error() {
    let db = Fixture::new(PoolConfig::default()).await;
    let trigger = "CREATE TRIGGER refused BEFORE INSERT ON numbers WHEN new.n = 13
                   BEGIN SELECT RAISE(ROLLBACK, 'no thirteen'); END";
    db.pool.write(move |tx| Ok::<_, Error>(tx.execute_batch(trigger)?)).await.unwrap();
    let refused = db.pool.write(|tx| {
        tx.execute("INSERT INTO numbers VALUES (1)", ())?;
        tx.execute("INSERT INTO numbers VALUES (13)", ())?;
        Ok::<_, Error>(())
    });
    match refused.await.unwrap_err() {
        Error::Sqlite(source) => expect!["no thirteen"].assert_eq(&source.to_string()),
        other => panic!("{other:?}"),
    }
    let panicking = db.pool.write(|tx| -> Result<(), Error> {
        let refused = tx.execute("INSERT INTO numbers VALUES (13)", ());
        panic!("on purpose, after {refused:?}")
    });
    assert!(matches!(panicking.await, Err(Error::Panicked { .. })));
    assert_eq!(db.count().await, 0);
    insert(&db.pool, 1).await.unwrap();
    assert_eq!(db.count().await, 1);
}

#[tokio::test]
async fn a_panic_in_a_read_is_an_error() {
    let db = Fixture::new(impatient()).await;
    let panicking = db.pool.read(|_| -> rusqlite::Result<()> { panic!("on purpose") });
    assert!(matches!(panicking.await, Err(Error::Panicked { .. })));
    assert_eq!(db.count().await, 0, "the only reader is free again");
}

#[tokio::test]
async fn a_read_that_leaves_its_transaction_open_shows_it_to_nobody() {
    let db = Fixture::new(impatient()).await;
    let begin = "BEGIN; SELECT count(*) FROM numbers";
    db.pool.read(move |db| db.execute_batch(begin)).await.unwrap();
    insert(&db.pool, 1).await.unwrap();
    assert_eq!(db.count().await, 1);
}

#[tokio::test]
async fn exhausted_readers_fail_within_the_timeout_and_say_what_to_do() {
    let db = Fixture::new(impatient()).await;
    let (release, released) = mpsc::channel::<()>();
    let (begun, wait) = oneshot::channel();
    let pool = db.pool.clone();
    let held = tokio::spawn(async move {
        let hold = move |_: &rusqlite::Connection| {
            begun.send(()).unwrap();
            released.recv().map_err(|_| rusqlite::Error::InvalidQuery)
        };
        pool.read_on_thread(hold).await
    });
    wait.await.unwrap();
    let error = db.pool.read(|_| Ok(())).await.unwrap_err();
    expect![[r#"no database connection became free within 100ms (1 of 1 in use): raise `max_connections`, or hold connections for less time"#]]
        .assert_eq(&error.to_string());
    release.send(()).unwrap();
    held.await.unwrap().unwrap();
    db.pool.read(|_| Ok(())).await.unwrap();
}

#[tokio::test]
async fn a_writer_whose_turn_does_not_come_fails_and_never_writes() {
    let db = Fixture::new(impatient()).await;
    let (held, release) = hold_writer(&db.pool).await;
    let error = insert(&db.pool, 1).await.unwrap_err();
    expect!["no turn to write came within 100ms: make the write transactions shorter"]
        .assert_eq(&error.to_string());
    release();
    held.await.unwrap().unwrap();
    insert(&db.pool, 2).await.unwrap();
    assert_eq!(db.count().await, 2, "1000 and 2");
}

#[tokio::test]
async fn a_write_dropped_while_it_waits_writes_nothing() {
    let db = Fixture::new(PoolConfig::default()).await;
    let (held, release) = hold_writer(&db.pool).await;
    assert!(timeout(Duration::from_millis(20), insert(&db.pool, 1)).await.is_err());
    release();
    held.await.unwrap().unwrap();
    insert(&db.pool, 2).await.unwrap();
    assert_eq!(db.count().await, 2, "1000 and 2");
}

#[tokio::test]
async fn a_write_dropped_after_it_began_is_committed() {
    let db = Fixture::new(PoolConfig::default()).await;
    let (held, release) = hold_writer(&db.pool).await;
    held.abort();
    assert!(held.await.unwrap_err().is_cancelled());
    release();
    insert(&db.pool, 2).await.unwrap();
    assert_eq!(db.count().await, 2, "1000 and 2");
}

#[tokio::test]
async fn a_file_locked_by_another_is_an_error_that_says_so() {
    let db = Fixture::new(impatient()).await;
    let other = rusqlite::Connection::open(db.directory.path().join("test.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = insert(&db.pool, 1).await.unwrap_err();
    expect!["another pool or process kept the SQLite file locked for 100ms: make its transactions shorter"]
        .assert_eq(&error.to_string());
    other.execute_batch("ROLLBACK").unwrap();
    insert(&db.pool, 1).await.unwrap();
}

#[test]
fn what_cannot_be_opened_says_why() {
    let open = |path: &str| Pool::open(path, PoolConfig::default()).unwrap_err();
    assert!(matches!(open(":memory:"), Error::InMemory));
    assert!(matches!(open(""), Error::InMemory));
    assert!(matches!(open("file:shop.db?mode=memory"), Error::Uri));
    expect!["cannot open the SQLite database /no/such/place/shop.db: check that its directory exists and may be written"]
        .assert_eq(&open("/no/such/place/shop.db").to_string());
    let none = PoolConfig { max_connections: 0, ..Default::default() };
    assert!(matches!(Pool::open("unused.db", none), Err(Error::Config { .. })));
}

#[test]
fn a_file_that_is_no_database_is_not_touched() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "a diary, not a database. ".repeat(100);
    std::fs::write(file.path(), &text).unwrap();
    assert!(matches!(Pool::open(file.path(), PoolConfig::default()), Err(Error::Open { .. })));
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
}

#[tokio::test]
async fn a_closed_pool_has_finished_what_it_began_and_refuses_the_rest() {
    let db = Fixture::new(PoolConfig::default()).await;
    let (held, release) = hold_writer(&db.pool).await;
    let pool = db.pool.clone();
    let closing = tokio::spawn(async move { pool.close().await });
    release();
    closing.await.unwrap();
    held.await.unwrap().unwrap();
    assert!(matches!(insert(&db.pool, 1).await, Err(Error::Closed)));
    assert!(matches!(db.pool.read(|_| Ok(())).await, Err(Error::Closed)));
    let again = Pool::open(db.directory.path().join("test.db"), PoolConfig::default()).unwrap();
    assert_eq!(crate::sqlite::count(&again).await, 1);
}
