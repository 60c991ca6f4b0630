//! What a hit in Redis costs, memory left out: `cargo bench -p greenwave-cache --bench remote`.
//!
//! Beside it stands the least that a program can do: redis-rs' multiplexed connection, a GET, and the same codec. Tasks
//! ask one key after the other over one connection. The two take turns, round after round; each ratio is the median of
//! the rounds' own, with the quartiles. Time is this process's processor time, and that of Redis as it tells it.

#![allow(clippy::unwrap_used)]

mod common;

use std::{future::Future, sync::Arc, time::Duration};

use common::{is_trial, spread};
use greenwave_cache::{Cache, CacheConfig, Remote, RemoteConfig};
use greenwave_test_servers::Server;
use redis::aio::MultiplexedConnection;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const KEYS: u64 = 10_000;

/// Some 200 bytes, as values go.
#[derive(Serialize, Deserialize)]
struct Product {
    id: u64,
    name: String,
    description: Option<String>,
    price_cents: u64,
    currency: String,
    in_stock: bool,
    tags: Vec<String>,
}

impl Product {
    fn new(id: u64) -> Product {
        Product {
            id,
            name: format!("Teapot no. {id}"),
            description: Some("Short and stout; this is its handle, that is its spout".into()),
            price_cents: 1_990,
            currency: "EUR".into(),
            in_stock: true,
            tags: vec!["kitchen".into(), "tea".into()],
        }
    }
}

/// Seconds a hit.
#[derive(Clone, Copy)]
struct Cost {
    client: f64,
    server: f64,
}

fn main() {
    let (rounds, hits) = if is_trial() { (1, 200) } else { (31, 20_000) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(compare(rounds, hits));
}

async fn compare(rounds: usize, hits: u64) {
    let server = Server::redis();
    let bare = connection(&server.url()).await;
    let mut control = connection(&server.url()).await;
    // Patient, so that a busy machine is no outage.
    let patient = RemoteConfig { timeout: Duration::from_secs(10), ..Default::default() };
    let remote = Remote::connect_with(&server.url(), patient).unwrap();
    let config = CacheConfig { ttl: Duration::ZERO, ..Default::default() };
    let ours: Cache<u64, Product> = Cache::builder("ours").config(config).remote(remote).build();
    for id in 0..KEYS {
        let bytes = rmp_serde::to_vec_named(&Product::new(id)).unwrap();
        redis::cmd("SET").arg(format!("bare:{id}")).arg(bytes).exec_async(&mut control).await.unwrap();
        ours.insert(id, Product::new(id)).await;
    }

    println!("| | measured | wanted |\n|---|---|---|");
    for tasks in [64, 1] {
        let hits = hits / (64 / tasks).min(4);
        let mut measured = Vec::new();
        for _ in 0..rounds {
            let cache = ours.clone();
            let through_ours = move |id| {
                let cache = cache.clone();
                async move { cache.get(&id).await.unwrap() }
            };
            let ours = crowd(&mut control, tasks, hits, through_ours).await;
            let connection = bare.clone();
            let through_bare = move |id: u64| {
                let mut connection = connection.clone();
                async move {
                    let key = format!("bare:{id}");
                    let found: Option<Vec<u8>> =
                        redis::cmd("GET").arg(key).query_async(&mut connection).await.unwrap();
                    Arc::new(rmp_serde::from_slice::<Product>(&found.unwrap()).unwrap())
                }
            };
            let bare = crowd(&mut control, tasks, hits, through_bare).await;
            measured.push((ours, bare));
        }
        let ratio = |of: fn(&Cost) -> f64| spread(measured.iter().map(|(ours, bare)| of(ours) / of(bare)));
        let name = if tasks == 1 { "1 task".to_owned() } else { format!("{tasks} tasks") };
        println!("| `get`, a hit in Redis ÷ bare redis-rs, {name} | {} | ≤ 1.3 |", ratio(|cost| cost.client));
        println!("| the same, Redis' part, {name} | {} | |", ratio(|cost| cost.server));
    }
}

async fn connection(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

async fn crowd<F>(
    control: &mut MultiplexedConnection,
    tasks: u64,
    hits: u64,
    get: impl Fn(u64) -> F + Clone + Send + 'static,
) -> Cost
where
    F: Future<Output = Arc<Product>> + Send,
{
    let (server, client) = (server_cpu(control).await, process_cpu());
    let asking: Vec<_> = (0..tasks)
        .map(|task| {
            let get = get.clone();
            tokio::spawn(async move {
                for hit in 0..hits / tasks {
                    let id = (task * 7_919 + hit * 104_729) % KEYS;
                    assert_eq!(get(id).await.id, id);
                }
            })
        })
        .collect();
    for task in asking {
        task.await.unwrap();
    }
    let client = process_cpu() - client;
    let server = server_cpu(control).await - server;
    Cost { client: client.as_secs_f64() / hits as f64, server: server / hits as f64 }
}

fn process_cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Of the thread that serves, in seconds.
async fn server_cpu(control: &mut MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(control).await.unwrap();
    let field = |name: &str| -> f64 {
        info.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    };
    field("used_cpu_user_main_thread:") + field("used_cpu_sys_main_thread:")
}
