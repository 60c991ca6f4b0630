//! Our pool beside its peers, on one real PostgreSQL: `cargo bench -p greenwave-db --bench pool`.
//!
//! 256 tasks read rows by primary key over 20 connections. The contestants take turns, round after round, and each
//! ratio is the median of the rounds' own ratios, so that what else the machine does falls on all of them alike.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use greenwave_db::{BatchConfig, BatchLoader, PoolConfig, postgres::Pool};
use rustix::time::{ClockId, clock_gettime};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::Semaphore;

const ROWS: i64 = 100_000;
const TASKS: u64 = 256;
const CONNECTIONS: u32 = 20;
const WARM_UP: Duration = Duration::from_millis(300);

struct Settings {
    rounds: usize,
    round: Duration,
}

#[derive(Clone, Copy)]
struct Measured {
    per_second: f64,
    /// Of this process: the client's side.
    cpu_us: f64,
}

/// What sqlx's connection allows at best: nothing is checked, timed, reported or made clean.
#[derive(Clone)]
struct Bare(Arc<(Semaphore, Mutex<Vec<PgConnection>>)>);

type Loader = BatchLoader<i64, String, sqlx::Error>;

fn main() {
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let settings = match trial {
        true => Settings { rounds: 1, round: Duration::from_millis(50) },
        false => Settings { rounds: 7, round: Duration::from_secs(2) },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compare(&settings));
}

async fn compare(settings: &Settings) {
    let url = greenwave_test_servers::postgres_database();
    let ours =
        Pool::connect(&url, PoolConfig { max_connections: CONNECTIONS, ..Default::default() }).await.unwrap();
    let table = "CREATE TABLE users (id BIGINT PRIMARY KEY, name TEXT NOT NULL)";
    sqlx::query(table).execute(&ours).await.unwrap();
    let fill = "INSERT INTO users SELECT id, 'user ' || id FROM generate_series(1, $1) AS id";
    sqlx::query(fill).bind(ROWS).execute(&ours).await.unwrap();
    sqlx::query("ANALYZE users").execute(&ours).await.unwrap();

    let options = sqlx::postgres::PgPoolOptions::new().max_connections(CONNECTIONS);
    let theirs = options.connect(&url).await.unwrap();
    let deadpool = deadpool(&url);
    let bare = bare(&url).await;
    let loader = loader(ours.clone());

    let mut rounds: Vec<[Measured; 5]> = Vec::new();
    let mut alone: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..settings.rounds {
        rounds.push([
            crowd(settings, &theirs, through_sqlx).await,
            crowd(settings, &deadpool, through_deadpool).await,
            crowd(settings, &ours, through_ours).await,
            crowd(settings, &loader, through_loader).await,
            crowd(settings, &bare, through_bare).await,
        ]);
        alone
            .push((lone(settings, &ours, through_ours).await, lone(settings, &loader, through_loader).await));
    }
    report(&rounds, &alone);
}

fn report(rounds: &[[Measured; 5]], alone: &[(Duration, Duration)]) {
    let names = [
        "sqlx PgPool, defaults",
        "deadpool-postgres, prepared",
        "postgres::Pool",
        "BatchLoader over it",
        "sqlx's connections, bare",
    ];
    println!("{TASKS} tasks by primary key, {CONNECTIONS} connections, medians of {} rounds\n", rounds.len());
    println!("| | queries/s | client CPU µs a query |\n|---|---|---|");
    for (n, name) in names.iter().enumerate() {
        let per_second = median(rounds.iter().map(|round| round[n].per_second));
        let cpu = median(rounds.iter().map(|round| round[n].cpu_us));
        println!("| {name} | {per_second:.0} | {cpu:.1} |");
    }
    let speed = |a: usize, b: usize| median(rounds.iter().map(|r| r[a].per_second / r[b].per_second));
    let cpu = |a: usize, b: usize| median(rounds.iter().map(|r| r[a].cpu_us / r[b].cpu_us));
    let lone = median(alone.iter().map(|(pool, loader)| loader.as_secs_f64() / pool.as_secs_f64()));
    println!("\n| ratio | measured | wanted |\n|---|---|---|");
    println!("| pool ÷ sqlx PgPool, queries/s | {:.2} | ≥ 2.6 |", speed(2, 0));
    println!("| bare connections ÷ sqlx PgPool, queries/s | {:.2} | the most there is |", speed(4, 0));
    println!("| pool ÷ bare connections, client CPU a query | {:.2} | |", cpu(2, 4));
    println!("| pool ÷ deadpool-postgres, queries/s | {:.2} | ≥ 1.0 |", speed(2, 1));
    println!("| batch ÷ sqlx PgPool, queries/s | {:.1} | ≥ 14 |", speed(3, 0));
    println!("| batch ÷ sqlx PgPool, client CPU a query | {:.3} | ≤ 0.1 |", cpu(3, 0));
    println!("| a lone task: loader ÷ pool, p50 | {lone:.2} | ≤ 1.3 |");
}

fn deadpool(url: &str) -> deadpool_postgres::Pool {
    let config: tokio_postgres::Config = url.parse().unwrap();
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    deadpool_postgres::Pool::builder(manager).max_size(CONNECTIONS as usize).build().unwrap()
}

async fn bare(url: &str) -> Bare {
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(PgConnection::connect(url).await.unwrap());
    }
    Bare(Arc::new((Semaphore::new(CONNECTIONS as usize), Mutex::new(connections))))
}

fn loader(pool: Pool) -> Loader {
    BatchLoader::new("users", BatchConfig::default(), move |ids: Vec<i64>| {
        let pool = pool.clone();
        async move {
            let statement = "SELECT id, name FROM users WHERE id = ANY($1)";
            let rows: Vec<(i64, String)> = sqlx::query_as(statement).bind(ids).fetch_all(&pool).await?;
            Ok(rows.into_iter().collect::<HashMap<_, _>>())
        }
    })
}

const BY_KEY: &str = "SELECT name FROM users WHERE id = $1";

async fn through_sqlx(pool: PgPool, key: i64) {
    let name: String = sqlx::query_scalar(BY_KEY).bind(key).fetch_one(&pool).await.unwrap();
    check(key, &name);
}

async fn through_deadpool(pool: deadpool_postgres::Pool, key: i64) {
    let client = pool.get().await.unwrap();
    let statement = client.prepare_cached(BY_KEY).await.unwrap();
    let name: String = client.query_one(&statement, &[&key]).await.unwrap().get(0);
    check(key, &name);
}

async fn through_ours(pool: Pool, key: i64) {
    let name: String = sqlx::query_scalar(BY_KEY).bind(key).fetch_one(&pool).await.unwrap();
    check(key, &name);
}

async fn through_bare(bare: Bare, key: i64) {
    let (permits, connections) = &*bare.0;
    let _permit = permits.acquire().await.unwrap();
    let mut connection = connections.lock().unwrap().pop().unwrap();
    let name: String = sqlx::query_scalar(BY_KEY).bind(key).fetch_one(&mut connection).await.unwrap();
    connections.lock().unwrap().push(connection);
    check(key, &name);
}

async fn through_loader(loader: Loader, key: i64) {
    check(key, &loader.load(key).await.unwrap().unwrap());
}

fn check(key: i64, name: &str) {
    assert_eq!(name.strip_prefix("user ").unwrap().parse::<i64>().unwrap(), key);
}

/// Many tasks at once.
async fn crowd<T, F>(settings: &Settings, subject: &T, query: fn(T, i64) -> F) -> Measured
where
    T: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    run(WARM_UP.min(settings.round), subject, query).await;
    let (cpu, start) = (cpu(), Instant::now());
    let queries = run(settings.round, subject, query).await;
    let (cpu, elapsed) = (self::cpu() - cpu, start.elapsed());
    Measured {
        per_second: queries as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / queries as f64,
    }
}

async fn run<T, F>(duration: Duration, subject: &T, query: fn(T, i64) -> F) -> u64
where
    T: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let until = Instant::now() + duration;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let subject = subject.clone();
            tokio::spawn(async move {
                let (mut keys, mut queries) = (Keys(task + 1), 0);
                while Instant::now() < until {
                    query(subject.clone(), keys.next()).await;
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
}

/// One task, and nothing else: the median time of a query.
async fn lone<T, F>(settings: &Settings, subject: &T, query: fn(T, i64) -> F) -> Duration
where
    T: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let subject = subject.clone();
    let until = Instant::now() + settings.round / 2;
    tokio::spawn(async move {
        let (mut keys, mut times) = (Keys(1), Vec::new());
        while Instant::now() < until {
            let (key, start) = (keys.next(), Instant::now());
            query(subject.clone(), key).await;
            times.push(start.elapsed());
        }
        times.sort();
        times[times.len() / 2]
    })
    .await
    .unwrap()
}

/// xorshift: cheap, and the same keys each time.
struct Keys(u64);

impl Keys {
    fn next(&mut self) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % ROWS as u64) as i64 + 1
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
