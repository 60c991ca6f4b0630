//! The index advisor on TPC-H: `cargo bench -p greenwave-db --features index-advisor --bench advisor_tpch`.
//!
//! The 22 queries at scale 0.1, executed with and without the indexes that the advisor names under a budget of 40 MB.
//! Each state of the indexes is a database of its own on one server, and they take turns, query by query, so that
//! what else the machine does falls on all of them alike; each ratio is the median of the rounds' own ratios. A query
//! that needs longer than the cap counts as the cap, which flatters the slower state.

#![allow(clippy::unwrap_used)]

mod data;
mod queries;

use std::time::{Duration, Instant};

use greenwave_db::index_advisor::{Advice, AdvisorConfig, Workload, WorkloadStatement, postgres::advise};
use greenwave_test_servers::Server;
use sqlx::{Connection, PgConnection, Row, ValueRef};

const BUDGET: u64 = 40 << 20;
/// The longest that a query may run.
const CAP: Duration = Duration::from_secs(60);
/// A turn of a query is at least this long, with as many executions as fit.
const TURN: Duration = Duration::from_millis(100);
/// Once a query has taken this long in a database, it is not repeated there.
const ENOUGH: Duration = Duration::from_secs(15);

struct Settings {
    scale: f64,
    rounds: usize,
}

/// A state of the indexes, and what the queries took in it.
struct State {
    connection: PgConnection,
    /// By query, the time of each round.
    times: Vec<Vec<Duration>>,
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it works.
    let trial = !std::env::args().any(|argument| argument == "--bench");
    let settings = match trial {
        true => Settings { scale: 0.01, rounds: 1 },
        false => Settings { scale: 0.1, rounds: 9 },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(compare(&settings));
}

async fn compare(settings: &Settings) {
    let server = server().await;
    let queries = queries::queries(settings.scale);
    println!(
        "TPC-H, scale {}, medians of {} rounds' ratios; a query counts as at most {CAP:?}\n",
        settings.scale, settings.rounds
    );
    database(&server, "plain", "template1").await;
    data::load(&url(&server, "plain"), settings.scale).await;
    database(&server, "keys", "plain").await;
    execute(&url(&server, "keys"), data::FOREIGN_KEY_INDEXES).await;

    let bare = against(&server, "plain", &queries, settings).await;
    let keys = against(&server, "keys", &queries, settings).await;
    report(&bare, &keys);
}

async fn server() -> Server {
    let mut server = Server::postgres();
    let settings = [
        "shared_buffers = '1GB'",
        "effective_cache_size = '4GB'",
        "work_mem = '64MB'",
        "maintenance_work_mem = '256MB'",
        "random_page_cost = 1.1",
        "max_wal_size = '8GB'",
        // Steadier times.
        "max_parallel_workers_per_gather = 0",
        "jit = off",
        "autovacuum = off",
    ];
    let mut connection = PgConnection::connect(&server.url()).await.unwrap();
    for setting in settings {
        let set = format!("ALTER SYSTEM SET {setting}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    server.stop();
    server.start();
    server
}

fn url(server: &Server, database: &str) -> String {
    format!("{}/{database}", server.url().rsplit_once('/').unwrap().0)
}

async fn database(server: &Server, name: &str, template: &str) {
    execute(&server.url(), &format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
}

async fn execute(url: &str, statements: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let statements = sqlx::AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(statements).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// What the advice for a database brings.
struct Outcome {
    advice: Advice,
    /// By query: time with the advised indexes ÷ without, and whether the latter was cut off.
    ratios: Vec<(f64, bool)>,
    /// The real size of each advised index.
    bytes: Vec<u64>,
}

async fn against(server: &Server, base: &str, queries: &[String], settings: &Settings) -> Outcome {
    let (base_url, advised) = (url(server, base), format!("{base}_advised"));
    database(server, &advised, base).await;
    execute(&base_url, "VACUUM ANALYZE").await;
    let advice = advice(&base_url, queries).await;
    for index in &advice.indexes {
        execute(&url(server, &advised), &index.create).await;
    }
    execute(&url(server, &advised), "VACUUM ANALYZE").await;
    let mut states = [state(&base_url, queries).await, state(&url(server, &advised), queries).await];
    measure(&mut states, queries, settings).await;

    let [before, mut after] = states;
    let mut bytes = Vec::new();
    for index in &advice.indexes {
        let size = sqlx::query_scalar::<_, i64>("SELECT pg_relation_size($1::regclass)").bind(&index.name);
        bytes.push(size.fetch_one(&mut after.connection).await.unwrap().unsigned_abs());
    }
    let pairs = before.times.iter().zip(&after.times);
    Outcome { advice, ratios: pairs.map(|(before, after)| ratio(before, after)).collect(), bytes }
}

async fn advice(url: &str, queries: &[String]) -> Advice {
    let statement = |sql: &String| WorkloadStatement { sql: sql.clone(), calls: 1.0, mean_ms: None };
    let workload = Workload { statements: queries.iter().map(statement).collect() };
    let config = AdvisorConfig {
        max_bytes: Some(BUDGET),
        verify: true,
        max_statement: Duration::from_secs(5),
        ..Default::default()
    };
    let mut connection = PgConnection::connect(url).await.unwrap();
    let advice = advise(&mut connection, &workload, &config).await.unwrap();
    connection.close().await.unwrap();
    advice
}

async fn state(url: &str, queries: &[String]) -> State {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let set = format!("SET statement_timeout = {}", CAP.as_millis());
    sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&mut connection).await.unwrap();
    State { connection, times: vec![Vec::new(); queries.len()] }
}

/// Executes each query in each state in turn, and checks that the answers are the same.
async fn measure(states: &mut [State; 2], queries: &[String], settings: &Settings) {
    for (n, query) in queries.iter().enumerate() {
        // The first round warms up.
        for round in 0..=settings.rounds {
            let mut answers = Vec::new();
            // Neither state is always the first.
            for turn in [round % 2, (round + 1) % 2] {
                let state = &mut states[turn];
                let times = &mut state.times[n];
                if times.iter().sum::<Duration>() >= ENOUGH {
                    continue;
                }
                if round == 1 {
                    times.clear();
                }
                let (answer, time) = turn_of(&mut state.connection, query).await;
                answers.extend(answer);
                times.push(time);
            }
            let same = answers.windows(2).all(|pair| pair[0] == pair[1]);
            assert!(same, "query {} has different answers", n + 1);
        }
    }
}

/// The answer, and the fastest of the executions that a turn has room for.
async fn turn_of(connection: &mut PgConnection, query: &str) -> (Option<Vec<String>>, Duration) {
    let (turn, mut fastest) = (Instant::now(), CAP);
    loop {
        let start = Instant::now();
        let answer = answer(connection, query).await;
        fastest = fastest.min(start.elapsed());
        if turn.elapsed() >= TURN {
            return (answer, fastest);
        }
    }
}

/// The median of after ÷ before, and whether before was cut off.
fn ratio(before: &[Duration], after: &[Duration]) -> (f64, bool) {
    // A state that is too slow for all rounds stands in each with its last one.
    let at = |times: &[Duration], round: usize| times[round.min(times.len() - 1)].as_secs_f64();
    let rounds = 0..before.len().max(after.len());
    let mut ratios: Vec<f64> = rounds.map(|round| at(after, round) / at(before, round)).collect();
    ratios.sort_by(f64::total_cmp);
    (ratios[ratios.len() / 2], before.iter().all(|time| *time >= CAP))
}

/// The rows as text, sorted; nothing when the query was cut off.
async fn answer(connection: &mut PgConnection, query: &str) -> Option<Vec<String>> {
    let rows = match sqlx::raw_sql(sqlx::AssertSqlSafe(query.to_owned())).fetch_all(connection).await {
        Ok(rows) => rows,
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("57014") => return None,
        Err(error) => panic!("{error}: {query}"),
    };
    let text = |row: &sqlx::postgres::PgRow| {
        let values = (0..row.len()).map(|n| row.try_get_raw(n).unwrap());
        let texts = values.map(|value| if value.is_null() { "" } else { value.as_str().unwrap() }.to_owned());
        texts.collect::<Vec<_>>().join("|")
    };
    let mut rows: Vec<String> = rows.iter().map(text).collect();
    rows.sort();
    Some(rows)
}

fn report(bare: &Outcome, keys: &Outcome) {
    println!("Time with the advised indexes ÷ without, where without is:\n");
    println!("| query | primary keys alone | and an index on every foreign key |\n|---|---|---|");
    let shown =
        |(ratio, cut): (f64, bool)| format!("{ratio:.3}{}", if cut { " (cut off without)" } else { "" });
    for (n, (bare, keys)) in bare.ratios.iter().zip(&keys.ratios).enumerate() {
        println!("| {} | {} | {} |", n + 1, shown(*bare), shown(*keys));
    }
    let both = |of: fn(&Outcome) -> f64| (of(bare), of(keys));
    let (mean, keys_mean) = both(|outcome| {
        let logarithms = outcome.ratios.iter().map(|(ratio, _)| ratio.ln());
        (logarithms.sum::<f64>() / outcome.ratios.len() as f64).exp()
    });
    let (worst, keys_worst) =
        both(|outcome| outcome.ratios.iter().map(|(ratio, _)| *ratio).fold(0.0, f64::max));
    let (size, keys_size) = both(|outcome| outcome.bytes.iter().sum::<u64>() as f64 / f64::from(1 << 20));
    println!("| geometric mean (wanted ≤ 0.50, –) | {mean:.3} | {keys_mean:.3} |");
    println!("| worst (wanted ≤ 1.2, ≤ 1.2) | {worst:.3} | {keys_worst:.3} |");
    println!("| size of the indexes, MB (wanted ≤ 40, ≤ 40) | {size:.1} | {keys_size:.1} |");
    for (base, outcome) in [("primary keys alone", bare), ("an index on every foreign key", keys)] {
        println!("\nAdvised beside {base}:\n");
        for (index, bytes) in outcome.advice.indexes.iter().zip(&outcome.bytes) {
            println!("- {:.1} MB: `{}`", *bytes as f64 / f64::from(1 << 20), index.create);
        }
        for skipped in &outcome.advice.skipped {
            println!(
                "- not judged: {} ({})",
                skipped.sql.split_whitespace().collect::<Vec<_>>().join(" "),
                skipped.why
            );
        }
    }
}
