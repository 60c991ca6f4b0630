//! What a store does when its answers do not arrive, which no test can bring about from outside.

use super::*;
use crate::Bus;

const NOW: Duration = Duration::ZERO;

/// A database with a subscription that three events wait for, of one key.
async fn store<B: Backend>(bus: &Bus<B>, publish: impl AsyncFn(&str)) -> B {
    bus.migrate().await.unwrap();
    let store = bus.store().clone();
    let new = Registration { name: "mail".into(), event: "moved".into(), after: None };
    store.register(&[new]).await.unwrap();
    for n in 0..3 {
        let id = format!("00000000-0000-0000-0000-00000000000{n}");
        publish(&format!(
            "INSERT INTO greenwave_event_outbox (id, event, version, key, payload) VALUES ('{id}', 'moved', 1, 'k', '1')"
        ))
        .await;
    }
    store.relay(10).await.unwrap();
    store
}

async fn take(store: &impl Store, known: &[i64]) -> Taken {
    let want = Take {
        subscription: "mail".into(),
        count: 2,
        lease: Duration::from_secs(60),
        owner: Uuid::nil(),
        ordered: true,
        known: known.to_vec(),
    };
    store.take(&want).await.unwrap()
}

async fn what_is_set_aside_twice_is_there_once(store: &impl Store) {
    let lease = take(store, &[]).await.lease;
    let aside = [
        Aside { position: 1, attempts: 1, fate: Fate::Retry(NOW, "broken".into()) },
        Aside { position: 2, attempts: 1, fate: Fate::Dead("broken".into()) },
    ];
    for _ in 0..2 {
        assert!(store.set_aside(lease, &aside).await.unwrap());
    }
    store.complete_ranges(&[lease]).await.unwrap();
    let lag = store.positions().await.unwrap().remove(0);
    assert_eq!((lag.retrying, lag.dead), (1, 1));
}

async fn in_order_nothing_is_taken_after_what_nobody_knows_of(store: &impl Store) {
    let lost = take(store, &[]).await;
    assert_eq!(lost.deliveries.len(), 2);
    assert!(take(store, &[]).await.deliveries.is_empty());
    assert_eq!(take(store, &[lost.lease]).await.deliveries.len(), 1);
}

async fn what_is_held_outlives_the_hard_limit(store: &impl Store) {
    let taken = take(store, &[]).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(store.expire(NOW, Some(NOW), 10).await.unwrap(), 0);
    store.complete_ranges(&[taken.lease]).await.unwrap();
    assert_eq!(store.expire(NOW, Some(NOW), 10).await.unwrap(), 3);
}

macro_rules! cases {
    ($module:ident, $feature:literal, $open:ident: $($case:ident)*) => {
        #[cfg(feature = $feature)]
        mod $module {
            $(
                #[tokio::test]
                async fn $case() {
                    let (store, _guard) = super::$open().await;
                    super::$case(&store).await;
                }
            )*
        }
    };
    ($($case:ident)*) => {
        cases! { on_postgres, "postgres", open_postgres: $($case)* }
        cases! { on_sqlite, "sqlite", open_sqlite: $($case)* }
    };
}

cases! {
    what_is_set_aside_twice_is_there_once
    in_order_nothing_is_taken_after_what_nobody_knows_of
    what_is_held_outlives_the_hard_limit
}

#[cfg(feature = "postgres")]
async fn open_postgres() -> (postgres::Postgres, ()) {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    let pool = sqlx::PgPool::connect_lazy(&url).unwrap();
    let publish = async |sql: &str| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    };
    (store(&Bus::postgres(pool.clone()), publish).await, ())
}

#[cfg(feature = "sqlite")]
async fn open_sqlite() -> (sqlite::Sqlite, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let bus = Bus::sqlite(&path).unwrap();
    let publish = async |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    (store(&bus, publish).await, folder)
}
