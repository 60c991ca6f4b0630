//! What only SQLite does: its writers share one lock.

use std::thread;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use tokio_util::sync::CancellationToken;

use crate::support::{Fixture, SqliteFixture, note};

/// A writer that takes the lock again as soon as it has let go of it.
fn rival(fixture: &SqliteFixture, stop: CancellationToken) -> thread::JoinHandle<()> {
    let mut conn = Connection::open(fixture.path()).unwrap();
    conn.pragma_update(None, "synchronous", "OFF").unwrap();
    conn.execute("CREATE TABLE rival (n INTEGER)", []).unwrap();
    conn.busy_timeout(Duration::ZERO).unwrap();
    thread::spawn(move || {
        while !stop.is_cancelled() {
            let Ok(tx) = conn.transaction_with_behavior(TransactionBehavior::Immediate) else { continue };
            tx.execute("INSERT INTO rival VALUES (1)", []).unwrap();
            thread::sleep(Duration::from_micros(500));
            tx.commit().unwrap();
        }
    })
}

/// SQLite's own busy timeout sleeps ever longer, and once some pushes failed after its five seconds.
#[tokio::test]
async fn a_push_gets_its_turn_against_a_writer_that_never_rests() {
    let (fixture, queue) = SqliteFixture::ready().await;
    let stop = CancellationToken::new();
    let ends = stop.clone().drop_guard();
    let rival = rival(&fixture, stop);
    for n in 0..100 {
        queue.push(&note(n)).await.unwrap();
    }
    drop(ends);
    rival.join().unwrap();
}
