//! The stampede: what is asked for by 10,000 callers has just expired.
//!
//! Before, cache-aside as it is written by hand: look, read the database, store. After, `greenwave_cache`, where one
//! reads and the others wait for it. Each operation is one stampede on a cold key, and its latency is the time to the
//! last answer. The callers are shared among the tasks: with `--concurrency 1` all 10,000 want one key.
//!
//! With `--redis` both arms keep values in Redis too, and the callers come to three caches in turn, each with a
//! connection of its own, as three processes have them. They live in one process, so that the frame sees all of the
//! CPU time. What one process cannot show is a process that dies.
//!
//! Before the rounds each arm bears a stampede, and a difference between their answers ends the experiment. How many
//! loads a stampede causes is counted over all rounds; one that a round's end cuts off counts too.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use greenwave_cache::{Cache, Cached};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use super::Source;
use super::redis::Space;
use super::rows::{self, Rows, SPAN, Turnover};
use crate::report::figures;
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

/// How many callers there are at a time; in a small data set no more than there are orders.
const CALLERS: usize = 10_000;

/// How many processes share a Redis.
const PROCESSES: usize = 3;

/// How long hand-written code keeps a value in Redis, in seconds.
const KEPT: u64 = 600;

/// The experiment on these orders.
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question =
        "How many more cold keys that thousands want does a service bear when each is loaded once?";
    Experiment::new("stampede", "One load per key", question, move |setup| set_up(setup, source.clone()))
        .unit("stampedes")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    let space = match &source.redis {
        Some(url) => Some(Space::new(&setup, url).await?),
        None => None,
    };
    let rows = Rows::new(&setup, &source).await?;
    let processes = if space.is_some() { PROCESSES } else { 1 };
    let most = usize::try_from(rows.orders).map_or(CALLERS, |orders| CALLERS.min(orders));
    let callers = (most / setup.concurrency()).max(1);
    let (before, after) = (Orders::new(rows.clone()), Orders::new(rows));
    let (mut by_hand, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..processes {
        by_hand.push(Process::by_hand(&before, space.as_ref()).await?);
        ours.push(Process::ours(&after, space.as_ref())?);
    }
    let (by_hand, ours): (Fleet, Fleet) = (by_hand.into(), ours.into());
    let mut keys = Call::new(setup.seed(), 0);
    // One caller for each process first, for what that does once, like connecting.
    for (number, callers) in [processes, callers].into_iter().enumerate() {
        let key = keys.pick(0..u64::MAX);
        if stampede(&by_hand, key, callers).await? != stampede(&ours, key, callers).await? {
            return Err(format!("the two caches answer differently, in stampede {number}").into());
        }
    }
    setup.fact("callers of a cold key", figures::count(callers as u64));
    if processes > 1 {
        setup.fact("processes", format!("{processes} caches over one Redis, in this process"));
    }
    setup.fact("load", format!("the turnover of {} orders", figures::count(SPAN.unsigned_abs())));
    count_at_end(&setup, before.clone(), after.clone());
    Ok(Arms {
        before: arm("cache-aside by hand", by_hand, before, callers),
        after: arm("one load per key", ours, after, callers),
    })
}

fn arm(label: &str, fleet: Fleet, orders: Orders, callers: usize) -> Arm {
    let work = Workload::over((fleet, orders), move |(fleet, orders), mut call| async move {
        orders.stampedes.fetch_add(1, Ordering::Relaxed);
        stampede(&fleet, call.pick(0..u64::MAX), callers).await?;
        Ok(())
    });
    Arm::new(label, work)
}

/// Reports how many loads a stampede caused, over all rounds.
fn count_at_end(setup: &Setup, before: Orders, after: Orders) {
    for orders in [&before, &after] {
        orders.loads.store(0, Ordering::Relaxed);
    }
    let report = setup.clone();
    setup.on_end("count the loads", async move {
        let fact = format!("before {}, after {}", before.loads_of_one(), after.loads_of_one());
        report.fact("loads in one stampede, on average", fact);
        Ok(())
    });
}

type Fleet = Arc<[Process]>;

/// So many callers at once, who come to the processes in turn; returns what all of them were answered.
async fn stampede(fleet: &Fleet, key: u64, callers: usize) -> Result<Turnover, BoxError> {
    let mut asking = JoinSet::new();
    for caller in 0..callers {
        let fleet = Arc::clone(fleet);
        asking.spawn(async move { fleet[caller % fleet.len()].get(key).await });
    }
    let mut answer = None;
    while let Some(answered) = asking.join_next().await {
        let answered = answered??;
        if answer.get_or_insert_with(|| answered.clone()) != &answered {
            return Err("two callers of one key got different answers".into());
        }
    }
    answer.map(|answer| (*answer).clone()).ok_or_else(|| "nobody called".into())
}

/// The source, and how often it is asked in how many stampedes.
#[derive(Clone)]
struct Orders {
    rows: Rows,
    loads: Arc<AtomicU64>,
    stampedes: Arc<AtomicU64>,
}

impl Orders {
    fn new(rows: Rows) -> Orders {
        Orders { rows, loads: Arc::default(), stampedes: Arc::default() }
    }

    fn loads_of_one(&self) -> String {
        let stampedes = self.stampedes.load(Ordering::Relaxed).max(1);
        figures::figure(self.loads.load(Ordering::Relaxed) as f64 / stampedes as f64)
    }

    fn turnover(
        &self,
        key: u64,
    ) -> impl Future<Output = Result<Option<Turnover>, rows::Error>> + Send + use<> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let first = key % (self.rows.orders - SPAN).max(1).unsigned_abs();
        self.rows.turnover(first.cast_signed())
    }
}

/// What a process answers callers from.
enum Process {
    ByHand(ByHand),
    Ours(Cached<u64, Turnover, rows::Error>),
}

impl Process {
    async fn by_hand(orders: &Orders, space: Option<&Space>) -> Result<Process, BoxError> {
        let redis = match space {
            Some(space) => Some((space.connect().await?, format!("{}:by_hand", space.namespace))),
            None => None,
        };
        Ok(Process::ByHand(ByHand { memory: Mutex::default(), redis, orders: orders.clone() }))
    }

    fn ours(orders: &Orders, space: Option<&Space>) -> Result<Process, BoxError> {
        let builder = Cache::builder("stampede");
        let builder = match space {
            Some(space) => builder.remote(space.remote()?),
            None => builder,
        };
        let orders = orders.clone();
        Ok(Process::Ours(builder.build().wrap(move |key| orders.turnover(key))))
    }

    async fn get(&self, key: u64) -> Result<Arc<Turnover>, BoxError> {
        match self {
            Process::ByHand(cache) => cache.get(key).await,
            Process::Ours(cached) => {
                cached.call(&key).await?.ok_or_else(|| "there is no such turnover".into())
            }
        }
    }
}

/// Cache-aside, as it is written by hand.
struct ByHand {
    memory: Mutex<HashMap<u64, Arc<Turnover>>>,
    redis: Option<(MultiplexedConnection, String)>,
    orders: Orders,
}

impl ByHand {
    async fn get(&self, key: u64) -> Result<Arc<Turnover>, BoxError> {
        let known = self.memory().get(&key).map(Arc::clone);
        if let Some(turnover) = known {
            return Ok(turnover);
        }
        let turnover = Arc::new(self.look_further(key).await?);
        self.memory().insert(key, Arc::clone(&turnover));
        Ok(turnover)
    }

    async fn look_further(&self, key: u64) -> Result<Turnover, BoxError> {
        let Some((redis, prefix)) = &self.redis else { return self.load(key).await };
        let (mut redis, name) = (redis.clone(), format!("{prefix}:{key}"));
        if let Some(json) = redis.get::<_, Option<Vec<u8>>>(&name).await? {
            return Ok(serde_json::from_slice(&json)?);
        }
        let turnover = self.load(key).await?;
        redis.set_ex::<_, _, ()>(&name, serde_json::to_vec(&turnover)?, KEPT).await?;
        Ok(turnover)
    }

    async fn load(&self, key: u64) -> Result<Turnover, BoxError> {
        Ok(self.orders.turnover(key).await?.ok_or("there is no such turnover")?)
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<u64, Arc<Turnover>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
