use std::{
    io,
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;
use greenwave_db::{BatchConfig, ListLoader};
use tokio::sync::Semaphore;

type Calls = Arc<Mutex<Vec<Vec<(u32, u32)>>>>;

/// A loader whose calls are recorded; each returns `rows`, whatever was asked for, once a permit is there.
fn loader(
    rows: Vec<(u32, &'static str)>,
) -> (ListLoader<u32, &'static str, io::Error>, Calls, Arc<Semaphore>) {
    let (calls, permits) = (Calls::default(), Arc::new(Semaphore::new(0)));
    let (recorded, gate) = (Arc::clone(&calls), Arc::clone(&permits));
    let config = BatchConfig { max_in_flight: 1, ..Default::default() };
    let loader = ListLoader::new("lists", config, move |asked: Vec<(u32, u32)>| {
        recorded.lock().unwrap().push(asked);
        let (gate, rows) = (Arc::clone(&gate), rows.clone());
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(rows)
        }
    });
    (loader, calls, permits)
}

#[tokio::test]
async fn each_key_has_its_rows_in_the_order_in_which_they_came() {
    let (loader, _, permits) = loader(vec![(1, "b"), (2, "x"), (1, "a"), (1, "c")]);
    permits.add_permits(1);
    let lists = loader.load_many([2, 3, 1], 10).await.unwrap();
    assert_eq!(lists, [vec!["x"], vec![], vec!["b", "a", "c"]], "key 3 has none");
}

#[tokio::test]
async fn nobody_gets_more_than_asked_for_or_what_nobody_asked_for() {
    let (loader, _, permits) = loader(vec![(1, "a"), (9, "of nobody"), (1, "b"), (1, "c")]);
    permits.add_permits(2);
    assert_eq!(loader.load(1, 2).await.unwrap(), ["a", "b"]);
    assert_eq!(loader.load(1, 0).await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn callers_with_different_limits_share_the_longest_list() {
    let (loader, calls, permits) = loader(vec![(1, "a"), (1, "b"), (1, "c"), (2, "x")]);
    let asked = [(0, 1), (1, 1), (2, 5), (1, 3), (1, 2), (1, 3), (3, 1), (3, 2)];
    let lists = join_all(asked.map(|(key, limit)| loader.load(key, limit)));
    permits.add_permits(2);
    let lists: Vec<_> = lists.await.into_iter().map(Result::unwrap).collect();
    let abc = ["a", "b", "c"];
    let expected: [&[&str]; 8] = [&[], &abc[..1], &["x"], &abc, &abc[..2], &abc, &[], &[]];
    assert_eq!(lists, expected);
    assert_eq!(*calls.lock().unwrap(), [vec![(0, 1)], vec![(2, 5), (1, 3), (3, 2)]]);
}

/// What every customer's list is, by the rule that the databases are filled with.
fn newest(customer: i64, limit: u32) -> Vec<i64> {
    (1..=1000).rev().filter(|order| order % 50 == customer).take(limit as usize).collect()
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn on_postgres_one_statement_reads_each_customers_orders_from_the_index() {
    use greenwave_db::{PoolConfig, postgres::Pool};

    const STATEMENT: &str = "SELECT asked.customer_id, o.id
        FROM unnest($1::bigint[], $2::bigint[]) AS asked (customer_id, n)
        CROSS JOIN LATERAL (SELECT id FROM orders WHERE customer_id = asked.customer_id
                            ORDER BY id DESC LIMIT asked.n) AS o
        ORDER BY asked.customer_id, o.id DESC";
    let pool =
        Pool::connect(&greenwave_test_servers::postgres_database(), PoolConfig::default()).await.unwrap();
    let fill = "CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint NOT NULL);
        INSERT INTO orders SELECT n, n % 50 FROM generate_series(1, 1000) AS n;
        CREATE INDEX orders_customer ON orders (customer_id, id);
        ANALYZE orders";
    sqlx::raw_sql(fill).execute(&pool).await.unwrap();

    let statements = Arc::new(Mutex::new(0));
    let (counted, through) = (Arc::clone(&statements), pool.clone());
    let loader = ListLoader::new("orders", BatchConfig::default(), move |asked: Vec<(i64, u32)>| {
        *counted.lock().unwrap() += 1;
        let pool = through.clone();
        let (customers, limits): (Vec<i64>, Vec<i64>) =
            asked.into_iter().map(|(customer, limit)| (customer, i64::from(limit))).unzip();
        async move {
            let rows: Vec<(i64, i64)> =
                sqlx::query_as(STATEMENT).bind(customers).bind(limits).fetch_all(&pool).await?;
            Ok::<_, sqlx::Error>(rows)
        }
    });
    let lists = loader.load_many([7, 77, 49], 3).await.unwrap();
    assert_eq!(lists, [newest(7, 3), vec![], newest(49, 3)]);
    assert_eq!(*statements.lock().unwrap(), 1);
    let asked = [(1, 2), (2, 30), (1, 5), (0, 1)];
    let lists = join_all(asked.map(|(key, limit)| loader.load(key, limit))).await;
    for ((customer, limit), list) in asked.into_iter().zip(lists) {
        assert_eq!(list.unwrap(), newest(customer, limit), "{limit} of customer {customer}");
    }

    let plan: Vec<String> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN (ANALYZE, COSTS off) {STATEMENT}")))
            .bind(vec![7_i64])
            .bind(vec![3_i64])
            .fetch_all(&pool)
            .await
            .unwrap();
    let scan = plan.iter().find(|line| line.contains("using orders_customer")).unwrap();
    assert!(scan.contains("rows=3 "), "it reads on past the limit: {scan}");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn on_sqlite_a_prepared_statement_per_key_runs_within_one_read() {
    use greenwave_db::{Error, PoolConfig, sqlite::Pool};

    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::open(folder.path().join("shop.db"), PoolConfig::default()).unwrap();
    let fill = |tx: &rusqlite::Transaction<'_>| {
        tx.execute_batch(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL);
             CREATE INDEX orders_customer ON orders (customer_id, id)",
        )?;
        let mut insert = tx.prepare("INSERT INTO orders VALUES (?1, ?1 % 50)")?;
        (1..=1000).try_for_each(|id| insert.execute([id]).map(drop))?;
        Ok::<_, Error>(())
    };
    pool.write(fill).await.unwrap();
    let loader = ListLoader::new("orders", BatchConfig::default(), move |asked: Vec<(i64, u32)>| {
        let pool = pool.clone();
        async move {
            let read = pool.read(move |db| {
                let statement = "SELECT id FROM orders WHERE customer_id = ?1 ORDER BY id DESC LIMIT ?2";
                let mut statement = db.prepare_cached(statement)?;
                let mut rows = Vec::new();
                for (customer, limit) in asked {
                    for id in statement.query_map((customer, limit), |row| row.get(0))? {
                        rows.push((customer, id?));
                    }
                }
                Ok(rows)
            });
            read.await
        }
    });
    let asked = [(1, 2), (2, 30), (1, 5), (77, 1)];
    let lists = join_all(asked.map(|(key, limit)| loader.load(key, limit))).await;
    for ((customer, limit), list) in asked.into_iter().zip(lists) {
        let list: Vec<i64> = list.unwrap();
        assert_eq!(list, newest(customer, limit), "{limit} of customer {customer}");
    }
}
