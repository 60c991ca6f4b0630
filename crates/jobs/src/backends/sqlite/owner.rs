use std::thread;

use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// How many calls may wait for the connection; beyond, callers wait for room.
const MAX_WAITING: usize = 256;

type Call = Box<dyn FnOnce(&mut Connection) + Send>;

/// The way to the thread that owns the connection. The thread ends when its last handle is dropped.
#[derive(Debug, Clone)]
pub(super) struct Handle {
    calls: mpsc::Sender<Call>,
}

impl Handle {
    pub(super) fn spawn(mut conn: Connection) -> Result<Self, Error> {
        let (calls, mut waiting) = mpsc::channel::<Call>(MAX_WAITING);
        thread::Builder::new()
            .name("greenwave-jobs".to_owned())
            .spawn(move || {
                while let Some(call) = waiting.blocking_recv() {
                    call(&mut conn);
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
        self.call(move |conn| read(&*conn.transaction()?)).await
    }

    /// Runs a transaction: all of it or nothing.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        self.call(move |conn| in_transaction(conn, write)).await
    }

    /// Runs a transaction only if a read says that there is something to do: a look costs no lock and no disk.
    pub(super) async fn write_if<T: Send + 'static>(
        &self,
        needed: impl FnOnce(&Connection) -> rusqlite::Result<bool> + Send + 'static,
        write: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        self.call(move |conn| if needed(conn)? { in_transaction(conn, write).map(Some) } else { Ok(None) })
            .await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |conn| {
            // Nobody may be waiting for the answer any more; the call counts all the same.
            answer.send(call(conn)).ok();
        });
        self.calls.send(call).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?.map_err(Error::Sqlite)
    }
}

fn in_transaction<T>(
    conn: &mut Connection,
    write: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let result = write(&tx)?;
    tx.commit()?;
    Ok(result)
}
