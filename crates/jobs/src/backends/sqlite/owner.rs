//! The thread that owns the connection. Calls that wait together share one transaction and one sync of the disk.

use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior, ffi};
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// How many calls may wait for the connection, and how many share a transaction; beyond, callers wait for room.
const MAX_WAITING: usize = 1024;

/// How long the thread waits for as many calls as the last transaction had. Those just answered are about to call
/// again; without the wait, the first of them would have a sync of its own and the others wait for that.
const GATHER: Duration = Duration::from_micros(100);

/// The way to the thread. It ends when its last handle is dropped.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    calls: mpsc::Sender<Box<dyn Call>>,
}

/// What a transaction is worth after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// On disk before the call is answered.
    Synced,
    /// Undone with the later of its kind, or kept: for what only the living need, such as leases. It survives a
    /// killed process like everything else.
    Lazy,
}

impl Handle {
    pub(super) fn spawn(mut conn: Connection) -> Result<Self, Error> {
        let (calls, mut waiting) = mpsc::channel(MAX_WAITING);
        thread::Builder::new()
            .name("greenwave-jobs".to_owned())
            .spawn(move || {
                let mut owner = Owner { durability: Durability::Synced };
                let mut before = 1;
                while let Some(first) = waiting.blocking_recv() {
                    let group = gather(first, &mut waiting, before);
                    before = group.len();
                    owner.serve(&mut conn, group);
                }
            })
            .map_err(|_| Error::Closed)?;
        Ok(Handle { calls })
    }

    /// Runs a read that sees one state of the file.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let look = move |conn: &Connection| read(conn).map(Some);
        self.call(Some(look), |_| Err(rusqlite::Error::InvalidQuery), Durability::Lazy).await
    }

    /// Runs in a transaction: all of it or nothing.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        durability: Durability,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(None::<fn(&Connection) -> rusqlite::Result<Option<T>>>, write, durability).await
    }

    /// Runs in a transaction only if a look does not say what to answer: that costs no lock and no sync.
    pub(super) async fn look_then_write<T: Send + 'static>(
        &self,
        durability: Durability,
        look: impl FnOnce(&Connection) -> rusqlite::Result<Option<T>> + Send + 'static,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(Some(look), write, durability).await
    }

    async fn call<T: Send + 'static>(
        &self,
        look: Option<impl FnOnce(&Connection) -> rusqlite::Result<Option<T>> + Send + 'static>,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        durability: Durability,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let call = Work { look, write: Some(write), result: None, answer, durability };
        self.calls.send(Box::new(call)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?.map_err(Error::Sqlite)
    }
}

fn gather(
    first: Box<dyn Call>,
    waiting: &mut mpsc::Receiver<Box<dyn Call>>,
    before: usize,
) -> Vec<Box<dyn Call>> {
    let mut group = vec![first];
    let until = (before > 1).then(|| Instant::now() + GATHER);
    loop {
        while group.len() < MAX_WAITING
            && let Ok(call) = waiting.try_recv()
        {
            group.push(call);
        }
        if group.len() >= before || until.is_none_or(|until| Instant::now() >= until) {
            return group;
        }
        thread::yield_now();
    }
}

/// One call, whose types are forgotten.
trait Call: Send {
    /// True if it has its answer by looking alone.
    fn look(&mut self, conn: &Connection) -> bool;
    fn durability(&self) -> Durability;
    /// Its part of a transaction; false if that failed.
    fn write(&mut self, conn: &Connection) -> bool;
    /// What it failed with.
    fn error(&self) -> Option<rusqlite::Error>;
    /// After the transaction, which may have failed as a whole.
    fn answer(self: Box<Self>, failed: Option<&rusqlite::Error>);
}

struct Work<T, L, W> {
    look: Option<L>,
    write: Option<W>,
    result: Option<rusqlite::Result<T>>,
    answer: oneshot::Sender<rusqlite::Result<T>>,
    durability: Durability,
}

impl<T, L, W> Call for Work<T, L, W>
where
    T: Send,
    L: FnOnce(&Connection) -> rusqlite::Result<Option<T>> + Send,
    W: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
{
    fn look(&mut self, conn: &Connection) -> bool {
        let Some(look) = self.look.take() else { return false };
        // Of several statements it sees one state of the file.
        let looked = conn.unchecked_transaction().and_then(|tx| look(&tx));
        self.result = looked.transpose();
        self.result.is_some()
    }

    fn durability(&self) -> Durability {
        self.durability
    }

    fn write(&mut self, conn: &Connection) -> bool {
        self.result = self.write.take().map(|write| write(conn));
        matches!(self.result, Some(Ok(_)))
    }

    fn error(&self) -> Option<rusqlite::Error> {
        self.result.as_ref().and_then(|result| result.as_ref().err()).map(copy)
    }

    fn answer(self: Box<Self>, failed: Option<&rusqlite::Error>) {
        let result = match (self.result, failed) {
            (Some(Err(error)), _) => Err(error),
            (_, Some(error)) => Err(copy(error)),
            (Some(Ok(value)), None) => Ok(value),
            (None, None) => Err(rusqlite::Error::InvalidQuery),
        };
        // Nobody may be waiting for the answer any more; the call counts all the same.
        self.answer.send(result).ok();
    }
}

/// Errors of a transaction concern all that share it; rusqlite's cannot be cloned.
fn copy(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(error, message) => {
            rusqlite::Error::SqliteFailure(*error, message.clone())
        }
        other => rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ERROR), Some(other.to_string())),
    }
}

struct Owner {
    /// As the connection is set.
    durability: Durability,
}

impl Owner {
    /// Looks first, then one transaction for all that have to write. What they write is not seen by the looks, which
    /// is right: until it is on disk it may yet not be.
    fn serve(&mut self, conn: &mut Connection, group: Vec<Box<dyn Call>>) {
        let mut writes = Vec::new();
        for mut call in group {
            if call.look(conn) {
                call.answer(None);
            } else {
                writes.push(call);
            }
        }
        if writes.is_empty() {
            return;
        }
        let failed = self.commit(conn, &mut writes).err();
        for call in writes {
            call.answer(failed.as_ref());
        }
    }

    fn commit(&mut self, conn: &mut Connection, calls: &mut [Box<dyn Call>]) -> rusqlite::Result<()> {
        self.set_durability(conn, calls)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let [only] = calls {
            return if only.write(&tx) { tx.commit() } else { tx.rollback() };
        }
        for call in calls {
            tx.prepare_cached("SAVEPOINT greenwave_jobs")?.execute([])?;
            if !call.write(&tx) {
                // A full disk and its like undo the whole transaction.
                if tx.is_autocommit() {
                    return Err(call.error().unwrap_or(rusqlite::Error::InvalidQuery));
                }
                tx.prepare_cached("ROLLBACK TO greenwave_jobs")?.execute([])?;
            }
            tx.prepare_cached("RELEASE greenwave_jobs")?.execute([])?;
        }
        tx.commit()
    }

    fn set_durability(&mut self, conn: &Connection, calls: &[Box<dyn Call>]) -> rusqlite::Result<()> {
        let lazy = calls.iter().all(|call| call.durability() == Durability::Lazy);
        let durability = if lazy { Durability::Lazy } else { Durability::Synced };
        if durability != self.durability {
            conn.pragma_update(None, "synchronous", if lazy { "NORMAL" } else { "FULL" })?;
            self.durability = durability;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::Durability::{Lazy, Synced};
    use super::*;

    /// A connection with a table, and a count of its commits.
    fn table(path: &std::path::Path) -> (Handle, Arc<AtomicUsize>) {
        let conn = super::super::open::open(path).unwrap();
        conn.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY)").unwrap();
        let commits = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&commits);
        let hook = move || {
            count.fetch_add(1, Ordering::SeqCst);
            false
        };
        conn.commit_hook(Some(hook)).unwrap();
        (Handle::spawn(conn).unwrap(), commits)
    }

    fn insert(n: i64) -> impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static {
        move |conn| conn.execute("INSERT INTO t VALUES (?1), (?1 + 100)", [n]).map(drop)
    }

    #[tokio::test]
    async fn calls_that_wait_together_share_a_commit_and_one_that_fails_is_undone_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (handle, commits) = table(&folder.path().join("t.db"));
        // While the thread is busy, the others gather.
        let (go_on, wait) = mpsc::channel::<()>();
        let busy = handle.read(move |_| Ok(wait.recv().unwrap()));
        let calls = async {
            // 1 inserts 101, so 101 fails, after its first row.
            let calls = [1, 2, 101, 3].map(|n| handle.write(Synced, insert(n)));
            let all = futures_util::future::join_all(calls);
            let (results, ()) = tokio::join!(all, async { go_on.send(()).unwrap() });
            results.iter().map(Result::is_ok).collect::<Vec<_>>()
        };
        let (_, results) = tokio::join!(busy, calls);
        assert_eq!(results, [true, true, false, true]);
        assert_eq!(commits.load(Ordering::SeqCst), 1);
        let rows =
            handle.read(|conn| conn.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)));
        assert_eq!(rows.await.unwrap(), 6);
    }

    #[tokio::test]
    async fn a_lone_call_that_fails_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let (handle, commits) = table(&folder.path().join("t.db"));
        let half = |conn: &Connection| {
            conn.execute("INSERT INTO t VALUES (1)", [])?;
            conn.execute("INSERT INTO nowhere VALUES (1)", [])
        };
        handle.write(Synced, half).await.unwrap_err();
        let rows =
            handle.read(|conn| conn.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)));
        assert_eq!((rows.await.unwrap(), commits.load(Ordering::SeqCst)), (0, 0));
    }

    #[tokio::test]
    async fn only_what_the_living_need_is_not_synced() {
        let folder = tempfile::tempdir().unwrap();
        let (handle, _) = table(&folder.path().join("t.db"));
        for (durability, level) in [(Synced, 2), (Lazy, 1), (Synced, 2)] {
            let synced =
                |conn: &Connection| conn.pragma_query_value(None, "synchronous", |row| row.get::<_, i32>(0));
            assert_eq!(handle.write(durability, synced).await.unwrap(), level);
        }
    }
}
