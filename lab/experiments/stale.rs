//! Stale before slow: a source that becomes slow, and a cache that may show what has just expired.
//!
//! For a quarter of a second the database is as fast as it is, and for the next one each read of it takes 100 ms more, as
//! when a backup or a migration runs. Before, what has expired is waited for. After, it is shown for another while
//! and loaded anew in the background (`stale_while_revalidate`); what expired longer ago than that is shown when the
//! load takes longer than 10 ms (`soft_timeout`, `stale_if_error`).
//!
//! Both arms read the same rows through caches that differ in nothing else. What is asked for often is then at most as old
//! as its TTL and one load.

use std::future::Future;
use std::time::Duration;

use greenwave_cache::{Cache, CacheConfig, Cached};
use tokio::time::{Instant, sleep};

use super::Source;
use super::rows::{self, Customer, Rows};
use crate::report::figures;
use crate::{Arm, Arms, BoxError, Experiment, Setup, Workload};

/// How many customers a page shows.
const PAGE: usize = 10;

/// How many customers are popular.
const POPULAR: i64 = 1_000;

/// How long the source is well, and how long it is slow.
const SPELL: Duration = Duration::from_millis(250);

/// By how much it is slow.
const SLOWNESS: Duration = Duration::from_millis(100);

/// The experiment on these customers.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "How many more pages does a service answer when it shows what has just expired while the source is slow?";
    Experiment::new("stale", "Stale before slow", question, move |setup| set_up(setup, source.clone()))
        .unit("pages")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let rows = Rows::new(&setup, &source).await?;
    let popular = POPULAR.min(rows.customers);
    setup.fact(
        "page",
        format!("{PAGE} customers out of {} popular ones", figures::count(popular.unsigned_abs())),
    );
    setup.fact("source", format!("{SLOWNESS:?} slower for {SPELL:?} of every {:?}", SPELL * 2));
    let fresh = CacheConfig { ttl: Duration::from_millis(200), ..CacheConfig::default() };
    let stale = CacheConfig {
        stale_while_revalidate: Duration::from_secs(1),
        stale_if_error: Duration::from_secs(60),
        soft_timeout: Duration::from_millis(10),
        ..fresh.clone()
    };
    setup.fact("cache, both arms", format!("a TTL of {:?}", fresh.ttl));
    setup.fact(
        "cache, after",
        format!(
            "stale_while_revalidate {:?}, soft_timeout {:?}, stale_if_error {:?}",
            stale.stale_while_revalidate, stale.soft_timeout, stale.stale_if_error
        ),
    );
    let moody = Moody { rows, born: Instant::now() };
    let arm = |label: &str, name, config| {
        let cached = moody.clone().cached(name, config);
        Arm::new(label, pages(cached, popular))
    };
    Ok(Arms {
        before: arm("what has expired is waited for", "fresh", fresh),
        after: arm("what has just expired is shown", "stale", stale),
    })
}

fn pages(cached: Cached<i64, Customer, rows::Error>, popular: i64) -> Workload {
    Workload::over(cached, move |cached, mut call| async move {
        for _ in 0..PAGE {
            let customer = cached.call(&call.pick(1..=popular)).await?;
            std::hint::black_box(customer.ok_or("a customer is missing")?);
        }
        Ok(())
    })
}

/// A database that is slow now and then.
#[derive(Clone)]
struct Moody {
    rows: Rows,
    born: Instant,
}

impl Moody {
    fn cached(self, name: &'static str, config: CacheConfig) -> Cached<i64, Customer, rows::Error> {
        Cache::builder(name).config(config).build().wrap(move |id| self.customer(id))
    }

    fn customer(
        &self,
        id: i64,
    ) -> impl Future<Output = Result<Option<Customer>, rows::Error>> + Send + use<> {
        let slow = (self.born.elapsed().as_millis() / SPELL.as_millis()) % 2 == 1;
        let read = self.rows.customer(id);
        async move {
            if slow {
                sleep(SLOWNESS).await;
            }
            read.await
        }
    }
}
