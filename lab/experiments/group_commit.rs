//! Group commit: writes to SQLite, each in a transaction of its own, and many callers' in one.
//!
//! Before, one connection of rusqlite behind a mutex, used on a thread that may block, where each insert is
//! its own transaction: what a service does that has no pool for SQLite. After, `write` of
//! `greenwave_db::sqlite::Pool`, whose writer commits the callers that wait at the same time together, each
//! in a savepoint of its own.
//!
//! Both keep what they acknowledge through a power cut (WAL, `synchronous = FULL`), and the statement is the
//! same. So the cost is the disk's sync, which the report states, and the folder for temporary files (`TMPDIR`)
//! must lie on a disk.
//!
//! Before the rounds both files get the same rows, and a difference between them ends the experiment. So does,
//! between rounds, a file with fewer rows than were acknowledged.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use greenwave_db::sqlite::{Config, Pool, Synchronous};
use rusqlite::Connection;
use tokio::task::spawn_blocking;

use super::{Source, shops};
use crate::report::figures;
use crate::{Arm, Arms, BoxError, Call, Experiment, Setup, Workload};

const CREATE: &str = "CREATE TABLE orders (
    id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL, status TEXT NOT NULL, total_cents INTEGER NOT NULL)";
const INSERT: &str = "INSERT INTO orders (customer_id, status, total_cents) VALUES (?1, 'pending', ?2)";

/// How many rows are compared before the rounds.
const COMPARED: u64 = 20;

/// How long syncs are measured.
const SYNCING: Duration = Duration::from_millis(300);

/// No disk syncs as fast as this.
const IN_MEMORY: Duration = Duration::from_micros(10);

/// The experiment. It is about SQLite, and refuses a [`Source::database`].
#[must_use]
pub fn experiment(source: Source) -> Experiment {
    let question =
        "How many more writes does SQLite acknowledge when those that wait together are committed together?";
    Experiment::new("group-commit", "Group commit", question, move |setup| set_up(setup, source.clone()))
        .unit("writes")
}

async fn set_up(setup: Setup, source: Source) -> Result<Arms, BoxError> {
    if source.database.is_some() {
        return Err("group commit is measured on SQLite, in a temporary folder: leave --database out".into());
    }
    let folder = setup.temp_dir()?;
    setup.fact("database", format!("SQLite {}, in this process", rusqlite::version()));
    setup.fact("durability", "WAL, synchronous = FULL: a power cut takes nothing that was acknowledged");
    let measured = folder.clone();
    let sync = setup.shield(async move { spawn_blocking(move || sync_time(&measured)).await? }).await?;
    setup.fact(
        "sync of the disk, before the rounds",
        format!("{} ms", figures::figure(sync.as_secs_f64() * 1e3)),
    );
    if sync < IN_MEMORY {
        setup.note("a sync takes no time here: is the folder for temporary files in memory? Set TMPDIR to one on a disk");
    }
    let before = Orders::new(folder.join("before.db"), plainly)?;
    let config = Config { synchronous: Synchronous::Full, ..shops::pool_config(setup.concurrency()).into() };
    let after = Orders::new(folder.join("after.db"), |path| Ok(Writer::Pool(Pool::open(path, config)?)))?;
    for number in 0..COMPARED {
        let row = choose(&mut Call::new(setup.seed(), number));
        tokio::try_join!(before.insert(row), after.insert(row))?;
    }
    if before.rows()? != after.rows()? {
        return Err("the two ways to write leave different rows".into());
    }
    setup.fact("write", "an order of a random customer");
    Ok(Arms {
        before: before.arm("each its own commit"),
        after: after.arm("commits shared by those who wait"),
    })
}

/// A row: the customer and the total.
type Row = (i64, i64);

fn choose(call: &mut Call) -> Row {
    (call.pick(1..=100_000), call.pick(100..=100_000))
}

/// A file of orders, and how many of them were acknowledged.
#[derive(Clone)]
struct Orders {
    path: PathBuf,
    writer: Writer,
    acknowledged: Arc<AtomicI64>,
}

#[derive(Clone)]
enum Writer {
    Plain(Arc<Mutex<Connection>>),
    Pool(Pool),
}

fn plainly(path: &Path) -> Result<Writer, BoxError> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(Writer::Plain(Arc::new(Mutex::new(db))))
}

impl Orders {
    fn new(path: PathBuf, open: impl FnOnce(&Path) -> Result<Writer, BoxError>) -> Result<Self, BoxError> {
        let db = Connection::open(&path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.execute_batch(CREATE)?;
        Ok(Orders { writer: open(&path)?, path, acknowledged: Arc::default() })
    }

    async fn insert(&self, row: Row) -> Result<(), BoxError> {
        match &self.writer {
            Writer::Plain(db) => {
                let db = Arc::clone(db);
                let insert = move || {
                    let db = db.lock().unwrap_or_else(PoisonError::into_inner);
                    db.prepare_cached(INSERT)?.execute(row)
                };
                spawn_blocking(insert).await??;
            }
            Writer::Pool(pool) => {
                let write = pool.write(move |tx| {
                    tx.prepare_cached(INSERT)?.execute(row)?;
                    Ok::<_, greenwave_db::Error>(())
                });
                write.await?;
            }
        }
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row>, BoxError> {
        let db = Connection::open(&self.path)?;
        let mut select = db.prepare("SELECT customer_id, total_cents FROM orders ORDER BY id")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Sees that what was acknowledged is there.
    fn check(&self) -> Result<(), BoxError> {
        let db = Connection::open(&self.path)?;
        let stored: i64 = db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
        let acknowledged = self.acknowledged.load(Ordering::Relaxed);
        if stored < acknowledged {
            return Err(format!("{acknowledged} writes were acknowledged, and {stored} are there").into());
        }
        Ok(())
    }

    fn arm(self, label: &str) -> Arm {
        let orders = self.clone();
        let inserts =
            Workload::over(self, |orders, mut call| async move { orders.insert(choose(&mut call)).await });
        Arm::new(label, inserts).prepare(move || {
            let orders = orders.clone();
            async move { spawn_blocking(move || orders.check()).await? }
        })
    }
}

/// The median time of writing a page over and syncing it, which is what a commit does.
fn sync_time(folder: &Path) -> Result<Duration, BoxError> {
    let file = File::create(folder.join("sync"))?;
    file.write_all_at(&[0; 4096], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.is_empty() || begun.elapsed() < SYNCING {
        let start = Instant::now();
        file.write_all_at(&[1; 4096], 0)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}
