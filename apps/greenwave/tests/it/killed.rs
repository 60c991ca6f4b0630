//! Processes are killed under load: what was acknowledged is there, and its effects are there once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    client::{client, get, post},
    program::{Up, run},
    truth::Truth,
};

const CLIENTS: u64 = 12;
const EFFECTS_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_sqlite_every_acknowledged_order_has_its_effects_once() {
    let folder = TempDir::new().unwrap();
    let truth = Truth::Sqlite(folder.path().join("greenwave-data/shop.db"));
    killed_under_load(&folder, &[], truth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_on_postgres_and_redis_every_acknowledged_order_has_its_effects_once() {
    let folder = TempDir::new().unwrap();
    let (database, redis) =
        (greenwave_test_servers::postgres_database(), greenwave_test_servers::redis_url());
    let seeded = run(&[
        "shop",
        "seed",
        "--database-url",
        &database,
        "--users",
        "1000",
        "--products",
        "200",
        "--orders",
        "2000",
    ]);
    assert!(seeded.status.success(), "{}", String::from_utf8_lossy(&seeded.stderr));
    let environment = [("DATABASE_URL", database.as_str()), ("REDIS_URL", redis.as_str())];
    killed_under_load(&folder, &environment, Truth::Postgres(database.clone())).await;
}

/// Kills an instance, the worker, and at last everything at once; then starts again and counts.
async fn killed_under_load(folder: &TempDir, environment: &[(&str, &str)], truth: Truth) {
    let up = Up::start(folder, environment, &["--instances", "3"]);
    let (stock, last) = (truth.stock().await, *truth.orders().await.keys().last().unwrap());
    let load = Load::start(&up.service);
    for victim in ["shop-1", "worker-0", "shop-0"] {
        load.more().await;
        up.kill_instance(victim).await;
    }
    load.more().await;
    assert_eq!(load.failed_reads.load(Ordering::Relaxed), 0, "a read failed though two instances were well");
    up.kill().await;
    let acknowledged = load.stop().await;

    let up = Up::start(folder, environment, &["--instances", "2"]);
    let orders = truth.orders().await;
    let lost: Vec<_> = acknowledged.iter().filter(|id| !orders.contains_key(id)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged orders are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
    effects_are_there_once(&truth, stock, last).await;
    up.signal(Signal::TERM);
    assert!(up.wait(), "it did not stop in good order");
}

/// Every order after `last`, acknowledged or not, has one notification, and stock fell by what it holds.
async fn effects_are_there_once(truth: &Truth, mut stock: BTreeMap<i64, i64>, last: i64) {
    for (product, quantity) in truth.sold_after(last).await {
        *stock.get_mut(&product).unwrap() -= quantity;
    }
    let orders: BTreeMap<_, _> =
        truth.orders().await.into_keys().filter(|id| *id > last).map(|id| (id, 1)).collect();
    let deadline = Instant::now() + EFFECTS_WITHIN;
    while (truth.notifications().await, truth.stock().await) != (orders.clone(), stock.clone()) {
        if Instant::now() > deadline {
            assert_eq!(truth.notifications().await, orders, "notifications, by order");
            assert_eq!(truth.stock().await, stock, "stock, by product");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // And not a second time.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((truth.notifications().await, truth.stock().await), (orders, stock));
}

/// Clients that order and read until they are stopped.
struct Load {
    clients: JoinSet<()>,
    stop: CancellationToken,
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
    failed_reads: Arc<AtomicU64>,
}

impl Load {
    fn start(service: &str) -> Load {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut load = Load {
            clients: JoinSet::new(),
            stop: CancellationToken::new(),
            acknowledged: Arc::default(),
            failed_reads: Arc::default(),
        };
        for number in 0..CLIENTS {
            let random = SmallRng::seed_from_u64(seed + number);
            let buys = buys(service.into(), random, load.stop.clone(), load.acknowledged.clone());
            load.clients.spawn(buys);
        }
        load.clients.spawn(reads(service.into(), load.stop.clone(), load.failed_reads.clone()));
        load
    }

    /// Waits until a hundred further orders are acknowledged.
    async fn more(&self) {
        let count = || self.acknowledged.lock().unwrap().len();
        let enough = count() + 100;
        let deadline = Instant::now() + Duration::from_secs(60);
        while count() < enough {
            assert!(Instant::now() < deadline, "the service stands still: {} orders", count());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(mut self) -> BTreeSet<i64> {
        self.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut self.acknowledged.lock().unwrap())
    }
}

async fn buys(
    service: String,
    mut random: SmallRng,
    stop: CancellationToken,
    acknowledged: Arc<Mutex<BTreeSet<i64>>>,
) {
    let client = client();
    while !stop.is_cancelled() {
        // Few products, so that the handlers meet each other at their rows.
        let first = random.random_range(1..=20);
        let items: Vec<_> = (0..random.random_range(1..=3))
            .map(|next| json!({"product_id": first + next, "quantity": random.random_range(1..=5)}))
            .collect();
        let order = json!({"customer_id": random.random_range(1..=1000), "items": items});
        // A request that fails was not acknowledged; whether it was committed, the database tells.
        match post(&client, &format!("{service}/orders"), &order).await {
            Ok((status, body)) if status == 201 => {
                if let Ok(order) = serde_json::from_str::<Value>(&body) {
                    acknowledged.lock().unwrap().insert(order["id"].as_i64().unwrap());
                }
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn reads(service: String, stop: CancellationToken, failed: Arc<AtomicU64>) {
    let client = client();
    for id in (1..=200).cycle() {
        if stop.is_cancelled() {
            return;
        }
        let answer = get(&client, &format!("{service}/products/{id}")).await;
        if !answer.is_ok_and(|(status, _)| status == 200) {
            failed.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
