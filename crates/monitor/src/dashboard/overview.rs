//! What the page shows, as it travels: one [`Overview`] a second.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of a service over the last seconds. Rates are per second, times in seconds, shares from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// How many seconds the rates and quantiles below are taken over.
    pub window_seconds: f64,
    /// Whether the source has failed to answer in time, so that all of this is old.
    pub stale: bool,
    /// All requests together.
    pub traffic: Traffic,
    /// The last second alone.
    pub point: Point,
    /// The service's processes.
    pub instances: Vec<InstanceRow>,
    /// Routes, those with most requests first.
    pub routes: Vec<RouteRow>,
    /// How many routes are left out of `routes`.
    pub routes_omitted: usize,
    /// The balancer, if there is one.
    pub edge: Option<EdgeRow>,
    /// Databases, by system.
    pub databases: Vec<DatabaseRow>,
    /// Batch loaders.
    pub batches: Vec<BatchRow>,
    /// Caches.
    pub caches: Vec<CacheRow>,
    /// Queues of jobs.
    pub queues: Vec<QueueRow>,
    /// Kinds of jobs.
    pub jobs: Vec<JobRow>,
    /// Kinds of events.
    pub events: Vec<EventRow>,
    /// Subscriptions to events.
    pub subscriptions: Vec<SubscriptionRow>,
}

/// Two quantiles of how long something took; none where nothing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Half took at most this many seconds.
    pub p50: Option<f64>,
    /// 99 % took at most this many seconds.
    pub p99: Option<f64>,
}

/// Requests, their times and their failures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// The metric that this is taken from: the service's own, or the balancer's for a service that has none.
    pub metric: String,
    /// Requests per second.
    pub rate: f64,
    /// How long they took.
    #[serde(flatten)]
    pub latency: Latency,
    /// Share of responses with a status of 500 or more.
    pub errors: f64,
    /// Requests that are being answered.
    pub active: f64,
}

/// One second of the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Its end, in milliseconds since 1970.
    pub time_ms: u64,
    /// Requests per second.
    pub rate: f64,
    /// How long they took.
    #[serde(flatten)]
    pub latency: Latency,
    /// Share of responses with a status of 500 or more.
    pub errors: f64,
}

/// One process of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Its name.
    pub name: String,
    /// Its process id, while it runs.
    pub pid: Option<u32>,
    /// Where it listens, if it does.
    pub address: Option<String>,
    /// `healthy`, `starting`, `stopped`, …: any word; the page colours those that it knows.
    pub state: String,
    /// How often it was started again.
    pub restarts: u64,
    /// The memory it holds.
    pub memory_bytes: Option<u64>,
}

/// One route of the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouteRow {
    /// The method.
    pub method: String,
    /// The route's pattern.
    pub route: String,
    /// Requests per second.
    pub rate: f64,
    /// How long they took.
    #[serde(flatten)]
    pub latency: Latency,
    /// Share of responses with a status of 500 or more.
    pub errors: f64,
    /// Statements that a request ran, on average, where they are counted.
    pub queries: Option<f64>,
    /// Share of the requests' time that was spent in statements, where they are counted.
    pub db_share: Option<f64>,
}

/// The balancer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeRow {
    /// Requests per second.
    pub rate: f64,
    /// How long they took, as the client saw it.
    #[serde(flatten)]
    pub latency: Latency,
    /// Share of responses with a status of 500 or more.
    pub errors: f64,
    /// Requests that are being answered.
    pub active: f64,
    /// Requests that were tried again with another instance, in total.
    pub retries: u64,
    /// Instances that take requests.
    pub healthy: f64,
}

/// A database as the pools see it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DatabaseRow {
    /// `postgresql`, `sqlite`, …; empty where the metrics do not say.
    pub system: String,
    /// Statements per second.
    pub rate: f64,
    /// How long statements took.
    #[serde(flatten)]
    pub latency: Latency,
    /// How long 99 % of callers at most waited for a connection.
    pub wait_p99: Option<f64>,
    /// How many callers got no connection in time, in total.
    pub timeouts: u64,
}

/// A batch loader.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BatchRow {
    /// Its name.
    pub loader: String,
    /// Batches per second.
    pub rate: f64,
    /// Keys in a batch, on average.
    pub size: Option<f64>,
}

/// A cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheRow {
    /// Its name.
    pub cache: String,
    /// Lookups per second.
    pub rate: f64,
    /// Share of lookups that a copy answered, here or in the shared cache.
    pub hit_ratio: Option<f64>,
    /// Share of lookups with each result.
    pub results: BTreeMap<String, f64>,
    /// How long 99 % of loads at most took.
    pub load_p99: Option<f64>,
}

/// A queue of jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueRow {
    /// Its name.
    pub queue: String,
    /// Jobs pushed per second.
    pub rate: f64,
    /// Jobs pushed in total.
    pub pushed: u64,
    /// Jobs that could run now, where a worker reports it; so it is with the next three.
    pub ready: Option<f64>,
    /// Seconds that the oldest of them has waited.
    pub oldest: Option<f64>,
    /// Jobs that will not run again by themselves.
    pub dead: Option<f64>,
    /// Whether the queue misses its objective: jobs wait longer than they may.
    pub late: bool,
    /// How long they waited to start.
    #[serde(flatten)]
    pub latency: Latency,
}

/// A kind of jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// Its name.
    pub job: String,
    /// Runs per second.
    pub rate: f64,
    /// How long runs took.
    #[serde(flatten)]
    pub latency: Latency,
    /// Runs by outcome, in total.
    pub outcomes: BTreeMap<String, u64>,
}

/// A kind of events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Its name.
    pub event: String,
    /// Published per second.
    pub rate: f64,
    /// Published in total.
    pub published: u64,
}

/// A subscription to events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionRow {
    /// Its name.
    pub subscription: String,
    /// Deliveries per second.
    pub rate: f64,
    /// How long its handler took.
    #[serde(flatten)]
    pub latency: Latency,
    /// Deliveries by outcome, in total.
    pub outcomes: BTreeMap<String, u64>,
}
