//! What is counted of statements, and what repeats, on SQLite.

use std::{collections::HashMap, sync::Arc, time::Duration};

use greenwave_db::{
    BatchConfig, BatchLoader, Error, PoolConfig,
    query_stats::{self, QueryStats, QueryStatsConfig, Scope, Snapshot, StatementStats},
    sqlite::Pool,
    telemetry::{N_PLUS_ONE_EVENT, QUERY_EVENT, SLOW_QUERY_EVENT, SLOW_QUERY_PLAN_EVENT},
};
use tempfile::TempDir;

use crate::signals::{Captured, signals};

async fn pool(config: PoolConfig) -> (Pool, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::open(directory.path().join("test.db"), config).unwrap();
    pool.write(|tx| {
        Ok::<_, Error>(tx.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")?)
    })
    .await
    .unwrap();
    pool.query_stats().reset();
    (pool, directory)
}

fn with(query_stats: QueryStatsConfig) -> PoolConfig {
    PoolConfig { query_stats, ..Default::default() }
}

async fn name(pool: &Pool, id: i64) -> Result<Option<String>, Error> {
    pool.read(move |db| {
        let mut names = db.prepare_cached("SELECT name FROM t WHERE id = ?1")?;
        let mut names = names.query_map([id], |row| row.get(0))?;
        names.next().transpose()
    })
    .await
}

async fn insert(pool: &Pool, id: i64) -> Result<usize, Error> {
    pool.write(move |tx| Ok(tx.execute("INSERT INTO t VALUES (?1, 'name of ' || ?1)", [id])?)).await
}

fn of<'a>(snapshot: &'a Snapshot, start: &str) -> Vec<&'a StatementStats> {
    snapshot.statements.iter().filter(|statement| statement.text.starts_with(start)).collect()
}

#[tokio::test]
async fn statements_are_counted_by_route_and_call_site() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    insert(&pool, 1).await.unwrap();
    for route in ["/a", "/b", "/b"] {
        let read = async {
            assert_eq!(name(&pool, 1).await.unwrap().as_deref(), Some("name of 1"));
            name(&pool, 2).await.unwrap();
        };
        Scope::new(route).run(read).await;
    }

    let snapshot = pool.query_stats().snapshot();
    let [insert] = of(&snapshot, "INSERT")[..] else { panic!("{snapshot:?}") };
    assert_eq!(insert.text, "INSERT INTO t VALUES (?, ? || ?)");
    assert_eq!((insert.system.as_str(), &insert.route, insert.calls), ("sqlite", &None, 1));
    let mut reads = of(&snapshot, "SELECT");
    reads.sort_by_key(|read| read.calls);
    let counted: Vec<_> = reads.iter().map(|read| (read.route.as_deref(), read.calls, read.rows)).collect();
    assert_eq!(counted, [(Some("/a"), 2, 1), (Some("/b"), 4, 2)]);
    for read in reads {
        assert!(read.site.contains("query_stats_sqlite.rs:"), "{}", read.site);
        assert!(read.p50_ms > 0.0 && read.p50_ms <= read.p99_ms && read.p99_ms <= read.max_ms, "{read:?}");
        assert!(read.max_ms <= read.total_ms, "{read:?}");
    }

    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap().statements.len(), snapshot.statements.len());
    pool.query_stats().reset();
    assert_eq!(pool.query_stats().snapshot(), Snapshot::default());
}

#[tokio::test]
async fn one_statement_from_two_places_is_two() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    pool.read(|db| db.query_one("SELECT 1", (), |row| row.get::<_, i64>(0))).await.unwrap();
    pool.read_on_thread(|db| db.query_one("SELECT 2", (), |row| row.get::<_, i64>(0))).await.unwrap();
    let snapshot = pool.query_stats().snapshot();
    assert_eq!(of(&snapshot, "SELECT ?").len(), 2, "{snapshot:?}");
}

#[tokio::test]
async fn statements_inside_of_one_another_are_told_apart() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    pool.write(|tx| {
        tx.execute_batch(
            "CREATE TABLE log (id INTEGER);
             CREATE TRIGGER noted AFTER UPDATE ON t BEGIN INSERT INTO log VALUES (new.id); END",
        )?;
        tx.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')", ())?;
        Ok::<_, Error>(())
    })
    .await
    .unwrap();
    pool.query_stats().reset();

    pool.write(|tx| {
        // One within another, and in both a third that fires a trigger.
        let mut outer = tx.prepare("SELECT id FROM t")?;
        let mut inner = tx.prepare("SELECT name FROM t WHERE id > 1")?;
        let mut outer = outer.query(())?;
        while let Some(row) = outer.next()? {
            let id: i64 = row.get(0)?;
            let mut ids = inner.query(())?;
            while ids.next()?.is_some() {
                tx.prepare_cached("UPDATE t SET id = id WHERE id = ?1")?.execute([id])?;
            }
        }
        Ok::<_, Error>(())
    })
    .await
    .unwrap();

    let snapshot = pool.query_stats().snapshot();
    let counts = |start| of(&snapshot, start).iter().map(|all| (all.calls, all.rows)).collect::<Vec<_>>();
    assert_eq!(counts("SELECT id"), [(1, 3)], "{snapshot:?}");
    assert_eq!(counts("SELECT name"), [(3, 6)], "{snapshot:?}");
    assert_eq!(counts("UPDATE")[0].0, 6, "{snapshot:?}");
    assert_eq!(snapshot.statements.len(), 3, "{snapshot:?}");
}

#[tokio::test]
async fn an_error_counts_for_its_statement() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    insert(&pool, 1).await.unwrap();
    insert(&pool, 1).await.unwrap_err();
    name(&pool, 2).await.unwrap();
    let snapshot = pool.query_stats().snapshot();
    assert_eq!(of(&snapshot, "INSERT").iter().map(|insert| insert.errors).sum::<u64>(), 1, "{snapshot:?}");
    assert_eq!(of(&snapshot, "SELECT").iter().map(|read| read.errors).sum::<u64>(), 0, "{snapshot:?}");
}

#[tokio::test]
async fn what_has_no_series_left_is_counted_together() {
    let (pool, _directory) = pool(with(QueryStatsConfig { max_series: 2, ..Default::default() })).await;
    for column in ["a", "b", "c", "d", "e"] {
        let sql = format!("SELECT id AS {column} FROM t");
        pool.read(move |db| db.prepare(&sql)?.query(())?.next().map(drop)).await.unwrap();
    }
    let snapshot = pool.query_stats().snapshot();
    let mut calls: Vec<_> = snapshot.statements.iter().map(|s| (s.fingerprint == "other", s.calls)).collect();
    calls.sort_unstable();
    assert_eq!(calls, [(false, 1), (false, 1), (true, 3)]);
}

#[tokio::test]
async fn what_has_no_series_left_is_named_in_the_log_all_the_same() {
    let signals = signals();
    let stats = QueryStatsConfig { max_series: 1, ..Default::default() };
    let (pool, _directory) = pool(PoolConfig { slow_query: Duration::ZERO, ..with(stats) }).await;
    for column in ["a", "left_over", "b", "c"] {
        let sql = format!("SELECT id AS {column} FROM t WHERE id = 7");
        pool.read(move |db| db.prepare(&sql)?.query(())?.next().map(drop)).await.unwrap();
    }
    for target in [QUERY_EVENT, SLOW_QUERY_EVENT] {
        let events = signals.of(target, "left_over");
        let [event] = &events[..] else { panic!("{target}: {events:?}") };
        assert_eq!(event.text(), "SELECT id AS left_over FROM t WHERE id = ?");
    }
    let slow = &signals.of(SLOW_QUERY_EVENT, "left_over")[0];
    assert!(slow.fields["site"].contains("query_stats_sqlite.rs:"), "{slow:?}");
    let is_warning = |event: &Captured| event.fields.get("max_series").is_some_and(|limit| limit == "1");
    assert_eq!(signals.eventually("greenwave_db::telemetry", is_warning).await.len(), 1);
}

#[tokio::test]
async fn pools_can_share_their_counts_and_do_without() {
    let stats = QueryStats::default();
    for _ in 0..2 {
        let (pool, _directory) = pool(PoolConfig::default()).await;
        let pool = pool.with_query_stats(stats.clone());
        name(&pool, 1).await.unwrap();
    }
    assert_eq!(stats.snapshot().statements[0].calls, 2);

    let (pool, _directory) = pool(with(QueryStatsConfig { enabled: false, ..Default::default() })).await;
    name(&pool, 1).await.unwrap();
    assert_eq!(pool.query_stats().snapshot(), Snapshot::default());
}

#[tokio::test]
async fn an_n_plus_one_is_found_and_its_cure_named() {
    let signals = signals();
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let request = || {
        Scope::new("/n-plus-one").run(async {
            for id in 0..9 {
                name(&pool, id).await.unwrap();
            }
        })
    };
    request().await;
    request().await;

    let found = pool.query_stats().n_plus_one();
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!(found.text, "SELECT name FROM t WHERE id = ?");
    assert_eq!((found.route.as_deref(), found.scopes, found.worst), (Some("/n-plus-one"), 2, 9));
    assert!(found.site.contains("query_stats_sqlite.rs:"), "{}", found.site);
    assert!(found.cure.contains("BatchLoader"), "{}", found.cure);

    let warnings =
        signals.eventually(N_PLUS_ONE_EVENT, |event| event.fields["http.route"] == "/n-plus-one").await;
    assert_eq!(warnings.len(), 1, "once a minute: {warnings:?}");
    assert_eq!(warnings[0].number("count"), 9);
    assert!(warnings[0].fields["cure"].contains("BatchLoader"), "{warnings:?}");
}

#[tokio::test]
async fn a_loop_of_inserts_is_told_to_become_one() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let request = async {
        for id in 0..5 {
            insert(&pool, id).await.unwrap();
        }
    };
    Scope::new("/imports").run(request).await;
    let found = pool.query_stats().n_plus_one();
    assert!(found[0].cure.contains("one statement"), "{found:?}");
}

#[tokio::test]
async fn what_is_rare_allowed_or_elsewhere_is_no_n_plus_one() {
    let allow = vec!["select name from t where id = 1".to_owned()];
    let (lenient, _directory) =
        pool(with(QueryStatsConfig { n_plus_one_allow: allow, ..Default::default() })).await;
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let request = async {
        for id in 0..4 {
            name(&pool, id).await.unwrap();
        }
        for id in 0..9 {
            name(&lenient, id).await.unwrap();
        }
    };
    Scope::new("/fine").run(request).await;
    for id in 0..9 {
        name(&pool, id).await.unwrap(); // In no request.
    }
    assert_eq!((pool.query_stats().n_plus_one(), lenient.query_stats().n_plus_one()), (vec![], vec![]));
}

#[tokio::test]
async fn a_spawned_task_counts_where_its_scope_is_carried() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let request = async {
        for id in 0..6 {
            let (pool, scope) = (pool.clone(), Scope::current().unwrap());
            tokio::spawn(scope.run(async move { name(&pool, id).await })).await.unwrap().unwrap();
        }
    };
    Scope::new("/spawning").run(request).await;
    assert_eq!(pool.query_stats().n_plus_one()[0].worst, 6);
}

fn loader(pool: &Pool) -> BatchLoader<i64, String, Error> {
    let pool = pool.clone();
    BatchLoader::new("names", BatchConfig::default(), move |ids: Vec<i64>| {
        let pool = pool.clone();
        async move {
            let mut names = HashMap::new();
            for id in ids {
                if let Some(name) = name(&pool, id).await? {
                    names.insert(id, name);
                }
            }
            Ok(names)
        }
    })
}

#[tokio::test]
async fn what_a_loader_loads_is_its_own() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let names = loader(&pool);
    let request = async {
        for id in 0..9 {
            names.load(id).await.unwrap();
        }
    };
    let ((), seen) = query_stats::watch(Scope::new("/loaded").run(request)).await;
    let snapshot = pool.query_stats().snapshot();
    assert_eq!(snapshot.statements[0].site, "BatchLoader `names`");
    assert_eq!((&snapshot.statements[0].route, snapshot.statements[0].calls), (&None, 9));
    assert_eq!(pool.query_stats().n_plus_one(), []);
    seen.assert_no_n_plus_one();
    let [loads] = seen.statements() else { panic!("{seen:?}") };
    assert_eq!(loads.calls, 9, "a test that asks for batches sees them");
}

#[tokio::test]
async fn a_test_sees_what_ran() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let handler = async {
        for id in 0..6 {
            name(&pool, id).await.unwrap();
        }
        insert(&pool, 1).await.unwrap();
        insert(&pool, 1).await.unwrap_err();
    };
    let ((), seen) = query_stats::watch(Scope::new("/watched").run(handler)).await;
    assert_eq!(seen.count(), 8);
    let [reads, writes] = seen.statements() else { panic!("{seen:?}") };
    assert_eq!((reads.calls, reads.n_plus_one, reads.route.as_deref()), (6, true, Some("/watched")));
    assert_eq!((writes.calls, writes.errors, writes.n_plus_one), (2, 1, false));
    assert_eq!(reads.errors, 0);
    seen.assert_at_most(8);

    let message = |failed: std::thread::Result<()>| *failed.unwrap_err().downcast::<String>().unwrap();
    let too_many = message(std::panic::catch_unwind(|| seen.assert_at_most(7)));
    assert!(too_many.contains("8 statements") && too_many.contains("INSERT INTO t"), "{too_many}");
    let repeated = message(std::panic::catch_unwind(|| seen.assert_no_n_plus_one()));
    assert!(repeated.contains("6 × SELECT name") && repeated.contains("BatchLoader"), "{repeated}");
    assert!(!repeated.contains("INSERT"), "{repeated}");
}

#[tokio::test]
async fn a_test_sees_statements_that_are_not_counted() {
    let (pool, _directory) = pool(with(QueryStatsConfig { enabled: false, ..Default::default() })).await;
    let (_, seen) = query_stats::watch(name(&pool, 1)).await;
    assert_eq!(seen.count(), 1);
    seen.assert_no_n_plus_one();
}

#[tokio::test]
async fn logs_show_literals_only_if_asked_to() {
    let signals = signals();
    for log_values in [false, true] {
        let stats = QueryStatsConfig { log_values, ..Default::default() };
        let (pool, _directory) = pool(PoolConfig { slow_query: Duration::ZERO, ..with(stats) }).await;
        let sql = format!("SELECT 'secret {log_values}' AS literal_{log_values}");
        let read = pool.read(move |db| db.query_one(&sql, (), |row| row.get::<_, String>(0)));
        Scope::new("/literal").run(read).await.unwrap();

        for target in [QUERY_EVENT, SLOW_QUERY_EVENT] {
            let events = signals.of(target, &format!("literal_{log_values}"));
            assert_eq!(events.len(), 1, "{events:?}");
            assert_eq!(events[0].text().contains("secret"), log_values, "{events:?}");
        }
        let slow = &signals.of(SLOW_QUERY_EVENT, &format!("literal_{log_values}"))[0];
        assert_eq!(slow.fields["http.route"], "/literal");
        assert!(slow.fields["site"].contains("query_stats_sqlite.rs:"), "{slow:?}");
    }
    assert!(signals.mentioning("secret false").is_empty());
}

#[tokio::test]
async fn the_plan_of_a_slow_statement_is_logged_if_asked_for() {
    let signals = signals();
    let stats = QueryStatsConfig { explain_slow: true, ..Default::default() };
    let (pool, _directory) = pool(PoolConfig { slow_query: Duration::ZERO, ..with(stats) }).await;
    for route in ["/a", "/b", "/b"] {
        let sql = "SELECT id AS planned FROM t WHERE name = ?1 OR id > 0";
        let read = pool.read(move |db| db.prepare(sql)?.query(["Ada"])?.next().map(drop));
        Scope::new(route).run(read).await.unwrap();
    }
    signals.eventually(SLOW_QUERY_PLAN_EVENT, |event| event.text().contains("AS planned")).await;
    tokio::time::sleep(Duration::from_millis(200)).await; // Another would have come by now.
    let plans = signals.of(SLOW_QUERY_PLAN_EVENT, "AS planned");
    assert_eq!(plans.len(), 1, "once a minute: {plans:?}");
    assert!(plans[0].fields["plan"].contains("SEARCH t USING"), "{plans:?}");
}

#[tokio::test]
async fn what_has_no_plan_shows_no_literal() {
    let signals = signals();
    let stats = QueryStatsConfig { explain_slow: true, ..Default::default() };
    let (pool, _directory) = pool(PoolConfig { slow_query: Duration::ZERO, ..with(stats) }).await;
    // Which no other connection sees. A column that is missing is an error that shows the statement.
    let write = pool.write(|db| {
        db.execute_batch("CREATE TEMP TABLE t (unplanned TEXT)")?;
        db.prepare("SELECT unplanned FROM t WHERE unplanned = 'secret plan'")?.query(())?.next()?;
        Ok::<_, Error>(())
    });
    write.await.unwrap();
    let said = |event: &Captured| event.fields.values().any(|value| value.contains("could not be explained"));
    signals.eventually("greenwave_db::sqlite::trace", said).await;
    let shown = signals.mentioning("secret plan");
    assert!(shown.is_empty(), "{shown:?}");
}

#[tokio::test]
async fn the_warning_of_a_long_statement_is_cut() {
    let signals = signals();
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let request = async {
        for _ in 0..6 {
            let sql = format!("SELECT id AS long_winded{} FROM t", ", id".repeat(1500));
            pool.read(move |db| db.prepare(&sql)?.query(())?.next().map(drop)).await.unwrap();
        }
    };
    Scope::new("/long").run(request).await;
    let warned = signals.eventually(N_PLUS_ONE_EVENT, |event| event.text().contains("long_winded")).await;
    assert_eq!(warned[0].text().len(), 4096);
}

/// Many threads, many statements: nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_many_threads_run_is_counted_once_each() {
    let (pool, _directory) = pool(PoolConfig::default()).await;
    let pool = Arc::new(pool);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let pool = Arc::clone(&pool);
            tokio::spawn(async move {
                for id in 0..100 {
                    name(&pool, id).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let snapshot = pool.query_stats().snapshot();
    assert_eq!(snapshot.statements.iter().map(|statement| statement.calls).collect::<Vec<_>>(), [800]);
}
