//! What query statistics cost: `cargo bench -p greenwave-db --bench query_stats`.
//!
//! The same statements with statistics on, each in a scope of its own, and off, in turns; each ratio is the median of
//! the rounds' own. Processor time is this process's, so the client's.

#![allow(clippy::unwrap_used)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use greenwave_db::{
    PoolConfig, postgres,
    query_stats::{Dialect, QueryStatsConfig, Scope, Shape},
    sqlite,
};
use rustix::time::{ClockId, clock_gettime};

const ROWS: u64 = 100_000;
const TASKS: u64 = 256;
const CONNECTIONS: u32 = 20;
const BY_KEY: &str = "SELECT name FROM users WHERE id = $1";
const ROUTE: &str = "/users/{id}";

struct Settings {
    rounds: usize,
    round: Duration,
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let settings = match trial {
        true => Settings { rounds: 1, round: Duration::from_millis(50) },
        false => Settings { rounds: 15, round: Duration::from_secs(1) },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!("| | CPU a query, on ÷ off | on − off | wanted |\n|---|---|---|---|");
        through_postgres(&settings).await;
        through_sqlite(&settings).await;
        println!();
        apart(&settings).await;
    });
}

fn config(enabled: bool) -> PoolConfig {
    let query_stats = QueryStatsConfig { enabled, ..Default::default() };
    PoolConfig { max_connections: CONNECTIONS, query_stats, ..Default::default() }
}

async fn through_postgres(settings: &Settings) {
    let url = greenwave_test_servers::postgres_database();
    let [off, on] = [false, true].map(|on| postgres::Pool::connect_lazy(&url, config(on)).unwrap());
    let setup = "CREATE TABLE users (id BIGINT PRIMARY KEY, name TEXT NOT NULL);
        INSERT INTO users SELECT id, 'user ' || id FROM generate_series(1, 100000) AS id; ANALYZE users";
    sqlx::raw_sql(setup).execute(&off).await.unwrap();

    let mut rounds = Vec::new();
    for _ in 0..settings.rounds {
        rounds.push([crowd(settings, &off, false).await, crowd(settings, &on, true).await]);
    }
    report("`postgres::Pool`, point query", &rounds, "≤ 1.05");
    let seen = on.query_stats().snapshot();
    assert!(seen.statements[0].route.as_deref() == Some(ROUTE), "statistics were on: {seen:?}");
    assert!(off.query_stats().snapshot().statements.is_empty(), "and off");
}

/// 256 tasks; microseconds of processor time a query.
async fn crowd(settings: &Settings, pool: &postgres::Pool, scoped: bool) -> f64 {
    let run = async |duration| {
        let until = Instant::now() + duration;
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let (mut keys, mut queries) = (Keys(task + 1), 0_u64);
                    while Instant::now() < until {
                        let key = keys.next();
                        let query = async {
                            let query = sqlx::query_scalar::<_, String>(BY_KEY).bind(key);
                            assert_eq!(query.fetch_one(&pool).await.unwrap()[5..], key.to_string());
                        };
                        if scoped {
                            Scope::new(ROUTE).run(query).await
                        } else {
                            query.await
                        }
                        queries += 1;
                    }
                    queries
                })
            })
            .collect();
        let mut queries = 0;
        for task in tasks {
            queries += task.await.unwrap();
        }
        queries
    };
    run(settings.round / 5).await;
    let start = cpu();
    let queries = run(settings.round).await;
    (cpu() - start).as_secs_f64() * 1e6 / queries as f64
}

async fn through_sqlite(settings: &Settings) {
    let directory = tempfile::tempdir().unwrap();
    let [off, on] =
        [false, true].map(|on| sqlite::Pool::open(directory.path().join("bench.db"), config(on)).unwrap());
    off.write(|tx| {
        tx.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)", ())?;
        let mut insert = tx.prepare("INSERT INTO users VALUES (?1, 'user ' || ?1)")?;
        (1..=ROWS as i64).try_for_each(|id| insert.execute([id]).map(drop))?;
        Ok::<_, greenwave_db::Error>(())
    })
    .await
    .unwrap();
    let read = async |pool: &sqlite::Pool, key: i64| {
        let name = pool.read(move |db| {
            db.prepare_cached(BY_KEY)?.query_one([key], |row| Ok(row.get_ref(0)?.as_str()?.len()))
        });
        black_box(name.await.unwrap());
    };
    let reads = async |pool: &sqlite::Pool, scoped: bool| {
        let (mut keys, mut queries) = (Keys(7), 0_u64);
        let (start, until) = (cpu(), Instant::now() + settings.round / 2);
        while Instant::now() < until {
            for _ in 0..100 {
                let read = read(pool, keys.next());
                if scoped { Scope::new(ROUTE).run(read).await } else { read.await }
            }
            queries += 100;
        }
        (cpu() - start).as_secs_f64() * 1e6 / queries as f64
    };
    let mut rounds = Vec::new();
    for _ in 0..settings.rounds {
        rounds.push([reads(&off, false).await, reads(&on, true).await]);
    }
    report("`sqlite::Pool::read`, point read, one task", &rounds, "");
}

/// What is not on the common way, in microseconds of processor time.
async fn apart(settings: &Settings) {
    let statement =
        "SELECT id, name, price FROM products WHERE category = 'books' AND id IN (1, 2, 3, 4) LIMIT 20";
    let times = if settings.rounds > 1 { 100_000 } else { 100 };
    let start = cpu();
    for _ in 0..times {
        black_box(Shape::of(black_box(statement), Dialect::Postgres));
    }
    println!("fingerprint of a new text of {} bytes: {:.1} µs", statement.len(), per(start, times));

    let times = if settings.rounds > 1 { 10_000 } else { 100 };
    let start = cpu();
    for _ in 0..times {
        drop(black_box(std::backtrace::Backtrace::force_capture()));
    }
    println!("a backtrace, once for each series of a bare `&Pool`: {:.1} µs", per(start, times));
    let start = cpu();
    black_box(std::backtrace::Backtrace::force_capture().to_string());
    println!("its first reading, aside: {:.0} µs", per(start, 1));
    let start = cpu();
    black_box(std::backtrace::Backtrace::force_capture().to_string());
    println!("a later one: {:.0} µs", per(start, 1));
}

fn per(start: Duration, times: u32) -> f64 {
    (cpu() - start).as_secs_f64() * 1e6 / f64::from(times)
}

fn report(name: &str, rounds: &[[f64; 2]], wanted: &str) {
    let ratio = median(rounds.iter().map(|[off, on]| on / off));
    let difference = median(rounds.iter().map(|[off, on]| on - off));
    println!("| {name} | {ratio:.3} | {difference:.2} µs | {wanted} |");
}

/// xorshift: cheap, and the same keys each time.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % ROWS) as i64 + 1
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
