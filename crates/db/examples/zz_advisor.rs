//! scratch
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]
#[path = "../benches/advisor_tpch/data.rs"]
mod data;
#[path = "../benches/advisor_tpch/queries.rs"]
mod queries;
use greenwave_db::index_advisor::*;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::time::{Duration, Instant};
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let url = &args[2];
    if args[1] == "load" {
        data::load(url, 0.1).await;
        let mut c = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql("VACUUM ANALYZE").execute(&mut c).await.unwrap();
        return;
    }
    let q = queries::queries(0.1);
    let w = Workload {
        statements: q
            .iter()
            .map(|sql| WorkloadStatement { sql: sql.clone(), calls: 1.0, mean_ms: None })
            .collect(),
    };
    let mut c = PgConnection::connect(url).await.unwrap();
    if args[1] == "advise" {
        let config = AdvisorConfig {
            max_bytes: Some(40 << 20),
            verify: args.get(3).is_some(),
            max_statement: Duration::from_secs(20),
            ..Default::default()
        };
        let t = Instant::now();
        let a = postgres::advise(&mut c, &w, &config).await.unwrap();
        println!("{a}\n{:?}", t.elapsed());
        std::fs::write(
            "/tmp/advpg_indexes.sql",
            a.indexes.iter().map(|i| i.create.replace(" CONCURRENTLY", "") + ";\n").collect::<String>(),
        )
        .unwrap();
    }
    if args[1] == "measure" {
        sqlx::raw_sql("SET statement_timeout = 20000").execute(&mut c).await.unwrap();
        let mut all = vec![];
        for q in &q {
            let mut best = 20.0f64;
            for _ in 0..3 {
                let t = Instant::now();
                if sqlx::raw_sql(AssertSqlSafe(q.clone())).fetch_all(&mut c).await.is_err() {
                    break;
                }
                best = best.min(t.elapsed().as_secs_f64());
            }
            all.push(best);
        }
        println!("{}", all.iter().map(|x| format!("{:.4}", x)).collect::<Vec<_>>().join(" "));
    }
}
