//! Would a cache help, which size, and which TTL? A function without one is observed, and answers. Needs no server:
//! `cargo run --release --example would_be`.
//!
//! Time is tokio's, paused, so that a simulated hour passes at once.

use std::{io, time::Duration};

use greenwave_cache::{Cache, CacheConfig, observe};
use tokio::time::{Instant, sleep};

const PRODUCTS: f64 = 20_000.0;

async fn query(product: u64) -> io::Result<String> {
    sleep(Duration::from_millis(8)).await;
    Ok(format!("product {product}"))
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> io::Result<()> {
    let hour = Duration::from_secs(60 * 60);

    println!("A function that has no cache yet:\n");
    let products = observe("product", query);
    let started = Instant::now();
    while started.elapsed() < hour {
        products.call(popular()).await?;
        sleep(Duration::from_millis(30)).await;
    }
    println!("{}\n", products.would_be());

    println!("One that has, too small and for too short a time:\n");
    let config = CacheConfig { max_entries: 1_000, ttl: Duration::from_secs(60), ..Default::default() };
    let cache = Cache::<u64, String>::builder("product").config(config).build();
    let started = Instant::now();
    while started.elapsed() < hour {
        let product = popular();
        let load = || async move { query(product).await.map(Some) };
        cache.get_or_load(&product, load).await.map_err(io::Error::other)?;
        sleep(Duration::from_millis(30)).await;
    }
    println!("{}", cache.would_be());
    println!("As it is, it answers {:.1} % from memory.", cache.stats().hit_ratio() * 100.0);
    Ok(())
}

/// A few products are asked for often, most of them hardly ever.
fn popular() -> u64 {
    PRODUCTS.powf(rand::random::<f64>()) as u64
}
