//! A namespace of the lab's own in a Redis, whose keys are removed at the end.

use std::time::Duration;

use anyhow::Context;
use greenwave_cache::{Remote, RemoteConfig};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

use crate::{BoxError, Setup};

/// How many keys are looked through at a time.
const BATCH: usize = 1_000;

/// Longer than any answer should take: the wait is latency, and not an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place in a Redis, and the connections to it.
#[derive(Clone)]
pub(super) struct Space {
    url: String,
    pub(super) namespace: String,
}

impl Space {
    /// Begins a namespace, and promises the removal of its keys.
    pub(super) async fn new(setup: &Setup, url: &str) -> Result<Space, BoxError> {
        let namespace = format!("greenwave_lab_{:08x}", rand::random::<u32>());
        let space = Space { url: url.to_owned(), namespace };
        let mut redis = space.connect().await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
        setup.fact("Redis", format!("{version}, in a process of its own"));
        setup.note(&format!("using keys {}:… of Redis, which are removed at the end", space.namespace));
        let what = format!("remove the keys {}:…", space.namespace);
        setup.on_end(what, space.clone().remove_all());
        Ok(space)
    }

    /// A remote of its own, as each process has one.
    pub(super) fn remote(&self) -> Result<Remote, BoxError> {
        let config = RemoteConfig { namespace: self.namespace.clone(), ..RemoteConfig::default() };
        Ok(Remote::connect_with(&self.url, config)?)
    }

    /// A plain connection.
    pub(super) async fn connect(&self) -> anyhow::Result<MultiplexedConnection> {
        let client = redis::Client::open(&*self.url).context("--redis: write redis://HOST:PORT/0")?;
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        connecting.await.context("could not connect to --redis")
    }

    async fn remove_all(self) -> Result<(), BoxError> {
        let mut redis = self.connect().await?;
        let mut cursor: u64 = 0;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("*{}:*", self.namespace)).arg("COUNT").arg(BATCH);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(&mut redis).await?;
            if !keys.is_empty() {
                redis::cmd("UNLINK").arg(keys).query_async::<()>(&mut redis).await?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }
}
