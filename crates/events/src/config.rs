use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;

/// How a bus relays and delivers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// How often to look for events that nobody announced by [`Bus::wake`](crate::Bus::wake), give or take a quarter
    /// (default `200ms`).
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// For how long a delivery belongs to the process that took it. Renewed while the handler runs, so it bounds only
    /// how long the deliveries of a killed process wait (default `30s`).
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How many events one transaction moves from the outbox to the subscriptions (default `500`).
    pub relay_batch: u32,
    /// How long one step in the database may take before it counts as failed (default `10s`).
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// How long running handlers may go on after a stop was asked for (default `10s`).
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// What holds for each subscription that says nothing else.
    pub subscription: SubscriptionConfig,
}

impl Default for BusConfig {
    fn default() -> BusConfig {
        BusConfig {
            poll_interval: Duration::from_millis(200),
            lease: Duration::from_secs(30),
            relay_batch: 500,
            statement_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            subscription: SubscriptionConfig::default(),
        }
    }
}

impl BusConfig {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.poll_interval.is_zero() {
            return Err(Error::Config { key: "poll_interval", problem: "must be more than zero" });
        }
        if self.lease < Duration::from_millis(100) {
            return Err(Error::Config { key: "lease", problem: "must be at least 100ms" });
        }
        if self.relay_batch == 0 {
            return Err(Error::Config { key: "relay_batch", problem: "must be at least 1" });
        }
        if self.statement_timeout.is_zero() {
            return Err(Error::Config { key: "statement_timeout", problem: "must be more than zero" });
        }
        Ok(())
    }
}

/// How one subscription is served, in each process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubscriptionConfig {
    /// How many of its handlers run at once (default `8`).
    pub concurrency: u32,
    /// How many deliveries are taken at once, those that run included. More means fewer statements for each, fewer
    /// means that several processes share a short queue more evenly (default `64`; never less than `concurrency`).
    pub max_claimed: u32,
    /// After how many failed attempts a delivery becomes a dead letter (default `20`: about two hours).
    pub max_attempts: u32,
    /// The wait before the second attempt; it doubles with each further one, and is shortened by up to half at random
    /// (default `1s`).
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// The longest wait between two attempts (default `10m`).
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// How long one attempt may take before it is dropped and counts as failed. It cannot end a `subscribe_in_tx`
    /// handler on SQLite, which runs without await (default `1m`).
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for SubscriptionConfig {
    fn default() -> SubscriptionConfig {
        SubscriptionConfig {
            concurrency: 8,
            max_claimed: 64,
            max_attempts: 20,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(600),
            timeout: Duration::from_secs(60),
        }
    }
}
