//! `sqlite::Pool` against sqlx-sqlite: point reads and acknowledged writes of 256 tasks, in interleaved rounds.
//!
//! `cargo bench -p greenwave-db --bench sqlite`, with `-- ROUNDS SECONDS` for other than 5 rounds of 1 second each.
//! The file lies in the system's directory for temporary files (`TMPDIR`): that disk's syncs are what FULL measures.

#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use greenwave_db::{
    Error, PoolConfig,
    sqlite::{Config, Pool, Synchronous},
};
use rusqlite::OptionalExtension;
use sqlx::pool::PoolOptions;
use sqlx_sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::task::JoinSet;

const TASKS: usize = 256;
const ROWS: i64 = 100_000;
/// A row of some 100 bytes.
const TEXT: &str =
    "The quick brown fox jumps over the lazy dog, and the lazy dog lets it, as it is a warm evening.";

type Operation = Arc<dyn Fn(i64) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

struct Contender {
    name: &'static str,
    run: Operation,
    per_second: Vec<f64>,
}

impl Contender {
    fn new<F>(name: &'static str, run: impl Fn(i64) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { name, run: Arc::new(move |n| Box::pin(run(n))), per_second: Vec::new() }
    }

    fn median(&self) -> f64 {
        let mut sorted = self.per_second.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

fn main() {
    // Cargo adds `--bench`.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(5);
    let seconds = Duration::from_secs(numbers.get(1).copied().unwrap_or(1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let path = directory.path().join("reads.db");
        measure("point reads", rounds, seconds, reads(&path).await).await;
        for (title, ours, theirs) in [
            ("acknowledged writes, NORMAL", Synchronous::Normal, SqliteSynchronous::Normal),
            ("acknowledged writes, FULL", Synchronous::Full, SqliteSynchronous::Full),
        ] {
            let contenders = writes(directory.path(), ours, theirs).await;
            measure(title, rounds, seconds, contenders).await;
        }
    });
}

/// Runs everyone in turn, `rounds` times, and prints medians; the first is the one that is measured.
async fn measure(title: &str, rounds: u64, time: Duration, mut contenders: Vec<Contender>) {
    for round in 0..=rounds {
        for contender in &mut contenders {
            let per_second = race(&contender.run, time).await;
            // The first round warms up.
            if round > 0 {
                contender.per_second.push(per_second);
            }
        }
    }
    println!("\n{title}, {TASKS} tasks, median of {rounds} rounds");
    let ours = contenders[0].median();
    for contender in &contenders {
        let median = contender.median();
        println!("  {:34} {median:>10.0}/s   greenwave ÷ this: {:.1}", contender.name, ours / median);
    }
}

async fn race(run: &Operation, time: Duration) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for task in 0..TASKS as i64 {
        let (run, stop) = (Arc::clone(run), Arc::clone(&stop));
        tasks.spawn(async move {
            let (mut done, mut n) = (0_u64, task);
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                run((n >> 33).rem_euclid(ROWS)).await;
                done += 1;
            }
            done
        });
    }
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let done: u64 = tasks.join_all().await.into_iter().sum();
    done as f64 / start.elapsed().as_secs_f64()
}

fn ours(path: &Path, synchronous: Synchronous) -> Pool {
    let pool = PoolConfig { connection_timeout: Duration::from_secs(30), ..Default::default() };
    Pool::open(path, Config { synchronous, ..pool.into() }).unwrap()
}

async fn theirs(path: &Path, connections: u32, synchronous: SqliteSynchronous) -> sqlx::Pool<Sqlite> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(Duration::from_secs(30));
    PoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(30))
        .connect_with(options)
        .await
        .unwrap()
}

async fn reads(path: &Path) -> Vec<Contender> {
    let pool = ours(path, Synchronous::Normal);
    let fill = |tx: &rusqlite::Transaction<'_>| {
        tx.execute_batch("CREATE TABLE items (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")?;
        let mut insert = tx.prepare("INSERT INTO items VALUES (?1, ?2)")?;
        (0..ROWS).try_for_each(|id| insert.execute((id, TEXT)).map(drop))?;
        Ok::<_, Error>(())
    };
    pool.write(fill).await.unwrap();
    let sqlx = theirs(path, 8, SqliteSynchronous::Normal).await;
    const SQL: &str = "SELECT text FROM items WHERE id = ?1";
    let on_thread = pool.clone();
    let select = |id: i64| {
        move |db: &rusqlite::Connection| {
            db.prepare_cached(SQL)?.query_row([id], |row| row.get::<_, String>(0)).optional()
        }
    };
    vec![
        Contender::new("greenwave read", move |id| {
            let pool = pool.clone();
            async move { assert!(pool.read(select(id)).await.unwrap().is_some()) }
        }),
        Contender::new("greenwave read_on_thread", move |id| {
            let pool = on_thread.clone();
            async move { assert!(pool.read_on_thread(select(id)).await.unwrap().is_some()) }
        }),
        Contender::new("sqlx-sqlite, 8 connections", move |id| {
            let pool = sqlx.clone();
            async move {
                let text: String = sqlx::query_scalar(SQL).bind(id).fetch_one(&pool).await.unwrap();
                assert_eq!(text.len(), TEXT.len());
            }
        }),
    ]
}

async fn writes(directory: &Path, mode: Synchronous, their_mode: SqliteSynchronous) -> Vec<Contender> {
    const CREATE: &str = "CREATE TABLE items (id INTEGER PRIMARY KEY, text TEXT NOT NULL)";
    const SQL: &str = "INSERT INTO items VALUES (?1, ?2)";
    let file = |name: &str| -> PathBuf { directory.join(format!("{name}-{mode:?}.db")) };
    let pool = ours(&file("greenwave"), mode);
    pool.write(|tx| Ok::<_, Error>(tx.execute_batch(CREATE)?)).await.unwrap();
    let once = ours(&file("greenwave-once"), mode);
    once.write(|tx| Ok::<_, Error>(tx.execute_batch(CREATE)?)).await.unwrap();

    let next = Arc::new(AtomicI64::new(0));
    let (next_grouped, next_once) = (Arc::clone(&next), Arc::clone(&next));
    let insert = |id: i64| {
        move |tx: &rusqlite::Transaction<'_>| {
            tx.prepare_cached(SQL)?.execute((id, TEXT))?;
            Ok::<_, Error>(())
        }
    };
    let mut contenders = vec![
        Contender::new("greenwave write", move |_| {
            let (pool, id) = (pool.clone(), next_grouped.fetch_add(1, Ordering::Relaxed));
            async move { pool.write(insert(id)).await.unwrap() }
        }),
        Contender::new("greenwave write_once", move |_| {
            let (pool, id) = (once.clone(), next_once.fetch_add(1, Ordering::Relaxed));
            async move { pool.write_once(insert(id)).await.unwrap() }
        }),
    ];
    for (name, connections) in [("sqlx-sqlite, 8 connections", 8), ("sqlx-sqlite, 1 connection", 1)] {
        let sqlx = theirs(&file(&format!("sqlx-{connections}")), connections, their_mode).await;
        sqlx::query(CREATE).execute(&sqlx).await.unwrap();
        let next = Arc::clone(&next);
        contenders.push(Contender::new(name, move |_| {
            let (pool, id) = (sqlx.clone(), next.fetch_add(1, Ordering::Relaxed));
            async move {
                sqlx::query(SQL).bind(id).bind(TEXT).execute(&pool).await.unwrap();
            }
        }));
    }
    contenders
}
