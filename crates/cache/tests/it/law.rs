//! A cache against a model of what it promises, over random histories with a clock that only the test moves.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use greenwave_cache::{Cache, CacheConfig, LoadError, Loaded};
use tokio::time::{Instant, sleep};

use crate::support::{Failed, Random};

const KEYS: u64 = 4;
const STEPS: u64 = 300;
const HISTORIES: u64 = 20;

/// Halves, so that steps of whole seconds never meet an end.
const TTL: Duration = Duration::from_millis(10_500);
const ABSENT_TTL: Duration = Duration::from_millis(3_500);
const ERROR_TTL: Duration = Duration::from_millis(2_500);
const RETRY_AFTER: Duration = Duration::from_millis(4_500);
const STALE_WHILE_REVALIDATE: Duration = Duration::from_millis(5_000);
const STALE_IF_ERROR: Duration = Duration::from_millis(20_000);

fn config() -> CacheConfig {
    CacheConfig {
        ttl: TTL,
        ttl_jitter: 0.0,
        absent_ttl: ABSENT_TTL,
        error_ttl: ERROR_TTL,
        retry_after: RETRY_AFTER,
        stale_while_revalidate: STALE_WHILE_REVALIDATE,
        stale_if_error: STALE_IF_ERROR,
        ..Default::default()
    }
}

/// What the source says when it is asked.
#[derive(Clone, Copy, Debug)]
enum Says {
    Value(u64),
    Nothing,
    Failure,
}

impl Says {
    fn answer(self) -> Result<Loaded<u64>, Failed> {
        match self {
            Says::Value(value) => {
                Ok(Loaded::value(value).tags([if value % 2 == 0 { "even" } else { "odd" }]))
            }
            Says::Nothing => Ok(Loaded::absent()),
            Says::Failure => Err(Failed),
        }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    value: Option<u64>,
    fresh_until: Instant,
}

#[derive(Clone, Copy)]
struct Failing {
    answers_until: Instant,
    lingers_until: Instant,
}

#[derive(Default)]
struct Model {
    entries: HashMap<u64, Entry>,
    failing: HashMap<u64, Failing>,
    loads: u64,
}

impl Model {
    fn store(&mut self, key: u64, value: Option<u64>) {
        let ttl = if value.is_some() { TTL } else { ABSENT_TTL };
        self.entries.insert(key, Entry { value, fresh_until: Instant::now() + ttl });
        self.failing.remove(&key);
    }

    fn forget(&mut self, key: u64) {
        self.entries.remove(&key);
        self.failing.remove(&key);
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.entries.get(&key).filter(|entry| Instant::now() < entry.fresh_until)?.value
    }

    /// What a caller gets, and whether the source was asked.
    fn load(&mut self, key: u64, says: Says) -> (Result<Option<u64>, ()>, bool) {
        let now = Instant::now();
        let entry = self.entries.get(&key).copied();
        let served = |beyond: Duration| entry.filter(|entry| now < entry.fresh_until + beyond);
        if let Some(fresh) = served(Duration::ZERO) {
            return (Ok(fresh.value), false);
        }
        let (stale, fallback) = (served(STALE_WHILE_REVALIDATE), served(STALE_IF_ERROR));
        if let Some(failing) = self.failing.get(&key).filter(|failing| now < failing.lingers_until) {
            match fallback {
                Some(entry) => return (Ok(entry.value), false),
                None if now < failing.answers_until => return (Err(()), false),
                None => {}
            }
        }
        let loaded = match says {
            Says::Failure => {
                let lingers = if fallback.is_some() { RETRY_AFTER } else { ERROR_TTL };
                let failing = Failing { answers_until: now + ERROR_TTL, lingers_until: now + lingers };
                self.failing.insert(key, failing);
                fallback.map(|entry| entry.value).ok_or(())
            }
            Says::Nothing => {
                self.store(key, None);
                Ok(None)
            }
            Says::Value(value) => {
                self.store(key, Some(value));
                Ok(Some(value))
            }
        };
        (stale.map_or(loaded, |entry| Ok(entry.value)), true)
    }
}

struct History {
    cache: Cache<u64, u64>,
    model: Model,
    loads: Arc<AtomicU64>,
    random: Random,
    next: u64,
}

impl History {
    fn says(&mut self) -> Says {
        self.next += 1;
        match self.random.below(10) {
            0..5 => Says::Value(self.next),
            5..6 => Says::Nothing,
            _ => Says::Failure,
        }
    }

    async fn step(&mut self, context: &str) {
        let key = self.random.below(KEYS);
        match self.random.below(20) {
            0..6 => sleep(Duration::from_secs(self.random.below(8))).await,
            6..12 => self.load(key, context).await,
            12..14 => self.load_many(context).await,
            14..16 => {
                let found = self.cache.get(&key).await.map(|value| *value);
                assert_eq!(found, self.model.get(key), "{context}: get {key}");
            }
            16 => {
                self.next += 1;
                self.cache.insert_loaded(key, Says::Value(self.next).answer().unwrap()).await;
                self.model.store(key, Some(self.next));
            }
            17 => {
                self.cache.invalidate(&key).await;
                self.model.forget(key);
            }
            18 => {
                self.cache.invalidate_tag("even").await;
                self.model.entries.retain(|_, entry| entry.value.is_none_or(|value| value % 2 == 1));
            }
            _ if self.random.below(5) == 0 => {
                self.cache.clear().await;
                (0..KEYS).for_each(|key| self.model.forget(key));
            }
            _ => {}
        }
        self.cache.settled().await;
        assert_eq!(self.loads.load(Ordering::SeqCst), self.model.loads, "{context}: loads");
    }

    async fn load(&mut self, key: u64, context: &str) {
        let says = self.says();
        let loads = &self.loads;
        let load = || {
            loads.fetch_add(1, Ordering::SeqCst);
            async move { says.answer() }
        };
        let found = self.cache.get_or_load(&key, load).await.map(|found| found.map(|value| *value));
        let (expected, loaded) = self.model.load(key, says);
        self.model.loads += u64::from(loaded);
        assert_eq!(known(found), expected, "{context}: load {key}, the source says {says:?}");
    }

    async fn load_many(&mut self, context: &str) {
        let says = self.says();
        let keys: Vec<u64> = (0..KEYS).filter(|_| self.random.below(2) == 0).collect();
        let loads = Arc::clone(&self.loads);
        let load = move |keys: Vec<u64>| {
            loads.fetch_add(keys.len() as u64, Ordering::SeqCst);
            async move {
                let _ = says.answer()?;
                Ok(keys.into_iter().map(move |key| (key, says.answer().unwrap_or(Loaded::absent()))))
            }
        };
        let found = self.cache.get_many(&keys, load).await;
        let found = found.map(|found| found.into_iter().map(|(key, value)| (key, *value)).collect());
        let mut expected = Ok(HashMap::new());
        for key in keys {
            let (answer, loaded) = self.model.load(key, says);
            self.model.loads += u64::from(loaded);
            match (answer, &mut expected) {
                (Ok(value), Ok(found)) => found.extend(value.map(|value| (key, value))),
                (Ok(_), Err(())) => {}
                (Err(()), _) => expected = Err(()),
            }
        }
        assert_eq!(known(found), expected, "{context}: load many, the source says {says:?}");
    }
}

/// Errors are all the same.
fn known<T>(answer: Result<T, LoadError<Failed>>) -> Result<T, ()> {
    answer.map_err(|error| assert!(matches!(error, LoadError::Source(_))))
}

#[tokio::test(start_paused = true)]
async fn a_cache_does_what_a_model_of_it_does() {
    let seed = Random::seed();
    println!("SEED={seed}");
    for history in 0..HISTORIES {
        let mut history = History {
            cache: Cache::builder("law").config(config()).build(),
            model: Model::default(),
            loads: Arc::default(),
            random: Random::seeded(seed + history),
            next: 0,
        };
        for step in 0..STEPS {
            history.step(&format!("SEED={seed}, step {step}")).await;
        }
    }
}
