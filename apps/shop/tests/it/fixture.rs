//! A shop in this process, on a database of its own.

use std::{future::Future, time::Duration};

use greenwave_monitor::Monitor;
use greenwave_shop::{
    Config, DatabaseUrl, Shop, http, loopback,
    run::{self, Role},
    seed::SeedSize,
    store::{Store, StoreConfig},
};
use sqlx::{PgPool, postgres::PgPoolOptions};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{client::Client, database::Database};

/// What a test's database holds at its start.
pub(crate) const SIZE: SeedSize = SeedSize::SMALL;

/// How long effects may take.
pub(crate) const EFFECTS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    Sqlite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Works {
    Everything,
    ApiOnly,
}

/// A seeded database, which ends with this value.
pub(crate) struct Data {
    pub(crate) url: DatabaseUrl,
    pub(crate) db: Database,
    /// Of PostgreSQL only; each shop of this data has the same one.
    pub(crate) redis: Option<String>,
    _folder: Option<TempDir>,
}

impl Data {
    pub(crate) async fn empty(kind: Kind) -> Data {
        match kind {
            Kind::Sqlite => {
                let folder = TempDir::new().unwrap();
                let path = folder.path().join("shop.db");
                let url = DatabaseUrl::Sqlite(path.clone());
                Data { url, db: Database::Sqlite(path), redis: None, _folder: Some(folder) }
            }
            Kind::Postgres => {
                let (url, redis) = tokio::task::spawn_blocking(|| {
                    (greenwave_test_servers::postgres_database(), greenwave_test_servers::redis_url())
                })
                .await
                .unwrap();
                let db = Database::Postgres(pool(&url));
                Data { url: url.parse().unwrap(), db, redis: Some(redis), _folder: None }
            }
        }
    }

    pub(crate) async fn seeded(kind: Kind) -> Data {
        let data = Data::empty(kind).await;
        let store = Store::open_at(&data.url, StoreConfig::default()).await.unwrap();
        store.seed(SIZE, |_| {}).await.unwrap();
        data
    }

    pub(crate) fn config(&self) -> Config {
        Config { database: self.url.clone(), redis_url: self.redis.clone(), ..Config::default() }
    }
}

pub(crate) fn pool(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(3).connect_lazy(url).unwrap()
}

/// A running shop.
pub(crate) struct Running {
    pub(crate) client: Client,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(config: &Config, works: Works) -> Running {
        let shop = Shop::open(config).await.unwrap();
        let listener = http::bind(loopback(0)).unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        let cancel = CancellationToken::new();
        let role = match works {
            Works::Everything => Role::Everything(listener),
            Works::ApiOnly => Role::Api(listener),
        };
        let token = cancel.clone();
        let task = tokio::spawn(async move { run::run(shop, role, &Monitor::new(), token).await.unwrap() });
        Running { client, cancel, task }
    }

    /// Ends it in good order, and returns when it has ended.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }

    pub(crate) fn begin_to_stop(&self) {
        self.cancel.cancel();
    }
}

/// A shop on seeded data.
pub(crate) struct Fixture {
    pub(crate) data: Data,
    pub(crate) shop: Running,
}

impl Fixture {
    pub(crate) async fn start(kind: Kind) -> Fixture {
        let data = Data::seeded(kind).await;
        let shop = Running::start(&data.config(), Works::Everything).await;
        Fixture { data, shop }
    }

    pub(crate) async fn naive(kind: Kind) -> Fixture {
        let data = Data::seeded(kind).await;
        let config = Config { naive: true, ..data.config() };
        let shop = Running::start(&config, Works::ApiOnly).await;
        Fixture { data, shop }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.shop.client
    }

    pub(crate) fn db(&self) -> &Database {
        &self.data.db
    }
}

/// Asks again and again until the answer is this, for as long as effects may take.
pub(crate) async fn eventually<T, F>(what: &str, want: T, ask: impl Fn() -> F)
where
    T: PartialEq + std::fmt::Debug,
    F: Future<Output = T>,
{
    eventually_within(EFFECTS_WITHIN, what, want, ask).await;
}

pub(crate) async fn eventually_within<T, F>(within: Duration, what: &str, want: T, ask: impl Fn() -> F)
where
    T: PartialEq + std::fmt::Debug,
    F: Future<Output = T>,
{
    let end = Instant::now() + within;
    loop {
        let got = ask().await;
        if got == want {
            return;
        }
        assert!(Instant::now() < end, "{what}: {got:?}, not {want:?}, after {within:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
