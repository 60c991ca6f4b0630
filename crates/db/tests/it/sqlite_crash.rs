//! What was acknowledged is there after the process was killed.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::Arc,
};

use greenwave_db::{
    PoolConfig,
    sqlite::{Config, Pool, Synchronous},
};
use tokio::task::JoinSet;

use crate::sqlite::{Fixture, insert};

const FILE: &str = "GREENWAVE_DB_CRASH_TEST_FILE";
/// A line of the child's begins with it: the test harness prints as well.
const ACKNOWLEDGED: &str = "acknowledged ";

/// Not a test by itself: what the next one kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_killed() {
    let Ok(file) = std::env::var(FILE) else { return };
    let (path, mode) = file.split_once('|').unwrap();
    let synchronous = serde_json::from_str(mode).unwrap();
    let pool = Pool::open(path, Config { synchronous, ..Config::default() }).unwrap();
    let (pool, mut tasks) = (Arc::new(pool), JoinSet::new());
    for task in 0..64 {
        let pool = Arc::clone(&pool);
        tasks.spawn(async move {
            for n in (task..).step_by(64) {
                insert(&pool, n).await.unwrap();
                // In one piece, and not into the harness's buffer.
                std::io::stdout().write_all(format!("{ACKNOWLEDGED}{n}\n").as_bytes()).unwrap();
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_kill() {
    for (mode, enough) in [(Synchronous::Off, 3000), (Synchronous::Normal, 3000), (Synchronous::Full, 1000)] {
        let db = Fixture::new(PoolConfig::default()).await;
        let path = db.directory.path().join("test.db");
        let file = format!("{}|{}", path.display(), serde_json::to_string(&mode).unwrap());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite_crash::writes_until_killed", "--nocapture"])
            .env(FILE, file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut acknowledged = Vec::new();
        for line in lines {
            let Some((_, n)) = line.split_once(ACKNOWLEDGED) else { continue };
            acknowledged.push(n.parse::<i64>().unwrap());
            if acknowledged.len() == enough {
                child.kill().unwrap(); // What is in the pipe already is read all the same.
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= enough, "{mode:?}: the child died after {}", acknowledged.len());

        let pool = Pool::open(&path, PoolConfig::default()).unwrap();
        let missing = pool.read(move |db| {
            let mut find = db.prepare("SELECT 1 FROM numbers WHERE n = ?1")?;
            let missing = acknowledged.into_iter().filter(|n| !find.exists([n]).unwrap());
            Ok(missing.collect::<Vec<_>>())
        });
        assert_eq!(missing.await.unwrap(), Vec::<i64>::new(), "{mode:?}");
        let whole: String =
            pool.read(|db| db.query_one("PRAGMA integrity_check", (), |row| row.get(0))).await.unwrap();
        assert_eq!(whole, "ok");
    }
}
