use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The longest of any duration here: far beyond use, and far from overflowing a sum with the time.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The most handlers or deliveries at once.
const MOST: u32 = 1_000_000;

/// A setting that cannot work, and why.
pub(crate) type Fault = (&'static str, &'static str);

pub(crate) fn check_duration(key: &'static str, duration: Duration) -> Result<(), Fault> {
    if duration > LONGEST {
        return Err((key, "must be at most a year"));
    }
    Ok(())
}

/// How a bus relays and delivers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// How often to look for events that nobody announced by [`Bus::wake`](crate::Bus::wake), give or take a quarter
    /// (default `200ms`).
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// For how long events belong to the process that took them. Renewed while handlers run, so it bounds only how long
    /// the events that a killed process had taken wait (default `30s`).
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// The least time from one move of events to the next. The first event after a while is moved at once; those that
    /// follow it within this time go together, which is cheaper for each of them (default `10ms`).
    #[serde(with = "humantime_serde")]
    pub batch_interval: Duration,
    /// How many events one transaction moves from the outbox to the log (default `1000`).
    pub relay_batch: u32,
    /// How long the log keeps an event, for a replay or a new subscription. One that a subscription has not come to yet
    /// is kept for longer (default `7days`).
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// When an event leaves the log although a subscription has not come to it: it will not be delivered to that one.
    /// What a process has taken stays until it has ended (default: never).
    #[serde(with = "humantime_serde")]
    pub max_retention: Option<Duration>,
    /// How long one step in the database may take before it counts as failed (default `10s`).
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
    /// How many in-process handlers ([`Bus::on`](crate::Bus::on)) may run at once; an event that comes on top of them
    /// is not handled (default `1000`).
    pub max_in_process: u32,
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
            batch_interval: Duration::from_millis(10),
            relay_batch: 1000,
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            max_retention: None,
            max_in_process: 1000,
            statement_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            subscription: SubscriptionConfig::default(),
        }
    }
}

impl BusConfig {
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.find_fault().map_err(|fault| Error::config(None, fault))
    }

    fn find_fault(&self) -> Result<(), Fault> {
        if self.poll_interval.is_zero() {
            return Err(("poll_interval", "must be more than zero"));
        }
        if self.lease < Duration::from_millis(100) {
            return Err(("lease", "must be at least 100ms"));
        }
        if self.relay_batch == 0 {
            return Err(("relay_batch", "must be at least 1"));
        }
        if self.statement_timeout.is_zero() {
            return Err(("statement_timeout", "must be more than zero"));
        }
        check_duration("poll_interval", self.poll_interval)?;
        check_duration("batch_interval", self.batch_interval)?;
        check_duration("retention", self.retention)?;
        check_duration("max_retention", self.max_retention.unwrap_or_default())?;
        check_duration("lease", self.lease)?;
        check_duration("statement_timeout", self.statement_timeout)?;
        check_duration("grace", self.grace)
    }
}

/// How one subscription is served, in each process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubscriptionConfig {
    /// How many of its handlers run at once (default `8`).
    pub concurrency: u32,
    /// How many events are taken at once, those that run included. More means fewer statements for each and larger
    /// batches, fewer means that several processes share a short queue more evenly (default `500`; never less than
    /// `concurrency`).
    pub max_claimed: u32,
    /// Whether events of one [`key`](crate::Event::key) are handled one after another, in the order of their
    /// publication, in all processes together. One that is to be tried again holds up its key and no other. Such a
    /// subscription is served by one process at a time (default `false`).
    pub ordered: bool,
    /// Where a subscription begins that is new (default `now`: with what is published from then on).
    pub start: Start,
    /// After how many failed attempts an event becomes a dead letter (default `20`: about two hours). An attempt that
    /// could not begin, such as one whose transaction waited in vain for a connection, is none.
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

/// A place in the log of all events.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Its end: what is published from now on.
    #[default]
    Now,
    /// Its beginning: everything that the log still has.
    Beginning,
    /// The first event with this position or a later one.
    Position(u64),
    /// The first event that reached the log at this time or later, by the database's clock.
    Time(#[serde(with = "humantime_serde")] SystemTime),
}

impl Default for SubscriptionConfig {
    fn default() -> SubscriptionConfig {
        SubscriptionConfig {
            concurrency: 8,
            max_claimed: 500,
            ordered: false,
            start: Start::Now,
            max_attempts: 20,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(600),
            timeout: Duration::from_secs(60),
        }
    }
}

impl SubscriptionConfig {
    pub(crate) fn find_fault(&self) -> Result<(), Fault> {
        if self.timeout.is_zero() {
            return Err(("timeout", "must be more than zero"));
        }
        if self.max_attempts == 0 {
            return Err(("max_attempts", "must be at least 1"));
        }
        if self.concurrency > MOST {
            return Err(("concurrency", "must be at most 1000000"));
        }
        if self.max_claimed > MOST {
            return Err(("max_claimed", "must be at most 1000000"));
        }
        check_duration("retry_min", self.retry_min)?;
        check_duration("retry_max", self.retry_max)?;
        check_duration("timeout", self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_bus(config: BusConfig) -> String {
        config.check().err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn of_subscription(config: SubscriptionConfig) -> String {
        let fault = config.find_fault().map_err(|fault| Error::config(Some("mail"), fault));
        fault.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn the_defaults_work() {
        assert_eq!(of_bus(BusConfig::default()), "");
        assert_eq!(of_subscription(SubscriptionConfig::default()), "");
    }

    #[test]
    fn a_duration_that_would_overflow_a_sum_is_refused() {
        let (max, bus) = (Duration::MAX, BusConfig::default);
        let year = "must be at most a year";
        assert_eq!(of_bus(BusConfig { poll_interval: max, ..bus() }), format!("`poll_interval` {year}"));
        assert_eq!(of_bus(BusConfig { lease: max, ..bus() }), format!("`lease` {year}"));
        assert_eq!(
            of_bus(BusConfig { statement_timeout: max, ..bus() }),
            format!("`statement_timeout` {year}")
        );
        assert_eq!(of_bus(BusConfig { grace: max, ..bus() }), format!("`grace` {year}"));
        let (of, one) = ("of the subscription `mail` must be at most a year", SubscriptionConfig::default);
        assert_eq!(of_subscription(SubscriptionConfig { timeout: max, ..one() }), format!("`timeout` {of}"));
        assert_eq!(
            of_subscription(SubscriptionConfig { retry_min: max, ..one() }),
            format!("`retry_min` {of}")
        );
        assert_eq!(
            of_subscription(SubscriptionConfig { retry_max: max, ..one() }),
            format!("`retry_max` {of}")
        );
    }

    #[test]
    fn a_subscription_that_could_handle_nothing_is_refused() {
        let (of, one) = ("of the subscription `mail` must be", SubscriptionConfig::default);
        let config = SubscriptionConfig { timeout: Duration::ZERO, ..one() };
        assert_eq!(of_subscription(config), format!("`timeout` {of} more than zero"));
        let config = SubscriptionConfig { max_attempts: 0, ..one() };
        assert_eq!(of_subscription(config), format!("`max_attempts` {of} at least 1"));
        let config = SubscriptionConfig { max_claimed: u32::MAX, ..one() };
        assert_eq!(of_subscription(config), format!("`max_claimed` {of} at most 1000000"));
        let config = SubscriptionConfig { concurrency: u32::MAX, ..one() };
        assert_eq!(of_subscription(config), format!("`concurrency` {of} at most 1000000"));
    }
}
