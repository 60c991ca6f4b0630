//! Reads of the same rows from a database, from Redis, and from this process's memory, by `greenwave_cache`.
//!
//! `cache-aside` compares no cache with one: in memory, and with `--redis` also in Redis. `cache-levels` compares a
//! cache that keeps its entries in Redis alone with one that has memory before it.
//!
//! What is read is small and popular: the customers of a page, each by primary key, one after the other. Both arms
//! hold all that is asked for, and nothing changes: it is the price of a hit that is measured, against that of the
//! read which it saves.
//!
//! Before the rounds both arms are asked for the same customers, and a difference between their answers ends the
//! experiment. That also fills the caches.

use std::sync::Arc;
use std::time::Duration;

use greenwave_cache::{Cache, CacheConfig, Cached, Remote};

use super::Source;
use super::redis::Space;
use super::rows::{self, Customer, Rows};
use crate::report::figures;
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

/// How many customers a page shows.
const PAGE: usize = 10;

/// How many customers are popular.
const POPULAR: i64 = 1_000;

/// Longer than any run.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Database against cache.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question = "How many more pages does a service answer when what they show is cached?";
    Experiment::new("cache-aside", "The cache", question, move |setup| aside(setup, source.clone()))
        .unit("pages")
}

/// Redis against memory before Redis. It needs [`Source::redis`].
#[must_use]
pub fn levels(source: Source) -> Experiment {
    let question = "How many more pages does a service answer when it has memory before Redis (--redis)?";
    Experiment::new("cache-levels", "Memory before Redis", question, move |setup| {
        by_level(setup, source.clone())
    })
    .unit("pages")
}

async fn aside(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let remote = match &source.redis {
        Some(url) => Some(Space::new(&setup, url).await?.remote()?),
        None => None,
    };
    let label = if remote.is_some() { "from memory, before Redis" } else { "from memory" };
    let rows = Rows::new(&setup, &source).await?;
    let (before, after) = (Reader::Database(rows.clone()), Reader::cached(&rows, "aside", LONG, remote));
    compare(&setup, &rows, &before, &after).await?;
    let popular = popular(&rows);
    Ok(Arms {
        before: Arm::new("from the database", before.pages(popular)),
        after: Arm::new(label, after.pages(popular)),
    })
}

async fn by_level(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let Some(url) = &source.redis else {
        return Err(
            "this compares Redis with memory before it: give one as --redis redis://HOST:PORT/0".into()
        );
    };
    let space = Space::new(&setup, url).await?;
    let rows = Rows::new(&setup, &source).await?;
    let before = Reader::cached(&rows, "remote", Duration::ZERO, Some(space.remote()?));
    let after = Reader::cached(&rows, "levels", LONG, Some(space.remote()?));
    compare(&setup, &rows, &before, &after).await?;
    let popular = popular(&rows);
    Ok(Arms {
        before: Arm::new("from Redis", before.pages(popular)),
        after: Arm::new("from memory, before Redis", after.pages(popular)),
    })
}

fn popular(rows: &Rows) -> i64 {
    POPULAR.min(rows.customers)
}

/// Asks both for all that is popular.
async fn compare(setup: &Setup, rows: &Rows, before: &Reader, after: &Reader) -> Result<(), BoxError> {
    let popular = popular(rows);
    for id in 1..=popular {
        if before.customer(id).await? != after.customer(id).await? {
            return Err(format!("the two ways to read differ over customer {id}").into());
        }
    }
    setup.fact(
        "page",
        format!("{PAGE} customers out of {} popular ones", figures::count(popular.unsigned_abs())),
    );
    Ok(())
}

/// A way to read customers.
#[derive(Clone)]
enum Reader {
    Database(Rows),
    Cache(Cached<i64, Customer, rows::Error>),
}

impl Reader {
    fn cached(rows: &Rows, name: &'static str, ttl: Duration, remote: Option<Remote>) -> Reader {
        let config = CacheConfig { ttl, remote_ttl: LONG, ..CacheConfig::default() };
        let builder = Cache::builder(name).config(config);
        let builder = match remote {
            Some(remote) => builder.remote(remote),
            None => builder,
        };
        let rows = rows.clone();
        Reader::Cache(builder.build().wrap(move |id| rows.customer(id)))
    }

    async fn customer(&self, id: i64) -> Result<Arc<Customer>, BoxError> {
        let customer = match self {
            Reader::Database(rows) => rows.customer(id).await?.map(Arc::new),
            Reader::Cache(cached) => cached.call(&id).await?,
        };
        customer.ok_or_else(|| format!("customer {id} is missing").into())
    }

    fn pages(self, popular: i64) -> Workload {
        Workload::over(self, move |reader, mut call: Call| async move {
            for _ in 0..PAGE {
                std::hint::black_box(reader.customer(call.pick(1..=popular)).await?);
            }
            Ok(())
        })
    }
}
