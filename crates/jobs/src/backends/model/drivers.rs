//! Each backend, with what the model needs beside the trait: its rows, and a clock that can be moved.

use std::future::Future;
#[cfg(feature = "postgres")]
use std::sync::Mutex;
use std::time::Duration;

use crate::backends::Store;

/// Id, state, lease id, failures and crashes.
pub(super) type Row = (i64, i64, Option<i64>, i64, i64);

pub(super) trait Driver {
    type Store: Store;

    fn store(&self) -> Self::Store;
    /// Forgets all jobs.
    fn clear(&self) -> impl Future<Output = ()>;
    fn advance(&self, by: Duration) -> impl Future<Output = ()>;
    /// All live jobs, by id.
    fn rows(&self) -> impl Future<Output = Vec<Row>>;
    /// The completed jobs that are kept.
    fn kept(&self) -> impl Future<Output = Vec<i64>>;
}

#[cfg(feature = "testing")]
pub(super) struct Lite {
    test: crate::testing::TestQueue,
    store: crate::Sqlite,
}

#[cfg(feature = "testing")]
impl Lite {
    pub(super) async fn start() -> Self {
        let test = crate::testing::TestQueue::new().await.unwrap();
        Lite { store: test.queue().store, test }
    }
}

#[cfg(feature = "testing")]
impl Driver for Lite {
    type Store = crate::Sqlite;

    fn store(&self) -> Self::Store {
        self.store.clone()
    }

    async fn clear(&self) {
        let tables =
            "DELETE FROM greenwave_jobs; DELETE FROM greenwave_jobs_dead; DELETE FROM greenwave_jobs_done;";
        self.store.write(move |conn| conn.execute_batch(tables)).await.unwrap();
    }

    async fn advance(&self, by: Duration) {
        self.test.clock().advance(by);
    }

    async fn rows(&self) -> Vec<Row> {
        let all = "SELECT id, state, lease_id, failures, crashes FROM greenwave_jobs ORDER BY id";
        let rows = |conn: &rusqlite::Connection| {
            let mut all = conn.prepare_cached(all)?;
            let rows = all
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
            rows.collect()
        };
        self.store.read(rows).await.unwrap()
    }

    async fn kept(&self) -> Vec<i64> {
        let ids = |conn: &rusqlite::Connection| {
            let mut all = conn.prepare_cached("SELECT id FROM greenwave_jobs_done")?;
            all.query_map([], |row| row.get(0))?.collect()
        };
        self.store.read(ids).await.unwrap()
    }
}

#[cfg(feature = "postgres")]
pub(super) struct Server {
    pool: sqlx::PgPool,
    store: Mutex<crate::Postgres>,
}

#[cfg(feature = "postgres")]
impl Server {
    pub(super) async fn start() -> Self {
        let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
        let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
        // What survives a power cut is not asked here.
        let options = options.options([("synchronous_commit", "off")]);
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy_with(options);
        let store = crate::Queue::postgres(pool.clone()).store;
        store.migrate().await.unwrap();
        Server { pool, store: Mutex::new(store) }
    }

    async fn run(&self, sql: &'static str, ms: i64) {
        sqlx::query(sql).bind(ms).execute(&self.pool).await.unwrap();
    }
}

#[cfg(feature = "postgres")]
impl Driver for Server {
    type Store = crate::Postgres;

    fn store(&self) -> Self::Store {
        self.store.lock().unwrap().clone()
    }

    async fn clear(&self) {
        let tables = "TRUNCATE greenwave_jobs, greenwave_jobs_dead, greenwave_jobs_done";
        sqlx::query(tables).execute(&self.pool).await.unwrap();
    }

    /// The server's clock cannot be moved, so all that was noted of it moves back. A store trusts that nothing does
    /// that, and remembers when it last looked; so there is a new one.
    async fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap();
        let live = "
            UPDATE greenwave_jobs SET run_at = run_at - $1 * interval '1 millisecond',
                lease_until = lease_until - $1 * interval '1 millisecond'";
        self.run(live, ms).await;
        let done = "UPDATE greenwave_jobs_done SET expires_at = expires_at - $1 * interval '1 millisecond'";
        self.run(done, ms).await;
        *self.store.lock().unwrap() = crate::Queue::postgres(self.pool.clone()).store;
    }

    async fn rows(&self) -> Vec<Row> {
        let all = "
            SELECT id, state::bigint, lease_id, failures::bigint, crashes::bigint FROM greenwave_jobs ORDER BY id";
        sqlx::query_as(all).fetch_all(&self.pool).await.unwrap()
    }

    async fn kept(&self) -> Vec<i64> {
        sqlx::query_scalar("SELECT id FROM greenwave_jobs_done").fetch_all(&self.pool).await.unwrap()
    }
}
