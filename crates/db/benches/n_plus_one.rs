//! 100 orders with their customers, a statement each and in a batch, on one real PostgreSQL over loopback:
//! `cargo bench -p greenwave-db --bench n_plus_one`.
//!
//! One task asks for one list after the other: first its orders, then their customers. The ways take turns, round after
//! round, and each ratio is the median of the rounds' own ratios, so that what else the machine does falls on all alike.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use greenwave_db::{BatchConfig, BatchLoader, PoolConfig, postgres::Pool};
use sqlx::{Executor, PgPool, Postgres};

const ROWS: i64 = 100_000;
const ORDERS: i64 = 100;
const CONNECTIONS: u32 = 20;
const WARM_UP: Duration = Duration::from_millis(100);

const NEWEST: &str = "SELECT customer_id FROM orders WHERE id <= $1 ORDER BY id DESC LIMIT $2";

type Loader = BatchLoader<i64, String, sqlx::Error>;
type Names = Vec<String>;

fn main() {
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let (rounds, round) =
        if trial { (1, Duration::from_millis(20)) } else { (11, Duration::from_millis(500)) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(compare(rounds, round));
}

async fn compare(rounds: usize, round: Duration) {
    let url = greenwave_test_servers::postgres_database();
    let ours =
        Pool::connect(&url, PoolConfig { max_connections: CONNECTIONS, ..Default::default() }).await.unwrap();
    let fill = "
        CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL);
        CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL);
        INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 100000) AS n;
        INSERT INTO orders SELECT n, n * 7919 % 100000 + 1 FROM generate_series(1, 100000) AS n;
        ANALYZE customers, orders";
    sqlx::raw_sql(fill).execute(&ours).await.unwrap();
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(CONNECTIONS);
    let theirs: PgPool = options.connect(&url).await.unwrap();
    let loader = loader(ours.clone());

    let mut measured: Vec<[Duration; 4]> = Vec::new();
    for _ in 0..rounds {
        measured.push([
            median_time(round, async |newest| one_by_one(&ours, newest).await).await,
            median_time(round, async |newest| load(&ours, &loader, newest).await).await,
            median_time(round, async |newest| load_many(&ours, &loader, newest).await).await,
            median_time(round, async |newest| one_by_one(&theirs, newest).await).await,
        ]);
    }
    report(&measured);
}

fn report(rounds: &[[Duration; 4]]) {
    let names = [
        "N+1 through postgres::Pool",
        "BatchLoader, `load` for each order",
        "BatchLoader, `load_many`",
        "N+1 through sqlx PgPool, defaults",
    ];
    println!(
        "{ORDERS} orders with their customers, medians of {} rounds\n\n| | ms |\n|---|---|",
        rounds.len()
    );
    for (n, name) in names.iter().enumerate() {
        println!("| {name} | {:.2} |", median(rounds.iter().map(|round| round[n].as_secs_f64() * 1e3)));
    }
    let ratio = |a: usize, b: usize| {
        median(rounds.iter().map(|round| round[a].as_secs_f64() / round[b].as_secs_f64()))
    };
    println!("\n| ratio, ms | measured | wanted |\n|---|---|---|");
    println!("| N+1 ÷ batch, both through postgres::Pool | {:.1} | ≥ 10 |", ratio(0, 1));
    println!("| N+1 ÷ batch with `load_many` | {:.1} | |", ratio(0, 2));
    println!("| N+1 through sqlx PgPool ÷ batch | {:.1} | |", ratio(3, 1));
}

fn loader(pool: Pool) -> Loader {
    BatchLoader::new("customers", BatchConfig::default(), move |ids: Vec<i64>| {
        let pool = pool.clone();
        async move {
            let statement = "SELECT id, name FROM customers WHERE id = ANY($1)";
            let rows: Vec<(i64, String)> = sqlx::query_as(statement).bind(ids).fetch_all(&pool).await?;
            Ok(rows.into_iter().collect::<HashMap<_, _>>())
        }
    })
}

/// The customers of the newest orders up to this one.
async fn orders(pool: impl Executor<'_, Database = Postgres>, newest: i64) -> Vec<i64> {
    sqlx::query_scalar(NEWEST).bind(newest).bind(ORDERS).fetch_all(pool).await.unwrap()
}

async fn one_by_one<'p, P>(pool: &'p P, newest: i64) -> Names
where
    &'p P: Executor<'p, Database = Postgres>,
{
    let mut names = Vec::new();
    for id in orders(pool, newest).await {
        let name = sqlx::query_scalar("SELECT name FROM customers WHERE id = $1").bind(id);
        names.push(name.fetch_one(pool).await.unwrap());
    }
    names
}

async fn load(pool: &Pool, loader: &Loader, newest: i64) -> Names {
    let customers = orders(pool, newest).await;
    let names = try_join_all(customers.into_iter().map(|id| loader.load(id))).await.unwrap();
    names.into_iter().map(Option::unwrap).collect()
}

async fn load_many(pool: &Pool, loader: &Loader, newest: i64) -> Names {
    let names = loader.load_many(orders(pool, newest).await).await.unwrap();
    names.into_iter().map(Option::unwrap).collect()
}

/// The median time of a list.
async fn median_time(round: Duration, list: impl AsyncFn(i64) -> Names) -> Duration {
    let start = Instant::now();
    let mut times = Vec::new();
    let mut newest = ORDERS;
    while start.elapsed() < WARM_UP.min(round) + round || times.is_empty() {
        newest = newest * 48_271 % (ROWS - ORDERS) + ORDERS;
        let asked = Instant::now();
        let names = list(newest).await;
        let took = asked.elapsed();
        check(newest, &names);
        if start.elapsed() > WARM_UP.min(round) {
            times.push(took);
        }
    }
    times.sort();
    times[times.len() / 2]
}

fn check(newest: i64, names: &[String]) {
    let orders = (newest - ORDERS + 1..=newest).rev();
    assert!(orders.map(|id| format!("customer {}", id * 7919 % ROWS + 1)).eq(names.iter().cloned()));
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
