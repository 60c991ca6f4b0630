//! `sqlite::Pool` against sqlx-sqlite: point reads and acknowledged writes of 256 tasks, in interleaved rounds.
//!
//! `cargo bench -p greenwave-db --bench sqlite`, with `-- ROUNDS SECONDS` for other than 5 rounds of 1 second each.
//! The file lies in the system's directory for temporary files (`TMPDIR`): that disk's syncs are what FULL measures.

#![allow(clippy::unwrap_used)]

use std::{
    cell::OnceCell,
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
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use rustix::time::{ClockId, clock_gettime};
use sqlx::pool::PoolOptions;
use sqlx_sqlite::{Sqlite, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use tokio::task::JoinSet;

const TASKS: usize = 256;
const ROWS: i64 = 100_000;
/// A row of some 100 bytes.
const TEXT: &str =
    "The quick brown fox jumps over the lazy dog, and the lazy dog lets it, as it is a warm evening.";

const SELECT: &str = "SELECT text FROM items WHERE id = ?1";

thread_local! {
    static BARE: OnceCell<Connection> = const { OnceCell::new() };
}

type Operation = Arc<dyn Fn(i64) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

struct Contender {
    name: &'static str,
    run: Operation,
    measured: Vec<Measured>,
}

#[derive(Clone, Copy)]
struct Measured {
    per_second: f64,
    /// Of this process, on all its threads.
    cpu_us: f64,
}

impl Contender {
    fn new<F>(name: &'static str, run: impl Fn(i64) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { name, run: Arc::new(move |n| Box::pin(run(n))), measured: Vec::new() }
    }

    fn median(&self, of: fn(&Measured) -> f64) -> f64 {
        sorted(self.measured.iter().map(of))[self.measured.len() / 2]
    }

    /// The rounds' own ratios, so that what else the machine does falls on both alike: least, median, most.
    fn ratios(&self, other: &Self, of: fn(&Measured) -> f64) -> [f64; 3] {
        let ratios =
            sorted(self.measured.iter().zip(&other.measured).map(|(own, other)| of(own) / of(other)));
        [ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]]
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
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
            let measured = race(&contender.run, time).await;
            // The first round warms up.
            if round > 0 {
                contender.measured.push(measured);
            }
        }
    }
    println!(
        "\n{title}, {TASKS} tasks, medians of {rounds} rounds, and greenwave ÷ each: median (least to most)"
    );
    let ours = &contenders[0];
    for contender in &contenders {
        let per_second = contender.median(|measured| measured.per_second);
        let cpu_us = contender.median(|measured| measured.cpu_us);
        let [least, speed, most] = ours.ratios(contender, |measured| measured.per_second);
        let [_, cpu, _] = ours.ratios(contender, |measured| measured.cpu_us);
        println!(
            "  {:34} {per_second:>8.0}/s {cpu_us:>6.1} µs CPU   rate ÷ {speed:.1} ({least:.1} to {most:.1}), CPU ÷ {cpu:.2}",
            contender.name
        );
    }
}

async fn race(run: &Operation, time: Duration) -> Measured {
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    let (cpu, start) = (cpu(), Instant::now());
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
    let (cpu, elapsed) = (self::cpu() - cpu, start.elapsed());
    Measured {
        per_second: done as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / done as f64,
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn ours(path: &Path, synchronous: Synchronous) -> Pool {
    let pool = PoolConfig { connection_timeout: Duration::from_secs(30), ..Default::default() };
    Pool::open(path, Config { synchronous, ..pool.into() }).unwrap()
}

async fn theirs(
    path: &Path,
    connections: u32,
    synchronous: SqliteSynchronous,
    cache_size: Option<&'static str>,
) -> sqlx::Pool<Sqlite> {
    let mut options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(Duration::from_secs(30));
    if let Some(cache_size) = cache_size {
        options = options.pragma("cache_size", cache_size);
    }
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
    let sqlx = theirs(path, 8, SqliteSynchronous::Normal, None).await;
    let sqlx_16 = theirs(path, 8, SqliteSynchronous::Normal, Some("-16384")).await;
    let (path, on_thread) = (path.to_path_buf(), pool.clone());
    let select = |id: i64| {
        move |db: &Connection| {
            db.prepare_cached(SELECT)?.query_row([id], |row| row.get::<_, String>(0)).optional()
        }
    };
    let fetch = |pool: sqlx::Pool<Sqlite>, id: i64| async move {
        let text: Option<String> = sqlx::query_scalar(SELECT).bind(id).fetch_optional(&pool).await.unwrap();
        assert!(text.is_some());
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
        Contender::new("sqlx-sqlite, 8 connections", move |id| fetch(sqlx.clone(), id)),
        Contender::new("the same, 16 MB of pages each", move |id| fetch(sqlx_16.clone(), id)),
        Contender::new("rusqlite on the worker, bare", move |id| {
            let path = path.clone();
            async move {
                tokio::task::coop::consume_budget().await; // Else no other task of the thread would ever run.
                assert!(BARE.with(|db| select(id)(db.get_or_init(|| bare(&path)))).unwrap().is_some())
            }
        }),
    ]
}

/// The most there is: no pool, a connection for each thread of the runtime.
fn bare(path: &Path) -> Connection {
    let db =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let db = db.unwrap();
    db.pragma_update(None, "cache_size", -16384).unwrap();
    db
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
        let sqlx = theirs(&file(&format!("sqlx-{connections}")), connections, their_mode, None).await;
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
