//! Databases, jobs and workers for the tests.

use std::fmt::Debug;
use std::time::Duration;

use greenwave_jobs::{Backend, BoxError, Error, Job, JobContext, Queue, QueueStats, Worker, WorkerConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// One empty database of a test's own.
pub(crate) trait Fixture: Sized {
    type Backend: Backend + Debug;

    async fn empty() -> Self;

    /// A queue that shares nothing with the others but the database, as in another process.
    fn connect(&self) -> Queue<Self::Backend>;

    /// Pushes in a transaction of the caller's, which then ends as asked.
    async fn push_in_transaction(&self, queue: &Queue<Self::Backend>, notes: &[Note], commit: bool);

    /// Makes the database refuse notes that say `bad`.
    const REFUSE: &str;

    /// Runs statements.
    async fn execute(&self, sql: &'static str);

    /// The text in the first row, if there is one and it is not null.
    async fn text(&self, sql: &'static str) -> Option<String>;

    async fn ready() -> (Self, Queue<Self::Backend>) {
        let fixture = Self::empty().await;
        let queue = fixture.connect();
        queue.migrate().await.unwrap();
        (fixture, queue)
    }
}

#[cfg(feature = "postgres")]
pub(crate) struct PostgresFixture {
    pub(crate) pool: sqlx::PgPool,
}

#[cfg(feature = "postgres")]
impl Fixture for PostgresFixture {
    type Backend = greenwave_jobs::Postgres;

    const REFUSE: &str = "
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'it is bad'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON greenwave_jobs
            FOR EACH ROW WHEN (NEW.payload::text LIKE '%bad%') EXECUTE FUNCTION refuse()";

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&self.pool).await.unwrap();
    }

    async fn text(&self, sql: &'static str) -> Option<String> {
        sqlx::query_scalar::<_, Option<String>>(sql).fetch_optional(&self.pool).await.unwrap().flatten()
    }

    async fn empty() -> Self {
        let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
        PostgresFixture {
            pool: sqlx::postgres::PgPoolOptions::new().max_connections(4).connect_lazy(&url).unwrap(),
        }
    }

    fn connect(&self) -> Queue<Self::Backend> {
        let options = self.pool.connect_options().as_ref().clone();
        Queue::postgres(sqlx::postgres::PgPoolOptions::new().max_connections(4).connect_lazy_with(options))
    }

    async fn push_in_transaction(&self, queue: &Queue<Self::Backend>, notes: &[Note], commit: bool) {
        let mut tx = self.pool.begin().await.unwrap();
        queue.push_in(&mut tx, &notes[0]).await.unwrap();
        queue.push_many_in(&mut tx, &notes[1..]).await.unwrap();
        if commit { tx.commit().await.unwrap() } else { tx.rollback().await.unwrap() }
    }
}

#[cfg(feature = "sqlite")]
pub(crate) struct SqliteFixture {
    folder: tempfile::TempDir,
}

#[cfg(feature = "sqlite")]
impl SqliteFixture {
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("jobs.db")
    }

    fn conn(&self) -> rusqlite::Connection {
        let conn = rusqlite::Connection::open(self.path()).unwrap();
        conn.busy_timeout(PATIENCE).unwrap();
        conn
    }
}

#[cfg(feature = "sqlite")]
impl Fixture for SqliteFixture {
    type Backend = greenwave_jobs::Sqlite;

    const REFUSE: &str = "
        CREATE TRIGGER refuse BEFORE INSERT ON greenwave_jobs WHEN NEW.payload LIKE '%bad%'
            BEGIN SELECT RAISE(ABORT, 'it is bad'); END";

    async fn execute(&self, sql: &'static str) {
        self.conn().execute_batch(sql).unwrap();
    }

    async fn text(&self, sql: &'static str) -> Option<String> {
        let text = self.conn().query_row(sql, [], |row| row.get::<_, Option<String>>(0));
        rusqlite::OptionalExtension::optional(text).unwrap().flatten()
    }

    async fn empty() -> Self {
        SqliteFixture { folder: tempfile::tempdir().unwrap() }
    }

    fn connect(&self) -> Queue<Self::Backend> {
        Queue::sqlite(self.path()).unwrap()
    }

    async fn push_in_transaction(&self, queue: &Queue<Self::Backend>, notes: &[Note], commit: bool) {
        let mut conn = self.conn();
        let tx = conn.transaction().unwrap();
        queue.push_in(&tx, &notes[0]).unwrap();
        queue.push_many_in(&tx, &notes[1..]).unwrap();
        if commit { tx.commit().unwrap() } else { tx.rollback().unwrap() }
    }
}

#[cfg(feature = "nats")]
#[derive(Debug)]
pub(crate) struct NatsFixture {
    pub(crate) client: async_nats::Client,
    pub(crate) config: greenwave_jobs::NatsConfig,
}

#[cfg(feature = "nats")]
impl NatsFixture {
    /// Streams of a test's own on this server.
    pub(crate) async fn on(url: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stream = format!("jobs-{}-{n}", std::process::id());
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client =
            options.reconnect_delay_callback(|_| Duration::from_millis(20)).connect(url).await.unwrap();
        within(client.flush()).await.unwrap();
        NatsFixture { client, config: greenwave_jobs::NatsConfig { stream, ..Default::default() } }
    }
}

#[cfg(feature = "nats")]
impl Fixture for NatsFixture {
    type Backend = greenwave_jobs::Nats;

    const REFUSE: &str = "";

    async fn execute(&self, _: &'static str) {
        unreachable!("JetStream has no SQL; the tests with it are not for it");
    }

    async fn text(&self, _: &'static str) -> Option<String> {
        unreachable!("JetStream has no SQL; the tests with it are not for it");
    }

    async fn empty() -> Self {
        let url = tokio::task::spawn_blocking(greenwave_test_servers::nats_url).await.unwrap();
        NatsFixture::on(&url).await
    }

    fn connect(&self) -> Queue<Self::Backend> {
        Queue::nats(self.client.clone(), self.config.clone()).unwrap()
    }

    async fn push_in_transaction(&self, _: &Queue<Self::Backend>, _: &[Note], _: bool) {
        unreachable!("JetStream has no transactions; the tests of them are not for it");
    }
}

/// The job of most tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) text: String,
}

impl Job for Note {
    const NAME: &'static str = "note";
    const MAX_ATTEMPTS: u32 = 3;
}

pub(crate) fn note(text: impl ToString) -> Note {
    Note { text: text.to_string() }
}

/// Polls often, retries soon.
pub(crate) fn quick() -> WorkerConfig {
    WorkerConfig {
        concurrency: 10,
        poll_interval: Duration::from_millis(20),
        retry_base: Duration::from_millis(10),
        retry_max: Duration::from_millis(50),
        ..Default::default()
    }
}

/// Sleeps for ever unless woken.
pub(crate) fn sleepy() -> WorkerConfig {
    WorkerConfig { poll_interval: Duration::from_secs(3600), ..quick() }
}

/// A worker that runs.
pub(crate) struct Running {
    cancel: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

pub(crate) fn start<B: Backend>(worker: Worker<B>) -> Running {
    let cancel = CancellationToken::new();
    Running { task: tokio::spawn(worker.run(cancel.clone())), cancel }
}

impl Running {
    pub(crate) fn ask_to_stop(&self) {
        self.cancel.cancel();
    }

    /// The graceful end.
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        within(self.task).await.unwrap().unwrap();
    }

    /// The end of a killed process: handlers are dropped, nothing is told to the database.
    pub(crate) async fn kill(self) {
        self.task.abort();
        within(self.task).await.unwrap_err();
    }
}

/// A worker that reports each note it gets, and completes it.
pub(crate) fn recorder<B: Backend>(
    queue: Queue<B>,
    config: WorkerConfig,
) -> (Worker<B>, mpsc::UnboundedReceiver<(Note, JobContext)>) {
    let (report, reports) = mpsc::unbounded_channel();
    let worker = Worker::new(queue, config).handle(move |note: Note, context| {
        let sent = report.send((note, context));
        async move { sent.map_err(BoxError::from) }
    });
    (worker, reports)
}

/// A worker whose handler reports and then never ends by itself, for which a stop does not wait long.
pub(crate) fn sticker<B: Backend>(
    queue: Queue<B>,
    config: WorkerConfig,
) -> (Worker<B>, mpsc::UnboundedReceiver<(Note, JobContext)>) {
    let (report, reports) = mpsc::unbounded_channel();
    let config = WorkerConfig { grace: Duration::from_millis(50), ..config };
    let worker = Worker::new(queue, config).handle(move |note: Note, context| {
        report.send((note, context)).unwrap();
        std::future::pending::<Result<(), BoxError>>()
    });
    (worker, reports)
}

pub(crate) async fn within<F: IntoFuture>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("this should have happened long ago")
}

/// Waits until the counts are as wished.
pub(crate) async fn settled<B: Backend>(queue: &Queue<B>, wish: impl Fn(QueueStats) -> bool) -> QueueStats {
    let wait = async {
        loop {
            let stats = queue.stats().await.unwrap();
            if wish(stats) {
                return stats;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    match timeout(PATIENCE, wait).await {
        Ok(stats) => stats,
        Err(_) => panic!("the queue never settled: {:?}", queue.stats().await),
    }
}
